"""Family name -> class, imported only when asked for.

A third party adds a family by an entry point in the group ``pofx.families``:
``my-family = "my_package.my_module:MyFamily"``.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pofx.core.errors import UsageError

if TYPE_CHECKING:
    from pofx.core.model import Model

BUILT_IN = {
    "histogram": "pofx.families.table:Histogram",
    "independent": "pofx.families.table:Independent",
    "markov": "pofx.families.table:Markov",
    "gaussian": "pofx.families.gmm:Gaussian",
    "gmm": "pofx.families.gmm:GaussianMixture",
    "made": "pofx.families.autoregressive:Made",
    "window-mlp": "pofx.families.autoregressive:WindowMlp",
    "gpt": "pofx.families.sequence:Gpt",
    "rnn": "pofx.families.sequence:Rnn",
    "wavenet": "pofx.families.sequence:WaveNetFamily",
    "image-gpt": "pofx.families.image_gpt:ImageGpt",
    "pixelcnn": "pofx.families.pixel:PixelCnnFamily",
    "gated-pixelcnn": "pofx.families.pixel:GatedPixelCnnFamily",
    "pixelcnn++": "pofx.families.pixel:PixelCnnPlusFamily",
    "pixelrnn": "pofx.families.pixel:PixelRnnFamily",
    "realnvp": "pofx.families.flow:RealNvp",
    "maf": "pofx.families.flow:Maf",
    "nsf": "pofx.families.flow:Nsf",
    "vae": "pofx.families.vae:Vae",
    "gan": "pofx.families.gan:Gan",
    "ddpm": "pofx.families.diffusion:Ddpm",
    "flow-matching": "pofx.families.diffusion:FlowMatching",
    "classifier": "pofx.families.discriminative:Classifier",
}


_REGISTERED: dict[str, type[Model]] = {}


def register(cls: type[Model]) -> None:
    """Make a family known by its name in this process, as an entry point would for every process."""
    if cls.name in families():
        if cls is not family(cls.name):
            raise UsageError(f"A family {cls.name!r} exists already.", "Give yours another name.")
        return
    _REGISTERED[cls.name] = cls


@cache
def families() -> dict[str, str]:
    """All known family names with their import strings, our own first."""
    found = {p.name: p.value for p in entry_points(group="pofx.families")}
    return BUILT_IN | {k: v for k, v in found.items() if k not in BUILT_IN}


def family(name: str) -> type[Model]:
    """The class of family ``name``. Raises UsageError with the nearest names where there is none."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    known = families()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
        raise UsageError(f"There is no family {name!r}.", hint)
    module, _, attribute = known[name].partition(":")
    cls: type[Model] = getattr(import_module(module), attribute)
    return cls

"""Family name -> class, imported only when asked for.

A third party adds a family by an entry point in the group ``pofx.families``:
``my-family = "my_package.my_module:MyFamily"``.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pofx.core.errors import UsageError
from pofx.core.spelling import meant

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
    "joint-gpt": "pofx.families.joint_gpt:JointGpt",
    "pixelcnn": "pofx.families.pixel:PixelCnnFamily",
    "gated-pixelcnn": "pofx.families.pixel:GatedPixelCnnFamily",
    "pixelcnn++": "pofx.families.pixel:PixelCnnPlusFamily",
    "pixelrnn": "pofx.families.pixel:PixelRnnFamily",
    "realnvp": "pofx.families.flow:RealNvp",
    "maf": "pofx.families.flow:Maf",
    "iaf": "pofx.families.flow:Iaf",
    "nsf": "pofx.families.nsf:Nsf",
    "glow": "pofx.families.glow:Glow",
    "tarflow": "pofx.families.tarflow:TarFlow",
    "cnf": "pofx.families.cnf:Cnf",
    "ppca": "pofx.families.linear:Ppca",
    "factor-analysis": "pofx.families.linear:FactorAnalysis",
    "vae": "pofx.families.vae:Vae",
    "hvae": "pofx.families.hvae:Hvae",
    "vqvae": "pofx.families.vqvae:VqVae",
    "latent-diffusion": "pofx.families.latent_diffusion:LatentDiffusion",
    "mel-vocoder": "pofx.families.mel_vocoder:MelVocoder",
    "rssm": "pofx.families.rssm:Rssm",
    "act": "pofx.families.act:Act",
    "gan": "pofx.families.gan:Gan",
    "ebm": "pofx.families.ebm:Ebm",
    "jem": "pofx.families.jem:Jem",
    "rbm": "pofx.families.rbm:Rbm",
    "dcgan": "pofx.families.image_gan:Dcgan",
    "resnet-gan": "pofx.families.image_gan:ResnetGan",
    "stylegan": "pofx.families.stylegan:StyleGan",
    "ddpm": "pofx.families.diffusion:Ddpm",
    "vdm": "pofx.families.diffusion:Vdm",
    "ncsn": "pofx.families.diffusion:Ncsn",
    "score-sde": "pofx.families.diffusion:ScoreSde",
    "edm": "pofx.families.diffusion:Edm",
    "flow-matching": "pofx.families.diffusion:FlowMatching",
    "diffusion-policy": "pofx.families.diffusion:DiffusionPolicy",
    "masked-diffusion": "pofx.families.masked_diffusion:MaskedDiffusion",
    "trees": "pofx.families.trees:Trees",
    "ctc": "pofx.families.ctc:Ctc",
    "classifier": "pofx.families.discriminative:Classifier",
}

_REGISTERED: dict[str, type[Model]] = {}


def register(cls: type[Model]) -> None:
    """Make a family known by its name in this process, as an entry point would for every process.

    Raises UsageError where another family has that name.
    """
    if cls.name not in families():
        _REGISTERED[cls.name] = cls
    elif cls is not family(cls.name):
        raise UsageError(
            f"A family {cls.name!r} exists already: {families()[cls.name]}.",
            "Give yours another name (a class that a notebook defines anew is another one: restart its kernel).",
        )


def registered() -> dict[str, type[Model]]:
    """The families that ``register`` made known, which no other process knows."""
    return dict(_REGISTERED)


def families() -> dict[str, str]:
    """All known family names with their import strings: our own, then those of entry points, then the registered.

    Example:
        >>> "gmm" in families()
        True
    """
    return _installed() | {name: f"{cls.__module__}:{cls.__qualname__}" for name, cls in _REGISTERED.items()}


@cache
def _installed() -> dict[str, str]:
    """Ours and those of entry points; the first of a name keeps it, with a warning about any other."""
    known = dict(BUILT_IN)
    for point in entry_points(group="pofx.families"):
        if known.setdefault(point.name, point.value) != point.value:
            warnings.warn(
                f"The family {point.name!r} of {point.value} is left out: {known[point.name]} has that name already. "
                "Rename or uninstall it.",
                stacklevel=2,
            )
    return known


def family(name: str) -> type[Model]:
    """The class of family ``name``. Raises UsageError with the nearest names where there is none.

    Example:
        >>> family("nsf").__name__
        'Nsf'
        >>> family("nfs")
        Traceback (most recent call last):
        ...
        pofx.core.errors.UsageError: There is no family 'nfs'. Did you mean nsf or cnf?
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    known = families()
    if name not in known:
        raise UsageError(f"There is no family {name!r}.", meant(name, known, f"Known: {', '.join(known)}."))
    module, _, attribute = known[name].partition(":")
    try:
        cls: type[Model] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"The family {name!r} cannot be loaded from {known[name]}: {error}.", "Mend or uninstall its package."
        ) from error
    if cls.name != name:  # its runs would be read as those of another family
        raise UsageError(f"{known[name]} stands for {name!r} and calls itself {cls.name!r}.", "Use one name for both.")
    return cls

"""Pictures composed on the spot of one to three handwritten digits, and captions that tell every fact of them.

A digit has a size (large or small), a colour and one of five places, as the points of a die's five; no two share a
place. Its caption names them in the order of reading: "a large red 3 at the top left and a small blue 7 in the centre".
The digits are those of scikit-learn (8x8 scans of the UCI repository), each in one part alone: what test scenes show
was never seen in training.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.errors import BadValue
from pofx.data.options import Options
from pofx.data.raw import RawArray
from pofx.data.split import TEST, TRAIN, VALID
from pofx.spaces import Image

NAME = "scenes"
SIDE, MOST = 32, 3  # of the canvas; digits of a scene
SIZES = {"large": 12, "small": 8}  # sides in pixels; the small ones lie in the middle of where a large one would
COLOURS = {
    "red": (255, 40, 40), "green": (40, 220, 60), "blue": (70, 110, 255), "yellow": (255, 225, 40),
    "purple": (200, 70, 230), "white": (255, 255, 255),
}  # fmt: skip
PLACES = {
    "at the top left": (0, 0), "at the top right": (0, 20), "in the centre": (10, 10), "at the bottom left": (20, 0),
    "at the bottom right": (20, 20),
}  # fmt: skip
SPACE = Image(SIDE, SIDE, 3, 256)
ROWS = 10_000
SHARES = {TRAIN: 0.8, VALID: 0.1, TEST: 0.1}
_FACT = re.compile(rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) (\d) ({'|'.join(PLACES)})")


class Fact(NamedTuple):
    """One digit of a scene, each attribute by its word."""

    size: str
    colour: str
    digit: str
    place: str

    def __str__(self) -> str:
        return f"a {' '.join(self)}"


def caption(facts: list[Fact]) -> str:
    """The facts in the order of reading.

    Example:
        >>> caption([Fact("small", "blue", "7", "in the centre"), Fact("large", "red", "3", "at the top left")])
        'a large red 3 at the top left and a small blue 7 in the centre'
    """
    places = list(PLACES)
    *rest, last = map(str, sorted(facts, key=lambda f: places.index(f.place)))
    return f"{', '.join(rest)} and {last}" if rest else last


def facts(text: str) -> list[Fact]:
    """The inverse of ``caption``. Raises BadValue for a text that is none.

    Example:
        >>> facts("a small white 0 at the bottom left")
        [Fact(size='small', colour='white', digit='0', place='at the bottom left')]
    """
    found = [Fact(*m.groups()) for m in _FACT.finditer(text)]
    if not found or caption(found) != text:
        raise BadValue(f"{text!r} is no caption of a scene.", "Write one as 'a large red 3 at the top left'.")
    return found


def compose(n: int, digits: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """n scenes uint8 [n, 3, 32, 32] and their captions, of handwritten digits.

    The number of digits, their sizes, colours and places are even and independent; places of a scene are distinct.

    Args:
        digits: what may stand in them [N, h, w], from 0 (paper) to 1.
        labels: which digit each is [N].
    """
    ink = [F.interpolate(digits[:, None].float(), (s, s), mode="bilinear", antialias=True) for s in SIZES.values()]
    colours = torch.tensor([*COLOURS.values()], dtype=torch.float32)

    def draw(most: int) -> Tensor:
        return torch.randint(most, (n, MOST), generator=generator)

    count = torch.randint(1, MOST + 1, (n,), generator=generator)
    which, size, colour = draw(len(digits)), draw(len(SIZES)), draw(len(COLOURS))
    place = torch.rand(n, len(PLACES), generator=generator).argsort(1)[:, :MOST]
    canvas, texts = torch.zeros(n, 3, SIDE, SIDE), []
    corners, sides = list(PLACES.values()), list(SIZES.values())
    names = [list(words) for words in (SIZES, COLOURS, PLACES)]
    for row in range(n):
        told = []
        for i in range(int(count[row])):
            w, s, c, p = (int(t[row, i]) for t in (which, size, colour, place))
            top, left = (at + (max(sides) - sides[s]) // 2 for at in corners[p])
            part = canvas[row, :, top : top + sides[s], left : left + sides[s]]
            torch.maximum(part, ink[s][w] * colours[c, :, None, None], out=part)  # neighbours touch at empty corners
            told.append(Fact(names[0][s], names[1][c], str(int(labels[w])), names[2][p]))
        texts.append(caption(told))
    return canvas.round().clamp(0, 255).to(torch.uint8), texts


def from_digits(name: str, options: Options) -> RawArray:
    """The built-in source."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(bunch.images)))  # one split, whatever the seed
    images, labels = torch.from_numpy(bunch.images)[order] / 16, torch.from_numpy(bunch.target)[order]
    generator, total = torch.Generator().manual_seed(options.seed), options.max_rows or ROWS
    x, texts, part, begun = [], [], [], 0.0
    for which, share in SHARES.items():
        own = slice(round(begun * len(images)), round((begun + share) * len(images)))
        n = round((begun + share) * total) - round(begun * total)
        begun += share
        pictures, told = compose(n, images[own], labels[own], generator)
        x.append(pictures)
        texts += told
        part.append(np.full(n, which))
    notes = ["Composed of scikit-learn's digits; no digit stands in two of the parts."]
    beside = {"text": lambda: pa.array(texts)}
    return RawArray(torch.cat(x).numpy(), SPACE, part=np.concatenate(part), notes=notes, beside=beside)

"""What needs no fitting: how well gzip and PNG compress the held-out rows, as likelihoods.

A code of L(x) bits has Kraft's inequality sum_x 2^-L(x) <= 1, so it stands for a model with
log p(x) >= -L(x) log 2: a lower bound, under counting measure. That holds only of what can be decoded, so
whatever is packed here gives back every row, to one who knows the space and how many rows there are.
Values with a density have no code of finite length, so there is nothing to compare with.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from pofx.core.likelihood import LowerBound
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.evaluate.likelihood import Mean, summarise, unavailable
from pofx.spaces import Category, Column, Image, Label, Text

MODELS = ("independent", "gaussian")
"""Families that every comparison fits, where they serve the space: what a good model must beat."""


@singledispatch
def compression(space: Space, part: Part) -> dict[str, Mean]:
    """Code lengths of the held-out rows: gzip (of texts xz and bzip2, too) of all together, PNG of each image.

    Example:
        >>> import pofx
        >>> data = pofx.load("digits", max_rows=500)
        >>> found = compression(data.space, data.test)
        >>> sorted(found), found["gzip"].symbol  # a file is a code, and a code bounds -log p from above
        (['gzip', 'png'], '≥')

    An open function: a space with a compressor of its own adds its case.
    """
    return {"gzip": gzip_code(space, part.read().x)}


@compression.register
def _(space: Label, part: Part) -> dict[str, Mean]:
    return {}


@compression.register
def _(space: Text, part: Part) -> dict[str, Mean]:
    return {name: packed_text(space, part.read().x, name) for name in ("gzip", "xz", "bzip2")}


@compression.register
def _(space: Image, part: Part) -> dict[str, Mean]:
    return {"gzip": gzip_code(space, part.x), "png": png_code(space, part.x)}


def packed_text(space: Text, x: Tensor, name: str) -> Mean:
    """Texts [N, L] in one file (``text_bytes``), packed at the strongest setting, divided among them."""
    content = text_bytes(space, x)
    packed = {
        "gzip": lambda: gzip.compress(content, 9, mtime=0),
        "xz": lambda: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
        "bzip2": lambda: bz2.compress(content, 9),
    }[name]()
    note = f"{name} of {len(x)} texts and their lengths as one file of {len(content)} bytes"
    return _shared(space, packed, x, note)


def text_bytes(space: Text, x: Tensor) -> bytes:
    """Texts [N, L] one after the other, in UTF-8 (or the bytes that they are), after the length of each in four bytes.

    The lengths tell where a text ends.
    """
    texts = [space.spell(row).encode() if space.alphabet else bytes(row[row >= 0].tolist()) for row in x]
    return np.array([len(t) for t in texts], "<u4").tobytes() + b"".join(texts)


def _shared(space: Space, packed: bytes, x: Tensor, note: str) -> Mean:
    """A code of all rows together: they share the compressor's memory, so the mean has no error of its own."""
    nats, each = -8 * len(packed) * math.log(2) / len(x), float(space.units(x).double().mean())
    return Mean(
        kind=LowerBound, nats=nats, mc_se=0.0, n=len(x), measure=space.measure, dims=each, unit=space.unit, note=note
    )


def gzip_code(space: Space, x: Tensor) -> Mean:
    """gzip -9 of all rows [N, *E] as one file (columns as CSV, all else as raw bytes), divided among them."""
    if not space.measure.discrete:
        return unavailable("gzip codes exact values, and columns with a density have no finite code.", space)
    content = csv_text(space, x).encode() if space.columns else x.contiguous().numpy().tobytes()
    note = f"gzip -9 of {len(x)} rows as one {'CSV text' if space.columns else 'file of raw bytes'}"
    return _shared(space, gzip.compress(content, 9, mtime=0), x, note)


def png_code(space: Image, x: Tensor) -> Mean:
    """The bytes of every image [N, C, H, W] as an optimised PNG file, header and all.

    Two levels are stored as bits. Channels that are neither grey nor RGB stand side by side in one grey image.
    """
    bits = torch.tensor([8.0 * len(png_bytes(space, image)) for image in x], dtype=torch.float64)
    lik = LowerBound(-bits * math.log(2), space.measure, torch.zeros_like(bits), 0)
    return summarise(lik, space, space.units(x))


def png_bytes(space: Image, image: Tensor) -> bytes:
    """One image [C, H, W] as a PNG file."""
    from PIL import Image as Pillow

    if space.channels == 3 and space.levels > 2:
        picture = Pillow.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    else:
        picture = Pillow.fromarray(torch.cat(list(image), 1).contiguous().numpy())
        if space.levels == 2:
            picture = picture.point(lambda level: 255 * level, mode="1")
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def csv_text(space: Space, x: Tensor) -> str:
    """Rows [N, *E] of columns as they would stand in a CSV file, with nothing for what is missing.

    A category is quoted where it holds a comma, a quote or the end of a line, or nothing at all (RFC 4180), and
    numbers have as many digits as tell their value from all others of their column.
    """

    def cell(column: Column, value: float) -> str:
        if math.isnan(value):
            return ""
        if isinstance(column, Category):
            spelt = column.values[int(value)]
            quoted = not spelt or any(c in spelt for c in ',"\r\n')
            return '"' + spelt.replace('"', '""') + '"' if quoted else spelt
        step = column.step
        assert step is not None  # counted, or there were no code
        short = f"{value:.12g}"  # without the digits of rounding
        same = round((float(short) - column.origin) / step) == round((value - column.origin) / step)
        return short if same else repr(value).removesuffix(".0")

    return "".join(",".join(map(cell, space.columns, row)) + "\n" for row in x.reshape(len(x), -1).tolist())

"""Does a model give outliers a low probability? AUROC of -log p, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.requests import AnyRequest
from pofx.core.space import Ragged, Space
from pofx.data.parts import Part
from pofx.evaluate.likelihood import Mean, mean_log_prob
from pofx.evaluate.ranking import Auroc, auroc
from pofx.spaces import Image


@dataclass(frozen=True)
class Detection(Auroc):
    """AUROC of -log p in bits for one kind of outliers, and the kind of likelihood that ranked them."""

    outliers: str  # what the outliers are, in words
    kind: str
    bits_in: float  # median surprise of inliers
    bits_out: float  # and of outliers


def detect(
    model: Model,
    inliers: Mean,
    outliers: Part,
    name: str,
    *,
    request: AnyRequest = None,
    generator: torch.Generator | None = None,
    seconds: float | None = None,
    group: Tensor | None = None,
) -> Detection | Unavailable:
    """How well -log p tells ``outliers`` from ``inliers``; Unavailable with the reason where there is no p.

    Args:
        model: the model that the inliers' likelihood is of.
        inliers: ``likelihood.mean_log_prob`` of ordinary held-out rows.
        outliers: rows of the same space; ``name`` says in words what they are.
        request, generator, seconds: as of ``likelihood.mean_log_prob``.
        group: [N], the same for inliers that depend on each other; of outliers, those of their part.

    A bound or an estimate may rank as well as an exact number; ``kind`` says which it was.
    """
    if inliers.rows is None:
        return Unavailable(inliers.note)
    found = mean_log_prob(model, outliers, request=request, generator=generator, seconds=seconds)
    if found.rows is None:
        return Unavailable(found.note)
    normal, odd = (-s.rows.nats.double() / math.log(2) for s in (inliers, found) if s.rows is not None)
    own, theirs = (None if g is None else g[: len(v)] for g, v in ((group, normal), (outliers.groups, odd)))
    area = auroc(normal, odd, (own, theirs))
    kind, bits_in, bits_out = found.kind.__name__, float(normal.median()), float(odd.median())
    return Detection(**vars(area), outliers=name, kind=kind, bits_in=bits_in, bits_out=bits_out)


@singledispatch
def corrupt(space: Space, part: Part, generator: torch.Generator) -> tuple[Part, str]:
    """Rows that keep every marginal and lose what binds them, with a description in words.

    Tables, and by default: each column is shuffled among the rows by itself (so that no row keeps its own combination,
    and a model of independent columns stands at 0.5). Texts, sounds and sequences: each keeps its steps, in another
    order. Images: cut into a 4 x 4 grid of blocks that change places within each image (textures stay, the whole is
    lost), each image by an order of its own.

    An open function: a space whose numbers cannot be shuffled each by itself adds its own case.

    Example:
        >>> import pofx, torch
        >>> data = pofx.load("two-moons", max_rows=600)
        >>> shuffled, words = corrupt(data.space, data.test, torch.Generator().manual_seed(0))
        >>> torch.equal(shuffled.x.sort(0).values, data.test.x.sort(0).values)  # each column keeps its values
        True
    """
    if len(space.event_shape) == 0:
        raise UsageError(f"A {space} has no parts to shuffle.", "Give outliers of your own.")
    flat = part.x.reshape(len(part), -1)
    columns = [v[torch.randperm(len(part), generator=generator)] for v in flat.unbind(1)]
    x = torch.stack(columns, 1).reshape(part.x.shape)
    return replace(part, x=x), "test rows with every column shuffled by itself"


@corrupt.register
def _(space: Ragged, part: Part, generator: torch.Generator) -> tuple[Part, str]:
    """The steps of each datum in a random order of its own; fill stays at the end."""
    part = part.read()
    x = part.x
    after = torch.arange(x.shape[1]) >= space.lengths(x)[:, None]
    order = (torch.rand(x.shape[:2], generator=generator) + after).argsort(1)
    return replace(part, x=x[torch.arange(len(x))[:, None], order]), "test data with their steps shuffled"


@corrupt.register
def _(space: Image, part: Part, generator: torch.Generator) -> tuple[Part, str]:
    """Equal blocks of a grid of at most 4 x 4 permuted within each image; a remainder at the edge stays."""
    n, channels, height, width = part.x.shape
    down, across = min(4, height), min(4, width)
    h, w = height // down, width // across
    blocks = part.x[..., : down * h, : across * w].reshape(n, channels, down, h, across, w)
    blocks = blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, down * across, channels, h, w)
    order = torch.rand(n, down * across, generator=generator).argsort(1)
    moved = blocks[torch.arange(n)[:, None], order].reshape(n, down, across, channels, h, w)
    out = part.x.clone()
    out[..., : down * h, : across * w] = moved.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, down * h, across * w)
    return replace(part, x=out), "test images with the blocks of a 4×4 grid shuffled"

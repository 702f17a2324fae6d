"""What can be done in a latent space: ways between data, one latent moved at a time, attributes added, groups found.

All of it is ``encode`` to the mean of q(z | x), arithmetic on z, and ``from_latents`` back, so any family with both
abilities has it (``codes`` and ``groups`` need the first alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Categorical

from pofx.core.abilities import Encodes, ability_of
from pofx.core.errors import EmptyData, UsageError, WrongShape
from pofx.core.model import Model
from pofx.data.parts import Part
from pofx.spaces import Category

Way: TypeAlias = Literal["linear", "spherical"]


def codes(model: Model, part: Part) -> Tensor:
    """E[z | x] of every row of the part [N, L], in blocks as large as the model takes.

    Raises Unsupported where the family has no latent.
    """
    ability_of(model, Encodes)
    size, out = model.rows_per_pass(), []
    with torch.no_grad():
        for i in range(0, len(part), size):
            rows = part[i : i + size].read()
            q = model.given(rows.c).encode(rows.x)
            # E[z], where an index has no mean but its probabilities
            out.append((q.probs if isinstance(q, Categorical) else q.mean).cpu())
    return torch.cat(out).flatten(1)


# -- ways between two points ---------------------------------------------------------------------------------


def between(a: Tensor, b: Tensor, steps: int, way: Way = "spherical") -> Tensor:
    """Points [steps, *S, L] from a to b [*S, L], both included.

    A straight line between draws of N(0, I) in many dimensions leads through their middle, where the prior has next to
    no mass; the spherical way (Shoemake 1985; White 2016) turns one into the other at even angles, its length going
    evenly from one to the other. Where a and b lie on one line through zero, it is the straight line.

    Example:
        >>> between(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3)[1]
        tensor([0.7071, 0.7071])
    """
    if steps < 2:
        raise UsageError(f"A way of {steps} points has no two ends.", "Ask for 2 points or more.")
    if a.shape != b.shape:
        raise WrongShape(f"The ends have shapes {tuple(a.shape)} and {tuple(b.shape)}.", "Give two of one model.")
    t = torch.linspace(0, 1, steps).to(a).view(-1, *[1] * a.ndim)
    line = (1 - t) * a + t * b
    if way == "linear":
        return line
    long, other = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    angle = torch.nn.functional.cosine_similarity(a, b, dim=-1)[..., None].clamp(-1, 1).acos()
    turned = (((1 - t) * angle).sin() * a / long + (t * angle).sin() * b / other) / angle.sin()
    turned = turned * ((1 - t) * long + t * other)
    return torch.where((angle.sin().abs() < 1e-4) | (long * other == 0), line, turned)


def interpolate(model: Model, x: Tensor, y: Tensor, steps: int, way: Way = "spherical", c: Any = None) -> Tensor:
    """Data [steps, N, *E] on the ways from x to y [N, *E] (given c), the ends as the model reconstructs them."""
    given = model.given(c)
    with torch.no_grad():
        a, b = (given.encode(end).mean for end in (x, y))
        return given.from_latents(between(a, b, steps, way))


# -- one latent at a time --------------------------------------------------------------------------------------


def traverse(model: Model, z: Tensor, spread: Tensor, dims: Tensor, steps: int, reach: float, c: Any = None) -> Tensor:
    """Data [len(dims), steps, *E]: one latent after the other moved, all others as in z [L].

    Args:
        spread: [L], of each latent over data: it is moved by up to ``reach`` of that, down and up.
        dims: which latents.
    """
    if steps < 2:
        raise UsageError(f"A traversal of {steps} points does not move.", "Ask for 2 points or more.")
    moves = torch.linspace(-reach, reach, steps).to(z)
    points = z.repeat(len(dims), steps, 1)
    for row, d in enumerate(dims.tolist()):
        points[row, :, d] += moves * spread[d]
    return model.given(c).from_latents(points)


def by_use(z: Tensor) -> Tensor:
    """The latents [L] by how far they vary over rows z [N, L], the most varied first: unused ones come last."""
    return z.var(0).argsort(descending=True)


# -- attributes ------------------------------------------------------------------------------------------------


def direction(z: Tensor, has: Tensor) -> Tensor:
    """The latent direction [L] of an attribute: the mean of rows z [N, L] that have it, minus that of the others.

    Larsen et al. 2016, section 3.3. ``has`` is a boolean for each row. Raises EmptyData where all or none have it.
    """
    if not 0 < int(has.sum()) < len(has):
        raise EmptyData(f"{int(has.sum())} of {len(has)} rows have the attribute.", "Some must have it, and some not.")
    return z[has].mean(0) - z[~has].mean(0)


# -- groups ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows grouped by their latents.

    Attributes:
        index: [N], the group of each row, the largest group first.
        silhouette: mean over (at most 2,000) rows, in [-1, 1]: near 1 where groups stand apart (Rousseeuw 1987).
        agreement: adjusted Rand index with the labels (Hubert & Arabie 1985): 1 where they are the same up to names, 0
            on average by chance; None where there are no labels.
    """

    index: Tensor
    silhouette: float
    agreement: float | None


def groups(z: Tensor, k: int, label: Tensor | None = None, *, seed: int = 0) -> Groups:
    """k groups of rows z [N, L] by k-means on standardised latents. Raises UsageError unless 2 <= k < N."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    if not 2 <= k < len(z):
        raise UsageError(f"{len(z)} rows do not make {k} groups.", "Give 2 groups or more, and more rows than groups.")
    spread = z.std(0)
    y = ((z - z.mean(0)) / torch.where(spread > 0, spread, 1.0)).double().numpy()
    found = torch.from_numpy(KMeans(k, n_init=10, random_state=seed).fit_predict(y)).long()
    rank = found.bincount(minlength=k).argsort(descending=True).argsort()
    index = rank[found]
    return Groups(
        index,
        float(silhouette_score(y, index.numpy(), sample_size=min(2000, len(y)), random_state=seed)),
        None if label is None else float(adjusted_rand_score(label.numpy(), index.numpy())),
    )


# -- reconstructions -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Data as they come back from their latents.

    Attributes:
        x: [N, *E].
        rms: root mean square of the differences of numbers, in the data's own units (levels of pixels); None where
            there are none.
        differing: share of values that come back as others; of real numbers all do.
    """

    x: Tensor
    rms: float | None
    differing: float


def reconstruct(model: Model, part: Part) -> Reconstruction:
    """The part's rows from the mean of q(z | x)."""
    z, rows = codes(model, part), part.read()
    with torch.no_grad():
        x = model.given(rows.c).from_latents(z).cpu()
    numbers = rows.x.double().flatten(1), x.double().flatten(1)
    if model.space.columns:
        kept = [j for j, column in enumerate(model.space.columns) if not isinstance(column, Category)]
        off = (numbers[0] - numbers[1])[:, kept]
    else:
        off = numbers[0] - numbers[1]
    same = (numbers[0] == numbers[1]) | (numbers[0].isnan() & numbers[1].isnan())
    square = off[~off.isnan()].square()
    return Reconstruction(x, math.sqrt(float(square.mean())) if len(square) else None, float((~same).double().mean()))


# -- pictures --------------------------------------------------------------------------------------------------


def strips(model: Model, part: Part, count: int = 10) -> tuple[list[str], Tensor]:
    """What a latent space looks like, in strips of ``count`` data: what each is, and the data [strips, count, *E].

    The first rows of the part and what comes back of them, ways from the first to the second row, and the three most
    used latents moved by three deviations in the first.
    """
    z, rows = codes(model, part), part[:count].read()
    one = None if rows.c is None else rows.c[0]
    ways: tuple[Way, ...] = ("spherical", "linear")
    found = {"held-out": rows.x, "from their latents": reconstruct(model, rows).x}
    found |= {f"{way} way": model.given(one).from_latents(between(z[0], z[1], len(rows), way)) for way in ways}
    dims = by_use(z)[:3]
    moved = traverse(model, z[0], z.std(0), dims, len(rows), 3.0, one)
    found |= {f"latent {d}": x for d, x in zip(dims.tolist(), moved, strict=True)}
    return list(found), torch.stack([x.cpu() for x in found.values()])

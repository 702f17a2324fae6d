"""The cells of one column as a path of binary splits, and boosted trees that say which way a row goes.

    log p(cell | h) = sum over nodes n on the path to the cell of log sigma(+-(o_n + f_l(h, n)))

A node holds a run of cells and splits it where its mass halves, so a cell of mass m lies about -log2 m splits deep and
a frequent one near the root. o_n is the node's own log-odds, and f_l, shared by the nodes of level l, a sum of
regression trees on the bytes h that tell what is known and the number of the node.

Trees are grown by scikit-learn's histogram grower (Ke et al. 2017), which its public estimators neither start from
given log-odds nor give out as arrays; this is the only place that knows it. They are kept as plain arrays and
evaluated by torch. Gradients and leaves are multiples of ``GRID``, so that float64 adds them without rounding: the
order of a sum, and with it the number of threads or of rows in a pass, changes no bit.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

GRID = 2.0**-20
LARGEST = 8.0  # of a leaf: float32 holds the grid up to here
BYTES = 255  # values of a feature: the grower keeps the last byte for what it takes for missing
WORK = 2**17  # rows times trees that are walked at once
SHARED = 2**20  # bytes that several threads grow a tree on; of fewer, they would wait for one another
CHILD, FEATURE = 32, 0xFFFFFF  # a node of a tree as one number: its left child << CHILD | feature << 8 | byte


def on_grid(v: Tensor) -> Tensor:
    return (v / GRID).round() * GRID


@dataclass(frozen=True)
class Tree:
    """One tree as arrays over its nodes.

    ``node`` packs the left child (the right one follows it), the feature, and the last byte of it that goes left.
    A leaf is its own left child, to which all bytes go.
    """

    node: Tensor  # int64 [V]
    value: Tensor  # float32 [V], of leaves
    depth: int

    def __call__(self, told: Tensor) -> Tensor:
        """Its value [n] at ``told`` uint8 [n, F]."""
        return total(self.node, self.value, self.node.new_zeros(1), torch.tensor([self.depth]), told)


class Column(nn.Module):
    """p(cell | what is known) of one column. Cells are told by their place in the column's order."""

    elastic = ("middle", "child", "odds", "first", "node", "value", "root", "depth", "level")

    middle: Tensor  # [M] the first place on the right side of each node, level after level
    child: Tensor  # [M, 2] the next node, or -1 - the place
    odds: Tensor  # [M] log-odds of the right side before any tree
    first: Tensor  # [L + 1] where each level begins
    node: Tensor  # [V] of all trees, one after the other
    value: Tensor  # [V]
    root: Tensor  # [T] of each tree
    depth: Tensor  # [T]
    level: Tensor  # [T]

    def __init__(self) -> None:
        super().__init__()
        for name in self.elastic:
            kind = {"odds": torch.float64, "value": torch.float32}.get(name, torch.int64)
            self.register_buffer(name, torch.empty((0, 2) if name == "child" else 0, dtype=kind))

    @property
    def levels(self) -> int:
        return len(self.first) - 1

    # -- the splits ---------------------------------------------------------------------------------------

    def split(self, mass: Tensor) -> None:
        """Lay the nodes over places of ``mass`` [K] > 0; there are no trees yet."""
        line = [0.0, *mass.cumsum(0).tolist()]
        middle: list[int] = []
        child: list[list[int]] = []
        odds, first = [], [0]
        level = [(0, len(mass), 0, 0)]  # runs [a, b), and whose child on which side each is
        while level:
            below = []
            for a, b, parent, side in level:
                if child:
                    child[parent][side] = len(middle) if b - a > 1 else -1 - a
                if b - a > 1:
                    half = (line[a] + line[b]) / 2
                    m = min(max(bisect(line, half, a + 1, b), a + 1), b - 1)
                    m -= m - 1 > a and half - line[m - 1] < line[m] - half
                    below += [(a, m, len(middle), 0), (m, b, len(middle), 1)]
                    middle.append(m)
                    child.append([0, 0])
                    odds.append((line[b] - line[m]) / (line[m] - line[a]))
            if below:
                first.append(len(middle))
            level = below
        new = {
            "middle": torch.tensor(middle, dtype=torch.int64),
            "child": torch.tensor(child, dtype=torch.int64).reshape(-1, 2),
            "odds": on_grid(torch.tensor(odds, dtype=torch.float64).log()),
            "first": torch.tensor(first),
        }
        for name in self.elastic:
            old = getattr(self, name)
            setattr(self, name, new.get(name, old[:0]).to(old.device))

    def reach(self, level: int, place: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows of ``place`` [N] pass a node of this level, and which node: two of [n]."""
        rows = torch.arange(len(place), device=place.device)
        here = torch.zeros_like(rows)
        for _ in range(level):
            here = self.child[here, (place[rows] >= self.middle[here]).long()]
            rows, here = rows[here >= 0], here[here >= 0]
        return rows, here

    def walk(
        self, told: Tensor, place: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Down the path of each row of ``told`` [N, F], to a given place or drawing the way: place and log p [N].

        The last byte of ``told`` is not looked at.
        """
        rows = torch.arange(len(told), device=told.device)
        at, nats = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.float64)
        for level in range(self.levels):
            here = at[rows]
            odds = self.odds[here] + self.boost(level, self.tell(level, told[rows], here))
            if place is None:
                u = torch.rand(len(rows), generator=generator, dtype=torch.float64, device=told.device)
                right = u < odds.sigmoid()
            else:
                right = place[rows] >= self.middle[here]
            nats[rows] += logsigmoid(torch.where(right, odds, -odds))
            here = self.child[here, right.long()]
            at[rows] = here
            rows = rows[here >= 0]
        return (-1 - at if self.levels else at), nats

    def tell(self, level: int, told: Tensor, here: Tensor) -> Tensor:
        """``told`` [n, F] with the number of each row's node within its level as the last byte."""
        first, end = self.first[level : level + 2].tolist()
        number = here - first
        told[:, -1] = number if end - first <= BYTES else number * BYTES // (end - first)
        return told

    # -- the trees ----------------------------------------------------------------------------------------

    def boost(self, level: int, told: Tensor) -> Tensor:
        """f_l [n]: the sum of the level's trees at ``told`` [n, F]."""
        own = self.level == level
        return total(self.node, self.value, self.root[own], self.depth[own], told)

    def add(self, level: int, trees: list[Tree]) -> None:
        """Append trees to a level."""
        begin = torch.tensor([0, *(len(t.node) for t in trees)]).cumsum(0)[:-1] + len(self.node)
        more = {
            "node": torch.cat([t.node + (b << CHILD) for t, b in zip(trees, begin.tolist(), strict=True)]),
            "value": torch.cat([t.value for t in trees]),
            "root": begin,
            "depth": torch.tensor([t.depth for t in trees]),
            "level": torch.full((len(trees),), level),
        }
        for name, new in more.items():
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, new.to(old.device)]))


def total(node: Tensor, value: Tensor, root: Tensor, depth: Tensor, told: Tensor) -> Tensor:
    """The sum [n] of the trees at ``root`` [T] at ``told`` uint8 [n, F], in float64 and free of rounding."""
    out = torch.zeros(len(told), dtype=torch.float64, device=told.device)
    if not len(root) or not len(told):
        return out
    size, steps, flat = max(1, WORK // len(root)), int(depth.max()), told.reshape(-1)
    line = torch.arange(len(told), device=told.device).unsqueeze(1) * told.shape[1]
    for i in range(0, len(told), size):
        begin = line[i : i + size]
        at = root.expand(len(begin), -1)
        for _ in range(steps):
            packed = node.take(at)
            byte = flat.take(begin + ((packed >> 8) & FEATURE))
            at = (packed >> CHILD) + (byte > (packed & 0xFF))
        out[i : i + size] = value.take(at).double().sum(1)
    return out


def grow(
    told: Tensor, bins: list[int], gradient: Tensor, hessian: Tensor, leaves: int, smallest: int, shrinkage: float
) -> tuple[Tree | None, Tensor]:
    """One Newton step down a loss as a tree (Friedman 2001), and its values [N] at the rows that it is grown on.

    told uint8 [N, F], each feature's bytes in one piece, below ``bins`` [F]; gradient and hessian [N] of the loss. A
    leaf of G and H takes the step -shrinkage * G / (H + 1). No tree where no split of the rows pays.
    """
    if len(told) < 2 * smallest:
        return None, gradient
    import numpy as np
    from sklearn.ensemble._hist_gradient_boosting.grower import TreeGrower

    grower: Any = TreeGrower(
        told.cpu().numpy(),
        on_grid(gradient).float().cpu().numpy(),
        on_grid(hessian).float().cpu().numpy(),
        max_leaf_nodes=leaves,
        min_samples_leaf=smallest,
        n_bins=max(bins) + 1,
        n_bins_non_missing=np.array(bins, dtype=np.uint32),
        l2_regularization=1.0,
        shrinkage=shrinkage,
        n_threads=torch.get_num_threads() if told.numel() >= SHARED else 1,
    )
    grower.grow()
    if grower.n_nodes == 1:
        return None, gradient
    node, value, deepest = [0] * grower.n_nodes, [0.0] * grower.n_nodes, 0
    leaf = np.empty(len(told), dtype=np.int64)
    todo, free = [(grower.root, 0)], 1
    while todo:
        found, at = todo.pop()
        if found.is_leaf:
            node[at], value[at], deepest = at << CHILD | 0xFF, found.value, max(deepest, found.depth)
            leaf[found.sample_indices] = at
        else:
            split = found.split_info
            node[at] = free << CHILD | int(split.feature_idx) << 8 | int(split.bin_idx)
            todo += [(found.left_child, free), (found.right_child, free + 1)]
            free += 2
    at_leaf = on_grid(torch.tensor(value, dtype=torch.float64, device=told.device)).clamp(-LARGEST, LARGEST)
    tree = Tree(torch.tensor(node, device=told.device), at_leaf.float(), deepest)
    return tree, at_leaf[torch.from_numpy(leaf).to(told.device)]

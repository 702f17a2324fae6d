"""Causal nets: the parameters of a site depend on the sites before it only.

    log p(x) = sum_t log p(x_{o(t)} | x_{o(1)}, ..., x_{o(t-1)})

for an order o of the sites. One pass gives the parameters of every site; sampling visits the sites one
after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.errors import UsageError


def site_order(name: str, sites: int, seed: int = 0) -> list[int]:
    """The order "raster" (0, 1, 2, ...), "reverse" or "random" of ``sites``.

    A saved model is rebuilt from (name, seed), so the shuffle is that of numpy's RandomState, whose
    stream is frozen for ever.
    """
    if name == "raster":
        return list(range(sites))
    if name == "reverse":
        return list(range(sites))[::-1]
    if name == "random":
        return np.random.RandomState(seed).permutation(sites).tolist()
    raise UsageError(f"There is no order {name!r}.", "Use raster, reverse or random.")


class MaskedMlp(nn.Module):
    """MADE (Germain et al. 2015): an MLP whose masks leave only paths from earlier sites to later ones.

    Site of rank r (0 first) feeds hidden units of degree m > r, which feed units of degree >= m, which feed
    sites of rank >= m; direct connections link each site to all later ones (eq. 8 to 10 and 12, 13, with
    degrees counted from the number of sites seen). Degrees are spread evenly and sorted, so that sampling
    can compute every hidden unit once (``walk``). Outputs start at zero.

    Args:
        features: inputs per site.
        params: outputs per site.
        hidden: widths of the hidden layers.
        context: width of a vector h that every unit may see; 0 for none.
        orders: permutations of the sites, order[t] is the site at rank t; the weights are shared by all
            (Germain et al. 2015, section 4.2).
        residual: add the layer before to each hidden layer but the first (all of one width).
        direct: connect inputs to outputs, too. That is sum(features) sum(params) weights.
    """

    def __init__(
        self,
        features: Sequence[int],
        params: Sequence[int],
        hidden: Sequence[int],
        *,
        context: int = 0,
        orders: Sequence[Sequence[int]] | None = None,
        residual: bool = False,
        direct: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.params, self.residual = tuple(features), tuple(params), residual
        sites = self.sites = len(self.features)
        self.inputs = sum(self.features) if sites > 1 else 0  # a single site is seen by none
        if not hidden or min(hidden) < 1:
            raise UsageError(f"Hidden widths are {tuple(hidden)}.", "Give at least one, each 1 or more.")
        if residual and len(set(hidden)) > 1:
            raise UsageError(f"Residual layers have one width, not {tuple(hidden)}.", "Use equal widths.")
        self.orders = [list(range(sites))] if orders is None else [list(o) for o in orders]
        low = 0 if context or sites == 1 else 1  # a unit of degree 0 sees the context only
        # degrees low .. sites-1, evenly and in ascending order
        self.degrees = [low + torch.arange(width) * (sites - low) // width for width in hidden]
        widths, outputs = [self.inputs, *hidden], sum(self.params)
        self.layers = nn.ModuleList(_linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], outputs)
        self.direct = nn.Linear(self.inputs, outputs, bias=False) if direct and self.inputs else None
        self.context = nn.Linear(context, widths[1], bias=False) if context else None
        self.context_out = nn.Linear(context, outputs, bias=False) if context else None
        for layer in (self.out, self.direct, self.context_out):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.out.bias)
        self._masks: tuple[int, list[Tensor]] = (-1, [])

    def forward(self, x: Tensor, h: Tensor | None = None, order: int = 0) -> Tensor:
        """x [N, sum(features)], h [N, context] -> [N, sum(params)], under the order of that index."""
        *_, out, direct = self.masks(order)
        p = F.linear(self._hidden(x, h, order), self.out.weight * out, self.out.bias)
        if self.direct is not None:
            p = p + F.linear(x, self.direct.weight * direct)
        return p if self.context_out is None else p + self.context_out(h)

    def features_first(self, x: Tensor, h: Tensor | None = None, order: int = 0) -> Tensor:
        """The same as [sum(params), N]: the matrix product writes it so at no cost, a transposition would."""
        *_, out, direct = self.masks(order)
        p = torch.addmm(self.out.bias[:, None], self.out.weight * out, self._hidden(x, h, order).T)
        if self.direct is not None:
            p = torch.addmm(p, self.direct.weight * direct, x.T)
        if self.context_out is None:
            return p
        assert h is not None
        return torch.addmm(p, self.context_out.weight, h.T)

    def _hidden(self, x: Tensor, h: Tensor | None, order: int) -> Tensor:
        """The last hidden layer [N, hidden], after its activation."""
        y = x[:, : self.inputs]
        for i, (layer, mask) in enumerate(zip(self._linears(), self.masks(order), strict=False)):
            z = F.linear(y if i == 0 else F.relu(y), layer.weight * mask, layer.bias)
            if i == 0 and self.context is not None:
                z = z + self.context(h)
            y = y + z if i > 0 and self.residual else z
        return F.relu(y)

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def masks(self, order: int = 0) -> list[Tensor]:
        """0/1 masks of the hidden layers, the output and the direct connections; those of one order are kept.

        Where there are no direct connections their mask is empty: it would be as large as they.
        """
        weight = self.out.weight
        known, masks = self._masks
        if known != order or masks[0].device != weight.device or masks[0].dtype != weight.dtype:
            rank = torch.tensor(self.orders[order]).argsort()
            inputs, outputs = (rank.repeat_interleave(torch.tensor(n)) for n in (self.features, self.params))
            inputs, degrees = inputs[: self.inputs], self.degrees
            masks = [degrees[0][:, None] > inputs]
            masks += [b[:, None] >= a for a, b in pairwise(degrees)]
            masks += [outputs[:, None] >= degrees[-1]]
            masks += [outputs[:, None] > inputs if self.direct is not None else weight.new_empty(0)]
            masks = [m.to(weight) for m in masks]
            self._masks = order, masks
        return masks

    def walk(self, n: int, h: Tensor | None = None, order: int = 0) -> IncrementalSampler:
        """Visit the sites in order for n rows given h [n, context]: see ``IncrementalSampler``."""
        return IncrementalSampler(self, n, h, order)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(max(inputs, 1), outputs)
    if not inputs:  # torch warns when it initialises nothing
        layer.in_features, layer.weight = 0, nn.Parameter(torch.empty(outputs, 0))
    return layer


BLOCK = 16  # ranks


class IncrementalSampler:
    """One pass of a ``MaskedMlp`` over n rows, site after site: all steps together cost one forward pass.

        walk = net.walk(n, h)
        for site in walk.order:
            params = walk.params()           # [n, params[site]], given the values so far
            walk.push(embed(draw(params)))   # [n, features[site]]

    When the site of rank r is due, exactly the hidden units of degree r have all their inputs. Units are
    sorted by degree and inputs by rank, so no mask is needed. What earlier blocks of ``BLOCK`` ranks give to the
    units of a block is one product; a step adds what its own block does, where what is not known yet is zero.
    Activations are kept features-first, [units, n].
    """

    @torch.no_grad()
    def __init__(self, net: MaskedMlp, n: int, h: Tensor | None, order: int) -> None:
        self.net, self.order, self.rank = net, net.orders[order], 0
        columns, rows = (_places(sizes, self.order) for sizes in (net.features, net.params))
        columns = columns[: net.inputs]
        features = [net.features[i] for i in self.order] if net.inputs else [0] * net.sites
        units = [torch.bincount(d, minlength=net.sites).tolist() for d in net.degrees]
        self.sizes = [features, *units, [net.params[i] for i in self.order]]  # of each level, per rank
        self.ends = [np.cumsum([0, *size]).tolist() for size in self.sizes]
        self.known = [net.out.weight.new_zeros(end[-1], n) for end in self.ends[:-1]]

        def start(bias: Tensor, context: nn.Linear | None) -> Tensor:
            return bias[:, None] if context is None or h is None else torch.addmm(bias[:, None], context.weight, h.T)

        first, *others = net._linears()
        # of each level above the input: what it starts from, and the levels below that it is a product of
        self.levels = [(start(first.bias, net.context), [(0, first.weight[:, columns])])]
        self.levels += [(start(layer.bias, None), [(i, layer.weight)]) for i, layer in enumerate(others, 1)]
        into = [(len(units), net.out.weight[rows])]
        if net.direct is not None:
            into.append((0, net.direct.weight[rows][:, columns]))
        self.levels.append((start(net.out.bias, net.context_out)[rows], into))

    def _enter(self) -> None:
        """Begin a block of ranks: its units of each level, and the weights within it, split by rank."""
        ranks = slice(self.rank, min(self.rank + BLOCK, self.net.sites))
        spans = [slice(end[ranks.start], end[ranks.stop]) for end in self.ends]
        sizes = [size[ranks] for size in self.sizes]
        self.inputs, *self.active = [
            known[span].split(size) for known, span, size in zip(self.known, spans, sizes, strict=False)
        ]
        self.block: list[tuple[tuple[Tensor, ...], list[tuple[tuple[Tensor, ...], Tensor]]]] = []
        for (total, sources), span, size in zip(self.levels, spans[1:], sizes[1:], strict=True):
            total, within = total[span], []
            for level, weight in sources:
                before, here = self.known[level][: spans[level].start], self.known[level][spans[level]]
                total = torch.addmm(total, weight[span, : len(before)], before)
                within.append((weight[span, spans[level]].split(size), here))
            self.block.append((total.split(size), within))

    def params(self) -> Tensor:
        """The parameters [n, params[site]] of the next site; to be asked for once."""
        return self.params_first().T

    def push(self, features: Tensor) -> None:
        """Take the value of that site, embedded [n, features[site]], and go on to the next."""
        self.push_first(features.T)

    @torch.no_grad()
    def params_first(self) -> Tensor:
        """``params`` as [params[site], n]."""
        r = self.rank % BLOCK
        if r == 0:
            self._enter()

        def summed(totals: tuple[Tensor, ...], within: list[tuple[tuple[Tensor, ...], Tensor]]) -> Tensor:
            for weights, below in within:
                totals[r].addmm_(weights[r], below)
            return totals[r]

        stream: Tensor | None = None
        for level, active in zip(self.block, self.active, strict=False):
            y = summed(*level)
            if stream is not None:
                y += stream
            torch.clamp_min(y, 0, out=active[r])
            stream = y if self.net.residual else None
        return summed(*self.block[-1])

    def push_first(self, features: Tensor) -> None:
        """``push`` of [features[site], n]."""
        if self.net.inputs:
            self.inputs[self.rank % BLOCK].copy_(features)
        self.rank += 1


def _places(sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """Where the numbers of the sites, visited in that order, stand among all of them."""
    starts = np.cumsum([0, *sizes]).tolist()
    return torch.tensor([place for i in order for place in range(starts[i], starts[i + 1])], dtype=torch.int64)


class WindowNet(nn.Module):
    """One MLP shared by all sites: each site sees a window of the sites before it, and who it is.

    A neural n-gram model (Bengio et al. 2003) over any event: the values in the window are embedded,
    concatenated, mapped to a hidden layer together with a learned vector of the site, and through residual
    layers. Outputs start at zero.

    Args:
        features, params: inputs and outputs per site.
        order: the sites in the order in which ``walk`` visits them.
        window: [sites, k] int64, the sites that each site sees, all before it; ``sites`` where there is none.
        hidden, layers: width and number of the hidden layers.
        embedding: width of an embedded value; None: all sites are alike (pixels), so that values are used as
            they are and one output layer serves all sites. Else each site has its own of both.
        context: width of a vector h that all sites see; 0 for none.
    """

    window: Tensor
    inputs: Tensor
    outputs: Tensor

    def __init__(
        self,
        features: Sequence[int],
        params: Sequence[int],
        order: Sequence[int],
        window: Tensor,
        *,
        hidden: int,
        layers: int,
        embedding: int | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.features, self.params, sites = tuple(features), tuple(params), len(window)
        self.order = list(order)
        self.register_buffer("window", window, persistent=False)
        each = self.features[0] if embedding is None else embedding
        f, p = max(self.features), max(self.params)
        # sites side by side [sites, widest], so that all are one batched product
        inputs, outputs = _beside(self.features), _beside(self.params)
        self.register_buffer("inputs", inputs.masked_fill(inputs < 0, sum(self.features)), persistent=False)
        self.register_buffer("outputs", (outputs.flatten() >= 0).nonzero()[:, 0], persistent=False)
        self.embed = None if embedding is None else nn.Parameter(torch.randn(sites, f, each) / f**0.5)
        self.first = nn.Linear(window.shape[1] * each, hidden)
        self.site = nn.Parameter(torch.randn(sites, hidden) / hidden**0.5)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        heads = sites if embedding is not None else 1
        self.out = nn.Parameter(torch.zeros(heads, hidden, p))
        self.bias = nn.Parameter(torch.zeros(heads, p))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """x [N, sum(features)], h [N, context] -> [N, sum(params)]."""
        beside = F.pad(x, (0, 1))[:, self.inputs]  # [N, sites, widest]
        values = beside if self.embed is None else torch.einsum("nsf,sfe->nse", beside, self.embed)
        seen = F.pad(values, (0, 0, 0, 1))[:, self.window].flatten(2)  # [N, sites, k * each]
        y = self._hidden(seen, self.site, None if h is None else h[:, None])
        if len(self.out) == 1:
            return (y @ self.out[0] + self.bias[0]).flatten(1)
        p = torch.einsum("nsh,shp->nsp", y, self.out) + self.bias
        return p.flatten(1)[:, self.outputs]

    def walk(self, n: int, h: Tensor | None = None) -> WindowWalk:
        """Visit the sites in order for n rows given h [n, context]: see ``IncrementalSampler``."""
        return WindowWalk(self, n, h)

    def _hidden(self, seen: Tensor, site: Tensor, h: Tensor | None) -> Tensor:
        y = self.first(seen) + site
        if self.context is not None:
            y = y + self.context(h)
        for layer in self.layers:
            y = y + layer(F.relu(y))
        return F.relu(y)


class WindowWalk:
    """One pass of a ``WindowNet``, site after site; its window is all the state there is."""

    @torch.no_grad()
    def __init__(self, net: WindowNet, n: int, h: Tensor | None) -> None:
        self.net, self.order, self.rank, self.h = net, net.order, 0, h
        each = net.first.in_features // net.window.shape[1]
        self.values = net.site.new_zeros(n, len(net.order) + 1, each)

    @torch.no_grad()
    def params(self) -> Tensor:
        """The parameters [n, params[site]] of the next site."""
        net, i = self.net, self.order[self.rank]
        y = net._hidden(self.values[:, net.window[i]].flatten(1), net.site[i], self.h)
        j = i if len(net.out) > 1 else 0
        return (y @ net.out[j] + net.bias[j])[:, : net.params[i]]

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Take the value of that site, embedded [n, features[site]], and go on to the next."""
        embed, i = self.net.embed, self.order[self.rank]
        self.values[:, i] = features if embed is None else features @ embed[i, : features.shape[1]]
        self.rank += 1


def _beside(sizes: Sequence[int]) -> Tensor:
    """Where each site's numbers stand among all [sites, widest]; -1 beyond its own."""
    size = torch.tensor(sizes)
    first = size.cumsum(0) - size
    k = torch.arange(int(size.max()))
    return torch.where(k < size[:, None], first[:, None] + k, -1)

"""Heads: a distribution per site, from the numbers that a net gives for that site.

A *site* is one entry of an event: a table's column, an image's level. Every head is exact and proper in
raw data space: its probabilities sum to 1 over the site's values, or its density integrates to 1 there.

    site                       head                  parameters per site
    category                   Categorical           one logit per value
    integer, real with a step  AtomsAndLogistics     a logit per atom, one for the rest, 3 per logistic
    real                       MixtureOfGaussians    3 per Gaussian
    nullable                   MissingOr             1 more: missing is one more atom
    level, 2 levels            Bernoulli             a logit
    level, few levels          Categorical           one logit per level
    level, many levels         LevelLogistics        3 per logistic

A head serves one kind of site (``sites`` = ()) or many of them at once (``sites`` = (S,), its buffers have
one row per site), so that a wide table or an image costs a few operations; ``nn.sites`` groups those of a
whole space.

Parameters are offsets: at zero, every head is near the marginal distribution that ``prepare`` saw.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.errors import Unsupported
from pofx.nn.numbers import moments, shares
from pofx.nn.tails import lengthen, normal_log_prob

LOG_SCALE_LIMIT = 7.0  # of a mixture component, in standardised units, either way (Salimans et al. 2017 have the floor)
ATOM_SHARE = 0.005  # a grid value is an atom where at least this share of the rows has it
WIDE, UNSEEN = 0.3, 1e-3  # scale (levels are -1 to 1) of a site's wide components, and their least weights
ERRORS = 100_000  # of prediction, whose size is looked at
FINE_LEVELS = 4096  # beyond, cells are told apart in float64


class Head(nn.Module):
    """A distribution of x given parameters, both over ``sites``.

    Attributes:
        params: P, how many numbers of net output one site takes.
        features: how many numbers embed one value as net input.
    """

    params: int
    features: int

    def embed(self, x: Tensor) -> Tensor:
        """x [..., *sites] in raw units -> net input of order 1 [..., *sites, features]."""
        raise NotImplementedError

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x) in nats [..., *sites] of x [..., *sites], given params [..., *sites, P]."""
        raise NotImplementedError

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """A draw in raw units, float64 [..., *sites]."""
        raise NotImplementedError

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        """The parameters of p ** (1 / temperature) [..., *sites, P]. Raises Unsupported where values are no choices."""
        raise Unsupported("A temperature is of categories, not of numbers.", "Leave it at 1.")

    def typical(self, params: Tensor) -> Tensor:
        """What stands for the distribution, float64 [..., *sites]: a mean of numbers, the likeliest symbol."""
        raise NotImplementedError

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Fill the buffers (location, scale, atoms, base rates) from training values x [N, *sites]."""

    def neutral(self) -> Tensor:
        """An allowed value [*sites], which stands where a value is missing."""
        raise NotImplementedError

    def site(self, j: int | slice) -> Self:
        """The head of site j alone (or of a slice of sites): a view that shares this one's buffers."""
        view = copy.copy(self)
        view._buffers = {k: None if b is None else b[j] for k, b in self._buffers.items()}
        view._modules = {k: m.site(j) if isinstance(m, Head) else m for k, m in self._modules.items()}
        return view


# ------------------------------------------------------------------------------------- discrete


class Bernoulli(Head):
    """x in {0, 1}; the parameter is the log-odds less those of the training data."""

    params, features = 1, 1
    base: Tensor

    def __init__(self, sites: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("base", torch.zeros(sites))

    def embed(self, x: Tensor) -> Tensor:
        return x[..., None].to(torch.get_default_dtype())

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logit = params.squeeze(-1) + self.base
        return F.logsigmoid(logit * (2 * x.to(logit.dtype) - 1))  # fewer passes than x l - softplus(l)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        p = (params[..., 0] + self.base).sigmoid()
        return (uniform(p, generator) < p).double()

    def typical(self, params: Tensor) -> Tensor:
        return (params[..., 0] + self.base > 0).double()

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        share = frequencies(x.flatten() if self.base.ndim == 0 else x, 2, weight)
        self.base.copy_(share[..., 1].log() - share[..., 0].log())

    def neutral(self) -> Tensor:
        return torch.zeros_like(self.base)


class Categorical(Head):
    """x in 0 .. size-1, a softmax over logits.

    Args:
        sizes: the number of values, one int for sites () or one per site; sites of fewer values than the
            largest have logits of minus infinity.
        ordered: values are levels, embedded as one number in [-1, 1] instead of one-hot.
    """

    base: Tensor

    def __init__(self, sizes: int | Sequence[int], ordered: bool = False) -> None:
        super().__init__()
        size = torch.as_tensor(sizes)
        self.params = int(size.max())
        self.ordered = ordered
        self.features = 1 if ordered else self.params
        outside = torch.arange(self.params) >= size[..., None]
        self.register_buffer("base", torch.zeros(outside.shape).masked_fill(outside, -math.inf))

    def embed(self, x: Tensor) -> Tensor:
        if self.ordered:
            return (x[..., None].to(torch.get_default_dtype()) * 2 / max(self.params - 1, 1)) - 1
        return F.one_hot(x.long(), self.params).to(torch.get_default_dtype())

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_p = (params + self.base).log_softmax(-1)
        shape = torch.broadcast_shapes(log_p.shape[:-1], x.shape)
        return log_p.expand(*shape, -1).gather(-1, x.long().expand(shape)[..., None])[..., 0]

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return pick((params + self.base).log_softmax(-1), generator).double()

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return torch.where(self.base.isinf(), params, (params + self.base) / temperature - self.base)

    def typical(self, params: Tensor) -> Tensor:
        logits = params + self.base
        if not self.ordered:
            return logits.argmax(-1).double()
        return (logits.softmax(-1) @ torch.arange(self.params).to(logits)).round().double()

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        share = frequencies(x.flatten() if self.base.ndim == 1 else x, self.params, weight)
        self.base.copy_(torch.where(self.base.isinf(), self.base, share.log()))

    def neutral(self) -> Tensor:
        return self.base.new_zeros(self.base.shape[:-1])


# ---------------------------------------------------------------------------------- real and grid


class Standardised(Head):
    """Common part of the heads of numbers: location and scale of the training data, in float64."""

    location: Tensor
    scale: Tensor

    def __init__(self, components: int, sites: tuple[int, ...]) -> None:
        super().__init__()
        self.components = components
        self.register_buffer("location", torch.zeros(sites, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(sites, dtype=torch.float64))

    def standardise(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Far from the origin float32 has no digits left: subtract in float64, then cast."""
        return ((x.double() - self.location) / self.scale).to(dtype)

    def embed(self, x: Tensor) -> Tensor:
        # asinh is the identity near 0 and a logarithm in the tails: an outlier does not flood the net
        return self.standardise(x, torch.get_default_dtype()).asinh()[..., None]

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        mean, std = moments(x.double(), weight)
        self.location.copy_(mean)
        self.scale.copy_(std)

    def neutral(self) -> Tensor:
        return self.location


class MixtureOfGaussians(Standardised):
    """A density on R: sum_m w_m N(y; mu_m, s_m^2) of y = (x - location) / scale, less log scale.

    Every N has the tails of ``nn.tails``: a narrow component does not forbid what lies far from it.
    """

    def __init__(self, components: int = 8, sites: tuple[int, ...] = ()) -> None:
        super().__init__(components, sites)
        self.params, self.features = 3 * components, 1

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_w, mean, log_s = mixture(params, self.components)
        z = (self.standardise(x, params.dtype)[..., None] - mean) * (-log_s).exp()
        log_p = (log_w - log_s + normal_log_prob(z)).logsumexp(-1)
        return log_p - self.scale.log().to(log_p.dtype)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_s = one_component(*mixture(params, self.components), generator)
        noise = lengthen(torch.randn(mean.shape, generator=generator, device=generator.device).to(mean))
        return (mean + log_s.exp() * noise).double() * self.scale + self.location

    def typical(self, params: Tensor) -> Tensor:
        return _mean(*mixture(params, self.components)).double() * self.scale + self.location


class AtomsAndLogistics(Standardised):
    """A probability on the grid origin + step Z: point atoms plus a mixture of discretised logistics.

        P(x) = sum_a pi_a 1[x = a] + pi_0 sum_m w_m (F_m(x + step/2) - F_m(x - step/2))

    The logistics (Salimans et al. 2017, eq. 2, here without edges) telescope to 1 over all of Z, and the
    atoms are the values that make up at least 0.5% of the training rows: together they fit a count with
    many zeros, round numbers, or a column of few values, and still give every integer a probability.

    Args:
        step, origin: of each site's grid (floats for sites (), else one per site).
        slots: the most atoms that a site may have.
    """

    step: Tensor
    origin: Tensor
    atoms: Tensor
    base: Tensor

    def __init__(
        self, step: float | Sequence[float], origin: float | Sequence[float], components: int = 8, slots: int = 64
    ) -> None:
        grid, start = (torch.as_tensor(v, dtype=torch.float64) for v in (step, origin))
        super().__init__(components, tuple(grid.shape))
        self.slots = slots
        self.params, self.features = slots + 1 + 3 * components, slots + 1
        self.register_buffer("step", grid, persistent=False)
        self.register_buffer("origin", start, persistent=False)
        # multiples of the step, so that equality is exact; NaN: an unused slot
        self.register_buffer("atoms", torch.full((*grid.shape, slots), math.nan, dtype=torch.float64))
        base = torch.full((*grid.shape, slots + 1), -math.inf)
        base[..., slots] = 0.0
        self.register_buffer("base", base)

    def embed(self, x: Tensor) -> Tensor:
        y = super().embed(x)
        return torch.cat([y, self._matches(x).to(y.dtype)], -1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_pi = (params[..., : self.slots + 1] + self.base).log_softmax(-1)
        log_w, mean, log_s = mixture(params[..., self.slots + 1 :], self.components)
        z = (self.standardise(x, params.dtype)[..., None] - mean) * (-log_s).exp()
        cell = (self.step / self.scale).to(params.dtype)[..., None] * (-log_s).exp()
        smooth = log_pi[..., self.slots] + (log_w + log_logistic_cell(z, cell)).logsumexp(-1)
        atom = log_pi[..., : self.slots].masked_fill(~self._matches(x), -math.inf)
        return torch.cat([atom, smooth[..., None]], -1).logsumexp(-1)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        log_pi = (params[..., : self.slots + 1] + self.base).log_softmax(-1)
        y = logistic_sample(*mixture(params[..., self.slots + 1 :], self.components), generator)
        return self._on_grid(pick(log_pi, generator), y)

    def typical(self, params: Tensor) -> Tensor:
        slot = (params[..., : self.slots + 1] + self.base).argmax(-1)
        return self._on_grid(slot, _mean(*mixture(params[..., self.slots + 1 :], self.components)))

    def _on_grid(self, slot: Tensor, y: Tensor) -> Tensor:
        """The atom of each slot [...], or the point of the grid that is next to y [...] for the last."""
        smooth = ((y.double() * self.scale + self.location - self.origin) / self.step).round()
        atoms = self.atoms.expand(*slot.shape, self.slots)
        atom = atoms.gather(-1, slot.clamp(max=self.slots - 1)[..., None])[..., 0]
        return self.origin + self.step * torch.where(slot == self.slots, smooth, atom)

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        columns = self.atoms.ndim > 1
        k = ((x.double() - self.origin) / self.step).round()
        k = k if columns else k.reshape(-1, 1)
        w = (torch.ones(len(x)) if weight is None else weight).to(k)
        atoms, base = self.atoms.view(-1, self.slots), self.base.view(-1, self.slots + 1)
        rest = torch.full_like(k, math.nan)
        for j in range(k.shape[1]):
            present = ~k[:, j].isnan()
            if not present.any():
                continue
            values, share, index = shares(k[present, j], w[present])
            top = share.topk(min(self.slots, len(share)))
            frequent = top.values >= ATOM_SHARE
            chosen, size = top.indices[frequent], int(frequent.sum())
            atoms[j, :size] = values[chosen]
            atoms[j, size:] = math.nan
            base[j] = -math.inf
            base[j, :size] = share[chosen].log()
            # never less than one row's share: values that were not seen have to come from somewhere
            left = max(1 - float(share[chosen].sum()), 1 / (len(x) + 1))
            base[j, self.slots] = math.log(left)
            other = torch.ones(len(values), dtype=torch.bool, device=x.device)
            other[chosen] = False
            # the logistics stand where the rest lies; a column of atoms only leaves them around the atoms
            keep = other[index] if bool(other.any()) else torch.ones_like(index, dtype=torch.bool)
            place = present.nonzero()[:, 0][keep]
            rest[place, j] = x.double().reshape(len(x), -1)[place, j]
        super().prepare(rest if columns else rest[:, 0], weight)
        self.scale.copy_((self.scale.square() + self.step.square() / 12).sqrt())  # no narrower than a cell

    def _matches(self, x: Tensor) -> Tensor:
        k = ((x.double() - self.origin) / self.step).round()
        return k[..., None] == self.atoms


class LevelLogistics(Head):
    """A probability on levels 0 .. levels-1: logistics whose edge cells take the tails.

    Salimans et al. 2017 (PixelCNN++), eq. 2, on levels scaled to [-1, 1]. With three components or more,
    zero parameters are near each site's marginal: a narrow component at the commonest level, wide ones at equal
    shares of the rest. Means are moved in units of their component's scale.

    With ``errors`` the levels are errors of a prediction (``nn.predict``), zero in the middle: all components start
    there, as wide as errors are at equal shares of them, and values enter the net in units of their spread.
    """

    log_weight: Tensor
    mean: Tensor
    log_scale: Tensor
    spread: Tensor

    def __init__(self, levels: int, components: int = 8, sites: tuple[int, ...] = (), errors: bool = False) -> None:
        super().__init__()
        self.levels, self.components, self.errors = levels, components, errors
        self.middle = 2 * (levels // 2) / (levels - 1) - 1  # the level of no error, on [-1, 1]
        # cells of finer levels are narrower
        self.limit = LOG_SCALE_LIMIT + max(0.0, math.log((levels - 1) / 255))
        self.params, self.features = 3 * components, 1
        spread = torch.linspace(-1.5, 1.5, components) if components > 1 else torch.zeros(1)
        self.register_buffer("log_weight", torch.zeros(*sites, components))
        self.register_buffer("mean", spread.repeat(*sites, 1))
        self.register_buffer("log_scale", torch.zeros(*sites, components))
        if errors:
            self.register_buffer("spread", torch.ones(sites))

    def embed(self, x: Tensor) -> Tensor:
        y = self._scaled(x.to(torch.get_default_dtype()))
        if self.errors:
            y = ((y - self.middle) / self.spread).asinh()
        return y[..., None]

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return (self._mixture(params)[0] + self.component_log_prob(params, x)).logsumexp(-1)

    def component_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log P_m(x) [..., *sites, M] of each component, whatever its weight."""
        if self.levels > FINE_LEVELS:  # float32 has too few digits within a cell
            params = params.double()
        _, mean, log_s = self._mixture(params)
        y, per_scale = self._scaled(x.to(params.dtype))[..., None], (-log_s).exp()
        z, cell = (y - mean) * per_scale, 2 / (self.levels - 1) * per_scale
        inner = log_logistic_cell(z, cell)
        low, high = -F.softplus(-(z + cell / 2)), -F.softplus(z - cell / 2)
        edge = x[..., None]
        return torch.where(edge == 0, low, torch.where(edge == self.levels - 1, high, inner))

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        y = logistic_sample(*self._mixture(params), generator)
        return self._level(y)

    def typical(self, params: Tensor) -> Tensor:
        return self._level(_mean(*self._mixture(params)))

    def _level(self, y: Tensor) -> Tensor:
        return ((y.double() + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        x = x.reshape(-1, 1) if self.mean.ndim == 1 else x
        if self.errors:
            self._fit_errors(x)
            return
        if self.components < 3:
            return
        for i in range(0, x.shape[1], 4096):  # sites, as many as memory has room for all levels of
            found = self._marginal(frequencies(x[:, i : i + 4096], self.levels, weight, 0.0))
            for own, new in zip((self.log_weight, self.mean, self.log_scale), found, strict=True):
                own.view(-1, self.components)[i : i + 4096] = new

    def _fit_errors(self, x: Tensor) -> None:
        """Scales s_m from the errors x [N, S]: half of a logistic's mass lies within log(3) s of its middle."""
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:ERRORS]  # rows may be sorted
        size = (self._scaled(x[some].double()) - self.middle).abs()
        shares = (torch.arange(self.components, dtype=torch.float64) + 0.5) / self.components
        scale = (size.quantile(shares.to(size), 0) / math.log(3)).clamp(min=0.5 / (self.levels - 1))  # [M, S]
        self.mean.fill_(self.middle)
        self.log_scale.copy_(scale.log().T.reshape(self.log_scale.shape))
        middle = size.quantile(0.5, 0) / math.log(3)
        self.spread.copy_(middle.clamp(min=1 / (self.levels - 1)).reshape(self.spread.shape))

    def _marginal(self, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means, log-scales [S, M] of a mixture near shares of levels [S, levels]."""
        level, n = self._scaled(torch.arange(self.levels).to(share)), self.components - 1
        top, mode = share.max(1, keepdim=True)
        share = share.scatter(1, mode, 0.0)
        rest = share.sum(1, keepdim=True)
        share = (share / rest.clamp_min(1e-12))[:, None]
        upper, edges = share.cumsum(2), torch.linspace(0, 1, n + 1).to(share)[:, None]
        mass = (upper.minimum(edges[1:]) - (upper - share).maximum(edges[:-1])).clamp_min(0)  # [S, n, levels]
        centre = (mass * n) @ level
        weight = torch.cat([top, (rest / n).clamp_min(UNSEEN).expand(-1, n)], 1)
        narrow = torch.full_like(top, 0.25 / (self.levels - 1))  # an eighth of a cell: it holds 96% of it
        scale = torch.cat([narrow, torch.full_like(centre, WIDE)], 1)
        return weight.log(), torch.cat([level[mode], centre], 1), scale.log()

    def neutral(self) -> Tensor:
        return torch.zeros(self.mean.shape[:-1])

    def _scaled(self, x: Tensor) -> Tensor:
        return x * (2 / (self.levels - 1)) - 1

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means, log-scales [..., M]."""
        logits, mean, log_s = params.unflatten(-1, (3, self.components)).unbind(-2)
        log_s = (self.log_scale + log_s).clamp(-self.limit, LOG_SCALE_LIMIT)
        return (self.log_weight + logits).log_softmax(-1), self.mean + self.log_scale.exp() * mean, log_s


class MissingOr(Head):
    """Missing (NaN) with probability sigma(l), else a value from ``head``: an atom beside a distribution."""

    base: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.params, self.features = head.params + 1, head.features + 1
        self.register_buffer("base", torch.zeros(head.neutral().shape))

    def embed(self, x: Tensor) -> Tensor:
        missing = x.isnan()[..., None]
        value = self.head.embed(self._filled(x))
        return torch.cat([missing.to(value.dtype), value.masked_fill(missing, 0.0)], -1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logit = params[..., 0] + self.base
        present = F.logsigmoid(-logit) + self.head.log_prob(params[..., 1:], self._filled(x))
        return torch.where(x.isnan(), F.logsigmoid(logit), present)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        p = (params[..., 0] + self.base).sigmoid()
        missing = uniform(p, generator) < p
        return self.head.sample(params[..., 1:], generator).masked_fill(missing, math.nan)

    def typical(self, params: Tensor) -> Tensor:
        return self.head.typical(params[..., 1:]).masked_fill(params[..., 0] + self.base > 0, math.nan)

    def prepare(self, x: Tensor, weight: Tensor | None = None) -> None:
        share = frequencies(x.isnan().flatten() if self.base.ndim == 0 else x.isnan(), 2, weight)
        self.base.copy_(share[..., 1].log() - share[..., 0].log())
        self.head.prepare(x, weight)

    def neutral(self) -> Tensor:
        return self.head.neutral()

    def _filled(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), self.head.neutral().to(x), x)


# ---------------------------------------------------------------------------------- shared mathematics


def log_logistic_cell(z: Tensor, width: Tensor) -> Tensor:
    """log(sigma(z + width/2) - sigma(z - width/2)), without cancellation in either tail.

    With a > b: sigma(a) - sigma(b) = (1 - e^(b-a)) sigma(a) sigma(-b).
    """
    return torch.log(-torch.expm1(-width)) - F.softplus(-(z + width / 2)) - F.softplus(z - width / 2)


def mixture(params: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights, means, log-scales [..., M] of a mixture on standardised values; at zero they spread out."""
    logits, mean, log_s = params.unflatten(-1, (3, components)).unbind(-2)
    if components > 1:
        mean = mean + torch.linspace(-1.5, 1.5, components, dtype=mean.dtype, device=mean.device)
    return logits.log_softmax(-1), mean, log_s.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)


def one_component(log_w: Tensor, mean: Tensor, log_s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean and log-scale [...] of a component drawn by its weight, of [..., M]."""
    m = pick(log_w, generator)[..., None]
    return mean.gather(-1, m)[..., 0], log_s.gather(-1, m)[..., 0]


def _mean(log_w: Tensor, mean: Tensor, log_s: Tensor) -> Tensor:
    """Of a mixture [..., M] of symmetric components: [...]."""
    return (log_w.exp() * mean).sum(-1)


def logistic_sample(log_w: Tensor, mean: Tensor, log_s: Tensor, generator: torch.Generator) -> Tensor:
    """A draw [...] of a mixture of logistics [..., M]."""
    mean, log_s = one_component(log_w, mean, log_s, generator)
    u = uniform(mean, generator).clamp(1e-7, 1 - 1e-7)
    return mean + log_s.exp() * torch.logit(u)


def pick(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """An index [...] with probability proportional to exp(log_weights [..., K]): the first of K exponential clocks."""
    clock = torch.empty(log_weights.shape, dtype=log_weights.dtype, device=generator.device)
    clock = clock.exponential_(generator=generator).to(log_weights.device)
    return (log_weights - clock.log()).argmax(-1)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like)


def frequencies(x: Tensor, size: int, weight: Tensor | None, smoothing: float = 0.5) -> Tensor:
    """Shares [*sites, size] of the values 0 .. size-1 in x [N, *sites], ``smoothing`` rows added to each; not NaN."""
    w = (torch.ones(len(x)) if weight is None else weight.float()).to(x.device)
    flat = x.reshape(len(x), -1)
    sites = flat.shape[1]
    counts = torch.full((sites, size), smoothing, device=x.device)
    if size < min(sites, 32):  # few passes over all, or one over each site
        for value in range(size):
            counts[:, value] += w @ (flat == value).to(w)
    else:
        for j in range(sites):
            known = slice(None) if not flat.is_floating_point() else ~flat[:, j].isnan()
            counts[j] += torch.bincount(flat[known, j].long(), w[known], minlength=size)
    return (counts / counts.sum(-1, keepdim=True)).reshape(*x.shape[1:], size)

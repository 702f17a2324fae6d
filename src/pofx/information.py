"""Information theory in nats: surprise, entropy, cross-entropy, KL both ways, Jensen-Shannon, mutual information.

For torch.distributions and for pofx models alike, by the strongest way there is: closed form where
torch.distributions knows one, the exact sum where the values can be enumerated, Monte Carlo with its
standard error otherwise. A result (``core.likelihood.Number``, with nats per batch entry) says in its note
which, and what it is: -log p of a lower bound on log p is an *upper* bound, so H(p, q) of a q with an ELBO is
an UpperBound (Cover & Thomas, 2006, ch. 2 and 8).

Every function works per batch entry: two Normals of batch shape [3] have three divergences.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pofx.core.conditional import Conditional
from pofx.core.errors import Incomparable, UsageError
from pofx.core.likelihood import Estimate, Exact, Likelihood, Number, number
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import given_or_fresh
from pofx.core.space import Space
from pofx.spaces import Category

Density: TypeAlias = Distribution | Conditional | Model

DRAWS = 4096  # the default number of Monte Carlo draws
ENUMERABLE = 2**16  # a space with at most this many values is summed over


def surprise(p: Density, x: Tensor, *, generator: torch.Generator | None = None) -> Number[Tensor]:
    """-log p(x), for x [*S, *batch, *E]; nats [*S, *batch]. Shannon's self-information.

    Example:
        >>> import torch
        >>> coin = torch.distributions.Bernoulli(torch.tensor(0.25))
        >>> surprise(coin, torch.ones(())).bits  # one in four is two bits
        tensor(2.)
    """
    found = -number(_log_prob(_density(p), x, given_or_fresh(generator)))
    return dataclasses.replace(found, note=found.note or ("Monte Carlo" if found.draws else "closed form"))


def entropy(p: Density, *, draws: int = DRAWS, generator: torch.Generator | None = None) -> Number[Tensor]:
    """H(p) = -E_p[log p(x)]. Differential entropy where p is a density: it may be negative.

    Differentiable where it is closed or summed, and where p has ``rsample``.

    Example:
        >>> import torch
        >>> coin = torch.distributions.Bernoulli(torch.tensor(0.5))
        >>> print(entropy(coin))
        = 0.693147 nats (closed form)
    """
    return _expectation(-1, _density(p), None, draws, generator)


def cross_entropy(
    p: Density, q: Density, *, draws: int = DRAWS, generator: torch.Generator | None = None
) -> Number[Tensor]:
    """H(p, q) = -E_p[log q(x)] = H(p) + KL(p || q): the mean code length of q's code for draws of p.

    Example:
        >>> import torch
        >>> p, q = (torch.distributions.Bernoulli(torch.tensor(v)) for v in (0.5, 0.25))
        >>> bool(cross_entropy(p, q).nats > entropy(p).nats)
        True
    """
    return _expectation(0, *_pair(p, q), draws, generator)


def kl(p: Density, q: Density, *, draws: int = DRAWS, generator: torch.Generator | None = None) -> Number[Tensor]:
    """KL(p || q) = E_p[log p(x) - log q(x)], at least 0, and infinite where q misses mass of p.

    With p the data and q the model this is the *forward* direction (what maximum likelihood lowers): q
    pays without limit for values of p that it misses, so the best q *covers* all modes of p. The other
    direction is ``reverse_kl``. Differentiable in q (of a model, in parameters that ask for it); in p where closed,
    summed, or p has ``rsample``.

    Example:
        >>> import torch
        >>> narrow, wide = (torch.distributions.Normal(torch.zeros(()), torch.tensor(s)) for s in (1.0, 2.0))
        >>> print(kl(narrow, wide))
        = 0.318147 nats (closed form)
    """
    return _expectation(1, *_pair(p, q), draws, generator)


def reverse_kl(
    p: Density, q: Density, *, draws: int = DRAWS, generator: torch.Generator | None = None
) -> Number[Tensor]:
    """KL(q || p) = E_q[log q(x) - log p(x)]: ``kl`` with its arguments swapped.

    The direction of variational inference: q pays for mass where p has none, and nothing for modes of p
    that it leaves out, so the best q of a family too small for p *seeks* one mode.

    Example:
        >>> import torch
        >>> narrow, wide = (torch.distributions.Normal(torch.zeros(()), torch.tensor(s)) for s in (1.0, 2.0))
        >>> print(reverse_kl(narrow, wide))  # KL(wide || narrow)
        = 0.806853 nats (closed form)
    """
    return kl(q, p, draws=draws, generator=generator)


def jensen_shannon(
    p: Density, q: Density, *, draws: int = DRAWS, generator: torch.Generator | None = None
) -> Number[Tensor]:
    """JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2: symmetric, from 0 to log 2 (Lin, 1991).

    It is the mutual information of x with the fair coin that says whether p or q drew x.

    Example:
        >>> import torch
        >>> heads, tails = (torch.distributions.Categorical(torch.tensor(p)) for p in ([1.0, 0.0], [0.0, 1.0]))
        >>> round(jensen_shannon(heads, tails).bits.item(), 4)  # one draw tells them apart: a bit
        1.0
    """
    return mutual_information([p, q], draws=draws, generator=generator)


@torch.no_grad()
def mutual_information(
    channel: Conditional | Sequence[Density],
    weight: Tensor | None = None,
    *,
    draws: int = DRAWS,
    generator: torch.Generator | None = None,
) -> Number[Tensor]:
    """I(x; k) = sum_k w_k E_{p_k}[log p_k(x) - log sum_j w_j p_j(x)] of an input k and an output x ~ p_k.

    For two random vectors use the identity I(x; y) = KL(p(x, y) || p(x) p(y)) and call ``kl``.

    Args:
        channel: p(x | k), one density per input; or ``model.given(c)`` with one context per input, c [K, *Ec].
        weight: [K] probabilities of the inputs; uniform where None.
        draws: Monte Carlo draws per input, where the values cannot be summed over.

    Example:
        >>> import torch
        >>> # a binary symmetric channel that flips one symbol in ten carries 1 - H(0.1) bits
        >>> sent = [torch.distributions.Categorical(torch.tensor(p)) for p in ([0.9, 0.1], [0.1, 0.9])]
        >>> mutual_information(sent).bits.item()
        0.531...
    """
    parts = [_density(p) for p in _inputs(channel)]
    w = torch.full((len(parts),), 1 / len(parts), dtype=torch.float64) if weight is None else weight.double()
    if w.shape != (len(parts),) or bool((w < 0).any()) or not math.isclose(w.sum().item(), 1, rel_tol=1e-6):
        raise UsageError(f"{len(parts)} inputs need as many probabilities that sum to 1, not {w.tolist()}.")
    for p in parts[1:]:
        _pair(parts[0], p)
    gen, per_input = given_or_fresh(generator), []
    for k, p in enumerate(parts):
        at = _points(p, draws, gen)
        logs = [number(_log_prob(q, at.x, gen)) for q in parts]
        if reason := next((log for log in logs if not log.available), None):
            return reason
        nats = torch.stack([log.nats for log in logs])  # [K, n, *batch]
        joint = nats + w.log().to(nats).view(-1, *[1] * (nats.ndim - 1))
        moves = dict[str, Tensor]()  # by the derivative of the ratio: what all densities share cancels
        for j, (log, posterior) in enumerate(zip(logs, joint.softmax(0), strict=True)):
            for source, move in log.shared.items():
                moves[source] = moves.get(source, 0.0) + (float(j == k) - posterior) * move
        # a bound enters the ratio with both signs
        kind, none = Exact if all(log.kind is Exact for log in logs) else Estimate, torch.zeros_like(nats[k])
        per_input.append(_mean(at, Number(kind, nats[k] - joint.logsumexp(0), none, none, moves)))
    total = reduce(operator.add, (r * a for a, r in zip(w.tolist(), per_input, strict=True)))
    return dataclasses.replace(total, note=next(r.note for r in per_input if r.draws == total.draws))


# -- where the expectation is taken --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Points:
    """x [n, *batch, *E]: every value with its probability ``weight`` [n, *batch], or draws (weight None)."""

    x: Tensor
    weight: Tensor | None
    reparameterised: bool

    def log_prob(self, p: Density, generator: torch.Generator) -> Likelihood:
        """log p of the density that drew the points.

        Without reparameterisation its gradient would miss the term by the score of p, so there is none.
        """
        with contextlib.nullcontext() if self.weight is not None or self.reparameterised else torch.no_grad():
            return _log_prob(p, self.x, generator)


def _points(p: Distribution | Conditional, draws: int, generator: torch.Generator) -> _Points:
    """All values of p with their probabilities where these are enumerable and exact, else draws."""
    if (values := _support(p)) is not None:
        lik = _log_prob(p, values, generator)
        if isinstance(lik, Exact):
            return _Points(values, lik.nats.exp(), False)
    if draws < 2:
        raise UsageError(f"{draws} draws have no standard error.", "Use at least 2.")
    if isinstance(p, Conditional):
        return _Points(p.sample(draws, generator=generator), None, False)
    with _seeded(generator):
        return _Points(p.rsample((draws,)) if p.has_rsample else p.sample((draws,)), None, p.has_rsample)


def _expectation(
    own: int,
    p: Distribution | Conditional,
    q: Distribution | Conditional | None,
    draws: int,
    generator: torch.Generator | None,
) -> Number[Tensor]:
    """E_p[own log p(x) - log q(x)] (without q the first term alone), of the kind that the terms allow."""
    if isinstance(p, Distribution) and isinstance(q, Distribution | None):
        with contextlib.suppress(NotImplementedError):
            value = p.entropy() if q is None else kl_divergence(p, q) if own else p.entropy() + kl_divergence(p, q)
            none = torch.zeros_like(value).detach()
            return Number(Exact, value, none, none, note="closed form")
    points = _points(p, draws, gen := given_or_fresh(generator))
    terms = [number(points.log_prob(p, gen)) * own] if own else []
    terms += [] if q is None else [-number(_log_prob(q, points.x, gen))]
    total = reduce(operator.add, terms)
    return _mean(points, total) if total.available else total


def _mean(points: _Points, f: Number[Tensor]) -> Number[Tensor]:
    """sum_x w(x) f(x) with the errors of f, or the mean of f over draws with its standard error."""
    n, w = len(f.nats), points.weight
    if w is not None:

        def total(t: Tensor) -> Tensor:
            return torch.where(w > 0, w * t, 0.0).sum(0)  # 0 log 0 = 0

        assert f.mc_se is not None
        error = torch.where(w > 0, w * f.mc_se, 0.0).square().sum(0).sqrt().detach()
        shared = {source: total(move) for source, move in f.shared.items()}
        return Number(f.kind, total(f.nats), error, error, shared, note=f"sum over {n} values")
    value = f.nats.mean(0)
    # one draw that q rules out settles it: an infinite mean has no Monte Carlo error
    error = torch.where(value.isinf(), 0.0, (f.nats.var(0) / n).sqrt()).detach()
    kind, shared = Estimate if f.kind is Exact else f.kind, {source: move.mean(0) for source, move in f.shared.items()}
    return Number(kind, value, error, error, shared, draws=n, note=f"Monte Carlo, {n} draws")


def _support(p: Distribution | Conditional) -> Tensor | None:
    """Every value of p [n, *batch, *E], or None where they are too many or not enumerable."""
    if isinstance(p, Distribution):
        with contextlib.suppress(NotImplementedError):
            if p.has_enumerate_support and len(support := p.enumerate_support()) <= ENUMERABLE:
                return support
        return None
    values = _values(p.model.space)
    if values is None:
        return None
    event = p.model.space.event_shape
    flat = values.reshape(len(values), *[1] * len(p.batch_shape), *event)
    return flat.expand(len(values), *p.batch_shape, *event)


def _values(space: Space) -> Tensor | None:
    """Every value of a space [n, *E], or None where it has more than ``ENUMERABLE``."""
    if space.fill is not None or not (space.symbols or space.columns):
        return None
    if space.symbols:
        sizes = [[float(v) for v in range(space.symbols)]] * space.dims
    elif all(isinstance(c, Category) for c in space.columns):
        sizes = [[float(v) for v in range(len(c.values))] + [math.nan] * c.nullable for c in space.columns]
    else:
        return None
    if math.prod(len(s) for s in sizes) > ENUMERABLE:
        return None
    rows = torch.tensor(list(itertools.product(*sizes)), dtype=torch.float64)
    return rows.to(space.dtype).reshape(-1, *space.event_shape)


# -- densities of both worlds --------------------------------------------------------------------------


def _density(p: Density) -> Distribution | Conditional:
    return p.given() if isinstance(p, Model) else p


def _inputs(channel: Conditional | Sequence[Density]) -> Sequence[Density]:
    if not isinstance(channel, Conditional):
        return channel
    if channel.c is None or len(channel.batch_shape) != 1:
        raise UsageError(
            f"A channel needs one context per input; this one has batch shape {channel.batch_shape}.",
            "Call model.given(c) with c [K, *Ec].",
        )
    return [dataclasses.replace(channel, c=c) for c in channel.c]


def _pair(p: Density, q: Density) -> tuple[Distribution | Conditional, Distribution | Conditional]:
    p, q = _density(p), _density(q)
    if isinstance(p, Conditional) and isinstance(q, Conditional) and p.model.space.measure != q.model.space.measure:
        raise Incomparable(
            f"Measures differ: {p.model.space.measure} against {q.model.space.measure}.",
            "Fit both models on one loaded data set.",
        )
    return p, q


def _log_prob(p: Density, x: Tensor, generator: torch.Generator) -> Likelihood:
    """log p(x); a torch distribution is -inf outside its support instead of raising."""
    if not isinstance(p, Distribution):
        return p.log_prob(x, generator=generator)
    assert p.support is not None
    inside = p.support.check(x)
    if bool(inside.all()):
        return Exact(p.log_prob(x), Measure(()))
    with _seeded(generator):
        legal = p.sample()  # stands in for the values outside, whose result is replaced
    keep = inside.reshape(*inside.shape, *[1] * len(p.event_shape))
    return Exact(torch.where(inside, p.log_prob(torch.where(keep, x, legal)), -math.inf), Measure(()))


@contextlib.contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """torch.distributions draws from the global generator only: lend it a seed, then put its state back."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

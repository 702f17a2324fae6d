"""Restricted Boltzmann machines: two layers of binary units, each independent given the other.

    p(v, h) = exp(b'v + a'h + v'W h) / Z,     -F(v) = log sum_h exp(...) = b'v + sum_j softplus(a_j + (v'W)_j)

(Smolensky 1986; Hinton 2002). A value of a column of K > 2 values is a softmax unit of K - 1 numbers, the first value
being all zeros (Salakhutdinov, Mnih & Hinton 2007, eq. 1), so a binary column is one binary unit. Given a context e the
biases are b + B e and a + A e (Taylor et al. 2007, eq. 2 and 3).

log Z is a sum over the states of the smaller layer, where that is small. Else annealing starts from the machine of
W = 0, a = 0 and visible biases b_0 of the data's frequencies (Salakhutdinov & Murray 2008, section 4.1):

    log f(v; beta) = ((1 - beta) b_0 + beta b)'v + sum_j softplus(beta (a_j + (v'W)_j)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent
from torch.nn import functional as F

from pofx.codecs.columns import as_event
from pofx.core.abilities import Encodes
from pofx.core.family import serving
from pofx.core.learner import Learner, Recipe
from pofx.core.likelihood import Exact, Likelihood
from pofx.core.noise import RowNoise
from pofx.core.requests import ExactLikelihood, GibbsChains, PartitionAis, Request, ReversePartitionAis, Sampler
from pofx.core.space import Space, free_length
from pofx.families.contrastive import ContrastiveLearner, ContrastiveOptions
from pofx.families.energy import EnergyBased, context_keys, digest
from pofx.mcmc.ais import Kernels
from pofx.mcmc.kernels import Gibbs
from pofx.nn.encoders import Encoded, no_encoder
from pofx.spaces import Category

SUMMED = 20  # units of a layer whose states are summed over at most
SUMMED_EACH = 12  # the same where each row may have a context, and so a log Z, of its own
BLOCK = 2**22  # numbers of units that are summed over at once


@dataclass(frozen=True)
class RbmConfig(ContrastiveOptions):
    """Options of an RBM.

    Attributes:
        hidden: hidden units.
        objective: of chains that are kept ("pcd", Tieleman 2008) or start at the data ("cd", Hinton 2002).
    """

    hidden: int = 256
    objective: Literal["pcd", "cd"] = "pcd"
    steps: int = 5
    buffer: int = 100
    restart: float = 0.0


class Rbm(EnergyBased, Encodes):
    name: ClassVar[str] = "rbm"
    summary: ClassVar[str] = "binary data and binary hidden units, each layer independent given the other"
    taxonomy: ClassVar[str] = "explicit density / approximate / energy-based"
    paper: ClassVar[str] = "Smolensky 1986; Hinton 2002; Tieleman 2008; Salakhutdinov & Murray 2008"
    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood, PartitionAis, ReversePartitionAis)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (GibbsChains,)
    Config = RbmConfig
    config: RbmConfig
    rate: Tensor
    used: Tensor

    def __init__(self, config: RbmConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.sizes = sizes_of(space)
        used = torch.arange(1, max(self.sizes))[None] < torch.tensor(self.sizes)[:, None]
        self.register_buffer("used", used, persistent=False)  # [variables, most values - 1]
        self.units = int(used.sum())
        self.weight = nn.Parameter(torch.empty(self.units, config.hidden))
        self.visible = nn.Parameter(torch.zeros(self.units))
        self.hidden = nn.Parameter(torch.zeros(config.hidden))
        self.told = nn.Linear(self.known, self.units + config.hidden, bias=False) if self.known else None
        self.register_buffer("rate", torch.zeros(self.units))  # visible biases b_0 of the frequencies alone
        nn.init.normal_(self.weight, std=0.01)  # Hinton 2012, section 8
        if self.told is not None:
            nn.init.zeros_(self.told.weight)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: RbmConfig) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if space.values:
            return "a label has nothing that hidden units could bind. Fit a classifier or a histogram."
        if not sizes_of(space):
            return "its units are binary: it takes columns of a few values, and images of two levels. Fit ebm."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if config.objective == "cd":
            yield from ("buffer", "restart")

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, hidden=8, warmup=100, temperatures=25)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        return {"cd": replace(cls.tiny(space), objective="cd")} if space.symbols == 2 else {}  # a few cases tell

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=100, lr=5e-3, schedule="linear", ema=0.99, epochs=50)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        v = self.states(x, None)[0].double()
        w = v.new_ones(len(v), 1) if weight is None else weight.double()[:, None]
        seen = torch.zeros(self.used.shape, dtype=torch.float64, device=v.device)
        seen[self.used] = (w * v).sum(0)
        rest = w.sum() - seen.sum(1, keepdim=True)
        self.rate.copy_(((seen + 0.5).log() - (rest + 0.5).log())[self.used])
        with torch.no_grad():
            self.visible.copy_(self.rate)

    def learner(self, recipe: Recipe) -> Learner:
        return ContrastiveLearner(self, recipe, self.config.objective == "pcd")

    # -- two layers ---------------------------------------------------------------------------------------

    def states(self, x: Tensor, noise: RowNoise | None) -> tuple[Tensor, Tensor]:
        values = x.reshape(len(x), -1).long()
        units = F.one_hot(values, max(self.sizes))[:, :, 1:][:, self.used].to(self.weight.dtype)
        return units, torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def rows(self, y: Tensor) -> Tensor:
        number = self._spread(y, 0.0).double() @ torch.arange(1.0, max(self.sizes), dtype=torch.float64).to(y.device)
        return as_event(self.space, number)

    def biases(self, h: Encoded | None) -> tuple[Tensor, Tensor]:
        """Of visible and hidden units, [units] and [hidden], or of each context."""
        if h is None or self.told is None:
            return self.visible, self.hidden
        # in float64, whose rounding by a batch's size leaves no trace in exact numbers
        moves = F.linear(h.vector.double(), self.told.weight.double())
        b, a = moves.split((self.units, self.config.hidden), 1)
        return self.visible + b, self.hidden + a

    def log_path(self, y: Tensor, h: Encoded | None, beta: float) -> Tensor:
        b, a = self.biases(h)
        return self._log_path(y, b.to(y), a.to(y), self.weight, beta)

    def _log_path(self, y: Tensor, b: Tensor, a: Tensor, weight: Tensor, beta: float) -> Tensor:
        linear = (y * (beta * b + (1 - beta) * self.rate)).sum(1, dtype=torch.float64)
        return linear + F.softplus(beta * (a + y @ weight)).sum(1, dtype=torch.float64)

    def precise(self, x: Tensor, h: Encoded | None) -> Tensor:
        """log f(x) [N] in float64 throughout: of its difference with log Z few digits are left."""
        b, a = (t.double() for t in self.biases(h))
        return self._log_path(self.states(x, None)[0].double(), b, a, self.weight.double(), 1.0)

    def log_z_known(self, h: Encoded | None) -> Tensor | float:
        return self.log_sums(self.rate[None]) + self.config.hidden * math.log(2)

    def known_draws(self, chains: int, noise: RowNoise) -> Tensor:
        u = noise.rand(chains, len(self.sizes)).flatten(0, 1)
        return self.visible_draws(self.rate.expand(len(u), -1), u)

    def sweep(self, y: Tensor, h: Encoded | None, noise: Any, beta: float = 1.0, each: int = 1) -> Tensor:
        """One draw of the hidden units given the visible ones y [C, units], and of these given those; ``each`` chains
        of a row of the noise."""
        b, a = (t.to(y) for t in self.biases(h))
        u = noise.rand(each, self.config.hidden + len(self.sizes)).flatten(0, 1)
        p = (beta * (a + y @ self.weight)).sigmoid()
        hidden = (u[:, : p.shape[1]] < p).to(y)
        return self.visible_draws(beta * (b + hidden @ self.weight.T) + (1 - beta) * self.rate, u[:, p.shape[1] :])

    def visible_draws(self, logits: Tensor, u: Tensor) -> Tensor:
        """Visible units [C, units], by uniform numbers [C, variables]."""
        if len(self.used.T) == 1:
            return (u < logits.sigmoid()).to(logits)
        every = F.pad(self._spread(logits, -math.inf), (1, 0))
        value = (u[:, :, None] >= every.softmax(2).cumsum(2)[:, :, :-1]).sum(2)
        return F.one_hot(value, max(self.sizes))[:, :, 1:][:, self.used].to(logits)

    def log_sums(self, logits: Tensor) -> Tensor:
        """log of the sum of exp over all values of all variables [C], float64, of logits [C, units]."""
        every = F.pad(self._spread(logits.double(), -math.inf), (1, 0))
        return every.logsumexp(2).sum(1)

    def _spread(self, units: Tensor, fill: float) -> Tensor:
        """[C, variables, most values - 1]"""
        out = units.new_full((len(units), *self.used.shape), fill)
        out[:, self.used] = units
        return out

    def kernels(self, sampler: Sampler | None, h: Encoded | None, each: int) -> Kernels:
        return lambda beta: Gibbs(lambda y, noise: self.sweep(y, h, noise, beta, each))

    # -- training -------------------------------------------------------------------------------------------

    def at_data(self, x: Tensor, noise: RowNoise) -> Tensor:
        return self.states(x, None)[0]

    def afresh(self, noise: RowNoise) -> Tensor:
        return self.known_draws(1, noise)

    def moved(self, y: Tensor, h: Encoded | None, noise: RowNoise) -> Tensor:
        for _ in range(self.config.steps):
            y = self.sweep(y, h, noise)
        return y

    def contrast(self, data: Tensor, h: Encoded | None, y: Tensor, given: Encoded | None) -> dict[str, Tensor]:
        return {"loss": self.log_path(y, given, 1.0) - self.log_path(data, h, 1.0)}

    # -- the contract ---------------------------------------------------------------------------------------

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return asked is not ExactLikelihood or self.summed is not None

    @property
    def summed(self) -> Literal["hidden", "visible"] | None:
        """The layer whose states are summed over, if any."""
        sizes = {"hidden": float(self.config.hidden), "visible": sum(math.log2(k) for k in self.sizes)}
        least = min(sizes, key=sizes.__getitem__)
        return least if sizes[least] <= (SUMMED if self.few_contexts else SUMMED_EACH) else None  # type: ignore[return-value]

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise) -> Likelihood:
        if isinstance(request, ExactLikelihood):
            return Exact(self.precise(x, c) - self.log_z(c, len(x)), self.space.measure)
        return super().rows_log_prob(x, c, request, noise)

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        return Independent(
            Bernoulli(logits=self.biases(c)[1].to(self.weight) + self.states(x, None)[0] @ self.weight), 1
        )

    def log_z(self, h: Encoded | None, n: int) -> Tensor:
        """log Z [n] by a sum over all states of a layer, once for each distinct context of n, h (or none)."""
        keys, which = torch.unique(context_keys(h, n, self.device), return_inverse=True)
        found, weights, asks = [], self.weights_key(), self.asks(h)
        for k, key in enumerate(keys):
            own = None if h is None else h[(which == k).nonzero()[0]]
            sums = partial(self._sum, own)
            found.append(sums() if asks else self.remembered(digest(weights, int(key)), sums))
        return torch.cat(found)[which]

    def _sum(self, h: Encoded | None) -> Tensor:
        """log Z [1] of one context."""
        b, a, weight = (t.double() for t in (*self.biases(h), self.weight))
        sizes = (2,) * self.config.hidden if self.summed == "hidden" else self.sizes

        def of(index: Tensor) -> Tensor:
            digits = (index[:, None] // strides) % torch.tensor(sizes, device=index.device)
            if self.summed == "hidden":
                return (digits * a).sum(1) + self.log_sums(b + digits.double() @ weight.T)
            return self.precise(digits, h)

        strides = torch.tensor([1, *sizes[:-1]], device=self.device).cumprod(0)
        total, block = math.prod(sizes), max(1, BLOCK // (self.units + self.config.hidden))
        parts = torch.split(torch.arange(total, device=self.device), block)
        return torch.stack([of(i).logsumexp(0) for i in parts]).logsumexp(0, keepdim=True)


def sizes_of(space: Space) -> tuple[int, ...]:
    """How many values each number of a flattened x has; () where they are no few values."""
    if space.pixels:
        return (2,) * space.dims if space.symbols == 2 else ()
    each = [len(c.values) if isinstance(c, Category) and not c.nullable else 0 for c in space.columns]
    return tuple(each) if each and min(each) > 1 else ()

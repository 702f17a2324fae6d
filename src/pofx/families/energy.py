"""The common part of families that know p(x | c) up to a constant: p(x | c) = f(x | c) / Z(c).

Its logarithm is that of f less log Z, which annealing estimates from either side (mcmc/ais.py): too low on average
from exact draws of a density that is known, so that log p is bounded from above; too high from draws of the model, so
that it is bounded from below as far as the chains that draw have mixed. All data given one context share one log Z and
its error. Where each datum may have a context of its own, each has an estimate of its own, and independent errors.

Its gradient by the parameters is E_p[d log f], over the weighted states of the annealing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pofx.core.abilities import DrawsByChains, HasEnergy
from pofx.core.learner import Recipe, Stage
from pofx.core.likelihood import KINDS, Likelihood, Unavailable, make
from pofx.core.noise import RowNoise, row_keys, seed_of
from pofx.core.requests import (
    Annealed,
    DequantisedReversePartitionAis,
    ExactLikelihood,
    Request,
    ReversePartitionAis,
    Sampler,
)
from pofx.core.space import Space
from pofx.core.verdict import Verdict, worst
from pofx.families.conditioned import Conditioned
from pofx.families.latent import log_mean_exp
from pofx.mcmc.ais import Kernels, anneal, sigmoid_schedule, tune
from pofx.mcmc.chains import Chains, run
from pofx.mcmc.kernels import Kernel, Trajectories
from pofx.nn.encoders import Encoded

T = TypeVar("T")

KEPT = 512  # estimates of log Z that a model remembers


@dataclass(frozen=True)
class Partition:
    """An estimate of log Z of n contexts.

    Attributes:
        nats: [n].
        se: standard errors [n] of what is each context's own.
        shared: by the name of an estimate, how far its standard error moves log p of each [n].
        verdict: on the chains that it starts from, where it does.
        y: states of chains [n K, D] that stand for the model's distribution, by their share of it [n, K].
        name: of one estimate.
    """

    nats: Tensor
    se: Tensor
    shared: dict[str, Tensor]
    verdict: Verdict | None = None
    y: Tensor | None = None
    share: Tensor | None = None
    name: str = ""


class EnergyBased(Conditioned, HasEnergy, DrawsByChains):
    """Base of the energies. States y [C, D] are what nets and chains see of data."""

    caveat: ClassVar[str] = (
        "a bound from below by the noise within cells, of a bound from above by log Z, which annealing finds too low"
    )

    def __init__(self, config: Any, space: Space, context: Space | None = None, **more: Any) -> None:
        super().__init__(config, space, context, **more)
        self.found: dict[str, Any] = {}  # estimates of log Z, of these weights or of others

    # -- what a family writes ---------------------------------------------------------------------------

    @abstractmethod
    def states(self, x: Tensor, noise: RowNoise | None) -> tuple[Tensor, Tensor]:
        """y [N, D] of rows x [N, *E], and what log f(y) lacks to be that of x [N]; noise spreads x over cells."""

    @abstractmethod
    def rows(self, y: Tensor) -> Tensor:
        """Rows x [N, *E] of states y."""

    @abstractmethod
    def log_path(self, y: Tensor, h: Any, beta: float) -> Tensor:
        """log f(y | h) [C] at beta = 1, at 0 that of a density whose constant is known."""

    @abstractmethod
    def log_z_known(self, h: Any) -> Tensor | float:
        """log Z at beta = 0."""

    @abstractmethod
    def known_draws(self, chains: int, noise: RowNoise) -> Tensor:
        """Exact draws at beta = 0, so many for each row of the noise [N chains, D]."""

    @abstractmethod
    def kernels(self, sampler: Sampler | None, h: Any, each: int) -> Kernels:
        """What moves chains, ``each`` so many of a row of noise: as the sampler says, or in annealing."""

    # -- log Z ------------------------------------------------------------------------------------------

    @property
    def few_contexts(self) -> bool:
        """Is one log Z that of many data?"""
        return self.context is None or bool(self.context.values)

    def partition(self, h: Any, n: int, request: Annealed, noise: RowNoise) -> Partition:
        """log Z of n contexts h (or of none): of a few, one estimate each, which follows from the seed alone."""
        if not self.few_contexts:
            steps = self._steps(h, n, request, noise)
            return self._carrying(self._estimate(h, n, request, noise, steps), h)
        keys, which = torch.unique(context_keys(h, n, self.device), return_inverse=True)
        parts, weights = [], self.weights_key()
        for k, key in enumerate(keys):
            first = int((which == k).nonzero()[0, 0])
            own = None if h is None else h[first : first + 1]
            name = f"log Z of {self.name} {digest(weights, int(key), request, noise.seed)}"
            lot, alone = (RowNoise(seed, lambda key=key: key[None]) for seed in (0, noise.seed))  # type: ignore[misc]
            way = digest("steps", weights, int(key), request.temperatures, request.chains)
            steps = self.remembered(way, partial(self._steps, own, 1, request, lot))
            found = self.remembered(name, partial(self._estimate, own, 1, request, alone, steps))
            parts.append(self._carrying(replace(found, name=name), own))
        nats, se = (torch.cat([getattr(p, of) for p in parts])[which] for of in ("nats", "se"))
        shared = {p.name: torch.where(which == k, -p.se, 0.0) for k, p in enumerate(parts)}
        verdicts = [p.verdict for p in parts if p.verdict is not None]
        return Partition(nats, torch.zeros_like(se), shared, worst(verdicts) if verdicts else None)

    @torch.no_grad()
    def _steps(self, h: Any, n: int, request: Annealed, noise: RowNoise) -> Tensor | None:
        """Step sizes of the annealing, by chains of their own; None of kernels that have none."""
        each = self.each(h, n, request.chains)
        kernels = self.kernels(None, each, request.chains)
        if not isinstance(kernels, Trajectories):
            return None
        path, start = partial(self._path, each), self.known_draws(request.chains, noise)
        return tune(path, sigmoid_schedule(request.temperatures), kernels, start, noise, n)

    @torch.no_grad()
    def _estimate(self, h: Any, n: int, request: Annealed, noise: RowNoise, steps: Tensor | None) -> Partition:
        chains, at_one = request.chains, list[Tensor]()
        each = self.each(h, n, chains)

        def path(y: Tensor, beta: float) -> Tensor:
            if beta == 1:
                at_one.append(y.detach())
            return self.log_path(y, each, beta)

        kernels, betas, verdict = self.kernels(None, each, chains), sigmoid_schedule(request.temperatures), None
        if isinstance(request, ReversePartitionAis | DequantisedReversePartitionAis):
            drawn = self.settled(h, n, chains, 1, self.default_sampler(), noise)
            betas, steps, verdict = betas.flip(0), None if steps is None else steps.flip(0), drawn.verdict
            start = drawn.draws[:, 0]
        else:
            start = self.known_draws(chains, noise)
        log_w = anneal(path, betas, kernels, start, noise, request.transitions, n, steps).view(n, chains)
        mean, se = log_mean_exp(log_w)
        forward = verdict is None
        nats = self.log_z_known(h) + (mean if forward else -mean)
        share = log_w.softmax(1) if forward else torch.full_like(log_w, 1 / chains)
        return Partition(nats, se, {}, verdict, at_one[-1 if forward else 0], share)

    def _path(self, each: Any, y: Tensor, beta: float) -> Tensor:
        return self.log_path(y, each, beta)

    def each(self, h: Any, n: int, chains: int) -> Any:
        """Contexts h of n, of each chain [n chains]."""
        return None if h is None else h[torch.arange(n, device=self.device).repeat_interleave(chains)]

    def _carrying(self, found: Partition, h: Any) -> Partition:
        """With the gradient of log Z by parameters and contexts that ask for one."""
        if not self.asks(h):
            return found
        assert found.y is not None
        assert found.share is not None
        n, chains = found.share.shape
        each = self.each(h, n, chains)
        log_f = self.log_path(found.y, each, 1.0).view(n, chains)
        return replace(found, nats=found.nats + (found.share * (log_f - log_f.detach())).sum(1))

    def asks(self, h: Any) -> bool:
        """Does a parameter or a context ask for a gradient?"""
        weights = [*self.parameters(), *([h.vector] if isinstance(h, Encoded) else [])]
        return torch.is_grad_enabled() and any(w.requires_grad for w in weights)

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """What is made once, by a name that tells it from all others."""
        if name not in self.found:
            self.found = dict([*self.found.items(), (name, make())][-KEPT:])
        found: T = self.found[name]
        return found

    def weights_key(self) -> int:
        """What tells these weights from others."""
        flat = [t.detach().double().flatten() for t in (*self.parameters(), *self.buffers())]
        return int(row_keys(torch.cat(flat)[None]))

    def default_request(self, kind: type[Request] | None = None) -> Request:
        found = super().default_request(kind)
        return replace(found, temperatures=self.config.temperatures) if isinstance(found, Annealed) else found

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        made: Any = kind or self.own_samplers[0]
        sampler: Sampler = made(warmup=self.config.warmup)
        return sampler

    # -- the contract -----------------------------------------------------------------------------------

    def stages(self, recipe: Recipe) -> list[Stage]:
        """A fit keeps its last weights, averaged, where only annealing could tell the best: that finds log Z too low,
        and by most where an energy is worst, whose bound from above is then the highest."""
        exact = issubclass(self.own_estimators[0], ExactLikelihood)
        return [replace(stage, validate=None if exact else self.validated) for stage in super().stages(recipe)]

    def validated(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        """What tells the best weights of a fit."""
        return Unavailable("a bound by annealing tells no better weights from worse.")

    def rows_log_prob(self, x: Tensor, c: Any, request: Any, noise: RowNoise) -> Likelihood:
        log_z = self.partition(c, len(x), request, noise)
        if log_z.verdict is not None and not log_z.verdict.mixed:
            return Unavailable(
                f"the chains of this {self.name} have {log_z.verdict}, and annealing from their draws bounds nothing. "
                "Ask for the other side, or fit a smoother energy."
            )
        draws = getattr(request, "draws", 0)
        each = torch.stack([self.log_f(x, c, noise if draws else None) for _ in range(max(1, draws))])
        se = log_z.se if draws < 2 else (log_z.se**2 + each.detach().var(0) / draws).sqrt()
        kind = KINDS[request.kind]
        return make(kind, each.mean(0) - log_z.nats, self.space.measure, se, request.chains, self.caveat, log_z.shared)

    def log_f(self, x: Tensor, c: Any, noise: RowNoise | None = None) -> Tensor:
        """log f(x | c) [N] of rows x [N, *E], float64 in raw units."""
        y, lacks = self.states(x, noise)
        return self.log_path(y, c, 1.0).double() + lacks

    def rows_energy(self, x: Tensor, c: Any) -> Tensor:
        return -self.log_f(x, c)

    def settled(self, h: Any, n: int, chains: int, draws: int, sampler: Any, noise: RowNoise) -> Chains:
        """Chains of the model [n chains], so many for each of n contexts h (or of none)."""
        each = self.each(h, n, chains)
        kernels = self.kernels(sampler, each, chains)
        kernel = kernels if isinstance(kernels, Kernel) else kernels(1.0)
        start = self.known_draws(chains, noise)
        return run(
            kernel,
            lambda y: self.log_path(y, each, 1.0),
            start,
            draws,
            sampler.warmup,
            sampler.thin,
            noise,
            groups=n,
        )

    def rows_chains(self, n: int, c: Any, sampler: Any, generator: torch.Generator) -> tuple[Tensor, Verdict]:
        keys, which = torch.unique(context_keys(c, n, self.device), return_inverse=True)
        groups, chains = len(keys), sampler.chains
        order = which.argsort(stable=True)
        count = torch.bincount(which, minlength=groups)
        place = torch.empty_like(which)  # of each row among those of its context
        place[order] = torch.arange(n, device=which.device) - (count.cumsum(0) - count)[which[order]]
        first = torch.empty_like(keys)
        first[which.flip(0)] = torch.arange(n, device=which.device).flip(0)
        draws = -(-int(count.max()) // chains)
        noise = RowNoise(seed_of(generator), lambda: keys)
        found = self.settled(None if c is None else c[first], groups, chains, draws, sampler, noise)
        y = found.draws.view(groups, chains, draws, -1)[which, place % chains, place // chains]
        return self.rows(y), found.verdict

    def rows_sample(self, n: int, c: Any, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.rows_chains(n, c, sampler, generator)[0]

    def rows_per_pass(self) -> int:
        return super().rows_per_pass() if self.few_contexts else 128

    def rows_per_draw(self) -> int:
        return super().rows_per_draw() if self.few_contexts else 64


def context_keys(h: Any, n: int, device: torch.device) -> Tensor:
    """What tells n encoded contexts apart, int64 [n]."""
    if h is None:
        return torch.zeros(n, dtype=torch.int64, device=device)
    return row_keys(h.vector.detach() if isinstance(h, Encoded) else h)


def digest(*parts: Any) -> str:
    return blake2b(repr(parts).encode(), digest_size=5).hexdigest()

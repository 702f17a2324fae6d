"""What families of a latent vector z share: bounds on log p(x | c) from the joint density and a proposal of z.

    p(x | c) = integral of p(x, z | c) dz,    w(z) = p(x, z | c) / q(z | x, c)

has no closed form. With z_1, ..., z_k ~ q(z | x, c), a proposal that the encoder makes,

    ELBO = E[ log w ] <= E[ log (w_1 + ... + w_k) / k ] = IWAE-k <= log p(x | c)

(Kingma & Welling 2014, eq. 3; Burda et al. 2016, eq. 8 and theorem 1).

A proposal is a map z(e) of noise e ~ N(0, I), so that of all families the posterior of e is

    p(e | x, c) = N(e; 0, I) w(z(e)) / p(x | c)

and annealing goes from N(0, I) to it by way of N(e; 0, I) w(z(e))^beta (Neal 2001; Wu et al. 2017): e is of one
scale for all rows, as far as the proposal knows the posterior. Forward it bounds log p(x | c) from below, back from
exact draws of the posterior from above (Grosse et al. 2015). Every row has chains, step sizes and noise of its own, so
its number does not depend on its batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pofx.core.abilities import Encodes, FromLatents, HasBoundTerms, HasJoint
from pofx.core.likelihood import Estimate, Kind, Likelihood, LowerBound, Number, UpperBound, cat, make
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.requests import Ais, Annealed, Elbo, Iwae, PerDatum, Request, ReverseAisOfChains
from pofx.core.verdict import Verdict, worst
from pofx.families.conditioned import Conditioned
from pofx.families.priors import HALF_LOG_2PI
from pofx.mcmc.ais import anneal, sigmoid_schedule
from pofx.mcmc.chains import projections, run
from pofx.mcmc.diagnostics import verdict
from pofx.mcmc.kernels import Hmc, with_step

KERNEL = Hmc(leapfrog=5)  # of annealing
PILOTS = 4  # chains of each row that find its step sizes
FIRST_STEP, FIRST_STEPS, STEP_RATE = 0.5, 20, 0.3  # where these start, for how long at first, and how fast they move
FIT_DRAWS, FIT_RATE = 8, 0.05  # draws of a step, and its length, when q is fitted to each row


class LogPath(Protocol):
    """log N(e; 0, I) + beta log w(z(e)) [C] of chains e [C, L]."""

    def __call__(self, e: Tensor, beta: float) -> Tensor: ...


class Proposal(ABC):
    """q(z | x, c) of N rows as a map of noise e ~ N(0, I) that is one to one."""

    @abstractmethod
    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """z [N, K, L] of e [N, K, L], and log q(z | x, c) [N, K]; differentiable."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """e [N, K, L] of z [N, K, L]."""


@dataclass(frozen=True, eq=False)
class GaussianProposal(Proposal):
    """N(mean, diag scale^2); mean, log_scale: [N, L]."""

    mean: Tensor
    log_scale: Tensor

    @classmethod
    def of(cls, q: Distribution) -> GaussianProposal:
        assert isinstance(q, Independent)
        assert isinstance(q.base_dist, Normal)
        return cls(q.mean, q.stddev.log())

    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        z = self.mean[:, None] + self.log_scale.exp()[:, None] * e
        return z, log_normal(e) - self.log_scale.sum(-1)[:, None]

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self.mean[:, None]) * (-self.log_scale).exp()[:, None]


@dataclass(frozen=True, eq=False)
class Fitted(Proposal):
    """q of e' = shift + scale e, e ~ N(0, I), in the place of e; shift, log_scale: [N, L]."""

    q: Proposal
    shift: Tensor
    log_scale: Tensor

    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        moved = self.shift[:, None] + self.log_scale.exp()[:, None] * e
        z, log_q = self.q(moved)
        return z, log_q - log_normal(moved) + log_normal(e) - self.log_scale.sum(-1)[:, None]

    def inverse(self, z: Tensor) -> Tensor:
        return (self.q.inverse(z) - self.shift[:, None]) * (-self.log_scale).exp()[:, None]


class LatentModel(Model, Encodes, FromLatents, HasJoint, HasBoundTerms):
    """Base of these families: a subclass writes ``rows_encode``, ``rows_from_latents``, ``latent_dims`` (of all layers
    of z together), ``rows_sample_joint`` and the hooks below, of these ``proposal`` where its q(z | x, c) is no
    diagonal Gaussian."""

    estimators: ClassVar[tuple[type[Request], ...]] = (Iwae, Elbo, PerDatum, Ais, ReverseAisOfChains)
    in_terms = Elbo

    # -- hooks ----------------------------------------------------------------------------------------------

    @abstractmethod
    def log_terms(self, x: Tensor, z: Tensor, c: Any) -> tuple[Tensor, Tensor]:
        """log p(x | z, c) and log p(z | c), both [N, K], of rows x [N, *E] and z [N, K, L]; differentiable in z."""

    @property
    @abstractmethod
    def codes_per_pass(self) -> int:
        """How many z one call of ``log_terms`` may hold."""

    def proposal(self, x: Tensor, c: Any) -> Proposal:
        """q(z | x, c) of rows x [N, *E]."""
        return GaussianProposal.of(self.rows_encode(x, c))

    def divergence(self, q: Proposal, c: Any) -> Tensor | None:
        """KL(q(z | x, c) || p(z | c)) [N] where it has a closed form."""
        return None

    def rows_log_joint(self, x: Tensor, z: Tensor, c: Any) -> Tensor:
        likelihood, prior = self.log_terms(x, z, c)
        return likelihood + prior

    # -- the contract ---------------------------------------------------------------------------------------

    def rows_per_pass(self) -> int:
        return max(1, min(super().rows_per_pass(), self.codes_per_pass))

    def quick_request(self) -> Request:
        return Iwae(draws=8)

    def rows_log_prob(self, x: Tensor, c: Any, request: Any, noise: RowNoise) -> Likelihood:
        if isinstance(request, Iwae | Elbo):
            return self._bound(self.proposal(x, c), x, c, request, noise)
        if isinstance(request, PerDatum):
            return self._in_blocks(FIT_DRAWS, x, c, noise, partial(self._fitted, request))
        if isinstance(request, Ais):
            return self._in_blocks(request.chains, x, c, noise, partial(self._forward, request))
        verdicts = list[Verdict]()
        lik = self._in_blocks(request.chains, x, c, noise, partial(self._back_from_chains, request, verdicts))
        assert isinstance(lik, Estimate)
        return replace(lik, caveat=f"the chains that it goes back from have {worst(verdicts)}")

    def rows_reverse_ais(self, x: Tensor, z: Tensor, c: Any, request: Annealed, noise: RowNoise) -> Likelihood:
        def back(x: Tensor, c: Any, noise: RowNoise, rows: slice) -> Likelihood:
            q = self.proposal(x, c)
            e = q.inverse(z[rows].expand(-1, request.chains, -1)).flatten(0, 1)
            return self._back(request, UpperBound, self._path(q, x, c), e, len(x), noise)

        return self._in_blocks(request.chains, x, c, noise, back)

    def rows_posterior(self, x: Tensor, c: Any, n: int, sampler: Any, noise: RowNoise) -> tuple[Tensor, Verdict]:
        z, verdicts, each = list[Tensor](), list[Verdict](), -(-n // sampler.chains)
        for rows in self._blocks(len(x), sampler.chains):
            given, part = None if c is None else c[rows], noise.of(rows)
            q = self.proposal(x[rows], given)
            kernel, target = Hmc(leapfrog=sampler.leapfrog), partial(self._path(q, x[rows], given), beta=1.0)
            found = run(
                kernel, target, self._starts(sampler.chains, part), each, sampler.warmup,
                sampler.thin, part, groups=len(x[rows]),
            )  # fmt: skip
            e = found.draws.unflatten(0, (-1, sampler.chains)).transpose(1, 2).flatten(1, 2)[:, :n]
            z.append(q(e)[0].transpose(0, 1))
            verdicts.append(found.verdict)
        return torch.cat(z, 1), worst(verdicts)

    def rows_bound_terms(self, x: Tensor, c: Any, request: Any, noise: RowNoise) -> dict[str, Number[Tensor]]:
        reconstruction, log_ratio = self._drawn_terms(self.proposal(x, c), x, c, request, noise)
        found = {"prior": _mean(-log_ratio), "reconstruction": _mean(reconstruction)}
        return {name: Number(Estimate, nats, se, se, draws=request.draws) for name, (nats, se) in found.items()}

    # -- bounds by draws of a proposal ------------------------------------------------------------------------

    def _bound(self, q: Proposal, x: Tensor, c: Any, request: Any, noise: RowNoise) -> Likelihood:
        reconstruction, log_ratio = self._drawn_terms(q, x, c, request, noise)
        log_w = reconstruction - log_ratio
        if isinstance(request, Iwae):
            return make(LowerBound, *self._told(log_w), request.draws, ess=effective(log_w))
        nats, se = _mean(log_w)
        return make(LowerBound, nats, self.space.measure, se, request.draws)

    def _drawn_terms(self, q: Proposal, x: Tensor, c: Any, request: Any, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """log p(x | z, c) and log q(z | x, c) - log p(z | c) of every draw [N, k] float64.

        Of the ELBO the second is the exact KL where that is known.
        """
        n, k = len(x), request.draws
        kl = self.divergence(q, c) if isinstance(request, Elbo) else None
        found = torch.empty(2, n, k, dtype=torch.float64, device=x.device)
        block = max(1, self.codes_per_pass // n)
        for i in range(0, k, block):
            z, log_q = q(noise.randn(min(block, k - i), self.latent_dims).to(x.device))
            reconstruction, log_prior = self.log_terms(x, z, c)
            found[0, :, i : i + block] = reconstruction
            found[1, :, i : i + block] = log_q - log_prior if kl is None else kl[:, None]
        return found[0], found[1]

    def _fitted(self, request: PerDatum, x: Tensor, c: Any, noise: RowNoise, rows: slice) -> Likelihood:
        """The ELBO of the shift and scale of e that raise it, found by Adam (Kingma & Ba 2015), which is row by row.

        What is fitted is the mean over the later half of the steps. Rows that it gains nothing, beyond the error of as
        many draws as are asked for, keep what they started from. What is told is by draws of its own.
        """
        flat = torch.zeros(len(x), self.latent_dims, device=x.device)
        q = self.proposal(x, c) if request.start == "encoder" else GaussianProposal(flat, flat)
        moves = [flat.clone().requires_grad_(), flat.clone().requires_grad_()]
        optimizer, later, mean = torch.optim.Adam(moves, FIT_RATE), -(-request.fits // 2), [flat, flat]
        for i in range(request.fits):
            e = noise.randn(FIT_DRAWS, self.latent_dims).to(x.device)
            with torch.enable_grad():
                z, log_q = Fitted(q, *moves)(e)
                loss = (log_q - self.rows_log_joint(x, z, c)).mean(1).sum()
                moves[0].grad, moves[1].grad = torch.autograd.grad(loss, moves)
            optimizer.step()
            if i >= request.fits - later:
                mean = [m + v.detach() / later for m, v in zip(mean, moves, strict=True)]
        same = noise.of(slice(None))
        after, before = (f - r for f, r in (
            self._drawn_terms(Fitted(q, *mean), x, c, request, noise), self._drawn_terms(q, x, c, request, same)
        ))  # fmt: skip
        gain, error = _mean(after - before)
        kept = (gain > error)[:, None]
        return self._bound(Fitted(q, *(torch.where(kept, m, 0.0) for m in mean)), x, c, request, noise)

    # -- annealing and chains, in e ---------------------------------------------------------------------------

    def _path(self, q: Proposal, x: Tensor, c: Any) -> LogPath:
        """log N(e; 0, I) + beta log w(z(e)) [C] float64 of chains e [C, L], C / N neighbours for each row."""

        def log_path(e: Tensor, beta: float) -> Tensor:
            e = e.unflatten(0, (len(x), -1))
            log_p = log_normal(e).double()
            if beta:
                z, log_q = q(e)
                log_p = log_p + beta * (self.rows_log_joint(x, z, c).double() - log_q)
            return log_p.flatten()

        return log_path

    def _forward(self, request: Ais, x: Tensor, c: Any, noise: RowNoise, rows: slice) -> Likelihood:
        path, betas = self._path(self.proposal(x, c), x, c), sigmoid_schedule(request.temperatures)
        steps = self._steps(path, betas, len(x), noise)
        start = noise.randn(request.chains, self.latent_dims).flatten(0, 1).to(x.device)
        log_w = anneal(path, betas, KERNEL, start, noise, request.transitions, len(x), steps).view(len(x), -1)
        return make(LowerBound, *self._told(log_w), request.chains, ess=effective(log_w))

    def _back(self, request: Annealed, kind: Kind, path: LogPath, e: Tensor, n: int, noise: RowNoise) -> Likelihood:
        """Minus the log of the mean weight of annealing back from draws e [C, L] of the posteriors of n rows."""
        betas = sigmoid_schedule(request.temperatures)
        steps = self._steps(path, betas, n, noise)
        log_w = anneal(path, betas.flip(0), KERNEL, e, noise, request.transitions, n, steps.flip(0)).view(n, -1)
        nats, measure, se = self._told(log_w)
        return make(kind, -nats, measure, se, request.chains, ess=effective(log_w))

    def _back_from_chains(
        self, request: ReverseAisOfChains, verdicts: list[Verdict], x: Tensor, c: Any, noise: RowNoise, rows: slice
    ) -> Likelihood:
        n, path = len(x), self._path(self.proposal(x, c), x, c)
        sizes = self._steps(path, sigmoid_schedule(request.temperatures), n, noise)[-1]
        start, target = self._starts(request.chains, noise), partial(path, beta=1.0)
        state, seen, of = with_step(KERNEL.start(start, target, n), sizes), list[Tensor](), projections(start)
        accepted, divergent = 0.0, 0
        for i in range(2 * request.warmup):
            state = KERNEL.step(state, target, noise)
            if i >= request.warmup:
                seen.append(torch.cat([of(state.x).double(), state.log_p[:, None]], 1))
                accepted += float(state.accepted.mean()) / request.warmup
                divergent += int(state.divergent.sum())
        verdicts.append(verdict(torch.stack(seen, 1), accepted, divergent, n))
        return self._back(request, Estimate, path, state.x, n, noise)

    def _steps(self, path: LogPath, betas: Tensor, n: int, noise: RowNoise) -> Tensor:
        """Step sizes of each row at the temperatures between [T - 1, N], by chains that do not count: those that do may
        not choose their own.

        Each step moves its size a little towards the acceptance that is best. Dual averaging would be there sooner, but
        it makes much of the last digits of float32, which are others in another batch.
        """
        x = noise.randn(PILOTS, self.latent_dims).flatten(0, 1).to(self.device)
        size, found = torch.full((n,), FIRST_STEP, dtype=torch.float64, device=x.device), list[Tensor]()
        for beta in betas[1:-1].tolist():
            target = partial(path, beta=beta)
            state = KERNEL.start(x, target, n)
            for _ in range(1 if found else FIRST_STEPS):
                state = KERNEL.step(with_step(state, size), target, noise)
                size = size * (STEP_RATE * (state.accepted.view(n, -1).mean(1) - KERNEL.target)).exp()
            x = state.x
            found.append(size)
        return torch.stack(found)

    def _starts(self, chains: int, noise: RowNoise) -> Tensor:
        """Where the chains of each row start [C, L]: farther apart than draws of the proposal."""
        return 2 * noise.randn(chains, self.latent_dims).flatten(0, 1).to(self.device)

    def _told(self, log_w: Tensor) -> tuple[Tensor, Measure, Tensor]:
        nats, se = log_mean_exp(log_w)
        return nats, self.space.measure, se

    def _in_blocks(self, each: int, x: Tensor, c: Any, noise: RowNoise, ask: Callable[..., Likelihood]) -> Likelihood:
        """``ask(x, c, noise, rows)`` of blocks of rows, with so many z of each row at a time."""
        blocks = self._blocks(len(x), each)
        return cat([ask(x[rows], None if c is None else c[rows], noise.of(rows), rows) for rows in blocks])

    def _blocks(self, n: int, each: int) -> list[slice]:
        size = max(1, self.codes_per_pass // each)
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]


class Latent(Conditioned, LatentModel):
    """Base of those whose nets are told a context by an encoder."""


def log_normal(e: Tensor) -> Tensor:
    """log N(e; 0, I) [...] of e [..., L]."""
    return -0.5 * e.square().sum(-1) - e.shape[-1] * HALF_LOG_2PI


def _mean(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of k draws [N, k], and its standard error [N]."""
    return draws.mean(1), draws.std(1) / math.sqrt(draws.shape[1])


def log_mean_exp(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight [N] and its standard error, from log-weights [N, k].

    The error is the jackknife's (Efron & Stein 1981: not too small on average). Where one weight dominates,
    the delta method says 1 whatever the spread; leaving that weight out shows it.
    """
    k = log_w.shape[1]
    total = log_w.logsumexp(1, keepdim=True)
    # log sum of all weights but one; for the largest by itself, as 1 - share would cancel
    share = (log_w - total.clamp(min=torch.finfo(total.dtype).min)).exp()
    rest = total + torch.log1p(-share.clamp(max=1 - 1e-12))
    top = log_w.argmax(1, keepdim=True)
    rest.scatter_(1, top, log_w.scatter(1, top, -math.inf).logsumexp(1, keepdim=True))
    variance = (k - 1) / k * (rest - rest.mean(1, keepdim=True)).square().sum(1)
    return total[:, 0] - math.log(k), variance.nan_to_num(0.0).sqrt()  # all weights zero: no spread


def effective(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 [N]: how many draws of equal weight those of log-weights [N, k] are worth (Kish 1965)."""
    log_w = log_w.detach()
    return (2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)).exp().nan_to_num(1.0)

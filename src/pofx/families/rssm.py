"""The recurrent state-space model: a latent state that moves from step to step, a part of it at random.

    h_t = f(h_{t-1}, z_{t-1}, a_{t-1}),   z_t ~ p(z_t | h_t),   x_t ~ p(x_t | h_t, z_t)

(Hafner et al. 2019, "PlaNet", eq. 4; the world model of Hafner et al. 2020, "Dreamer", eq. 1): h_t is the path that
follows from what was drawn, z_t what is new at step t, a_t an action that is given: row t of a context in steps.
Actions and observations may as well be columns of one step, and are then modelled together. With a posterior that sees
each step once, q(z_t | h_t, x_t), (eq. 3 there, here with log w as a sum over steps)

    log w = sum_t log p(x_t | h_t, z_t) + log p(z_t | h_t) - log q(z_t | h_t, x_t),    z_t ~ q,

E[log w] is the ELBO of the whole sequence, and log (w_1 + ... + w_k) / k its IWAE bound (Burda et al. 2016). Whether
there is a step t at all, h_t says: log w has the log-probabilities that it is not the end, and of the end. Where the
path sees x_{t-1} as well, the model is the VRNN of Chung et al. 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.stepped import stepped
from pofx.core.abilities import HasBoundTerms
from pofx.core.conditional import evaluating
from pofx.core.errors import UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.likelihood import Estimate, Likelihood, LowerBound, Number, cat, make
from pofx.core.noise import RowNoise, given_or_fresh
from pofx.core.options import SHARE, at_least
from pofx.core.requests import Elbo, Iwae, Request, Sampler, StepByStep
from pofx.core.space import Ragged, Space, take
from pofx.families.conditioned import Conditioned, ContextOptions
from pofx.families.latent import effective, log_mean_exp
from pofx.nn.emission import Emission
from pofx.nn.encoders import Encoded, StepwiseEncoder, no_encoder
from pofx.nn.heads import uniform
from pofx.nn.mlp import Mlp

PASS = 2**22  # numbers of states that one pass may hold
SURE = -2.0  # log-scale of q at the start: z tells of x before anything has learned to listen
LIMIT = 5.0  # of log-scales, either way
LOOK = 500  # training rows that are looked at before training

State: TypeAlias = tuple[Tensor, Tensor]
"""h [M, width] and z [M, latent] of M sequences, after a step."""
Gaussian: TypeAlias = tuple[Tensor, Tensor]
"""Means and log-scales [..., latent]."""


@dataclass(frozen=True)
class RssmConfig(ContextOptions):
    """Options of a recurrent state-space model.

    Attributes:
        latent: dimensions of z_t.
        width: of h_t.
        components: of the mixture that a number's distribution is.
        inner_width: of the masked MLP inside a step of several values.
        autoregressive: the path sees the step before, too (Chung et al. 2015): tighter bounds, of a state that need not
            hold all that is known; else what comes next follows from the state alone.
        free_nats: of each step's divergence that cost nothing in training (Hafner et al. 2019, appendix A).
        warmup: share of the budget over which the weight of the divergence rises from 0 (Sønderby et al. 2016): else
            the state may never come to hold anything.
        block: the longest training piece, over which gradients flow back; of longer data each epoch has one piece.
        draws: of the bounds that log_prob returns.
    """

    latent: int = 16
    width: int = 128
    components: int = 8
    inner_width: int = 128
    autoregressive: bool = False
    free_nats: float = 0.0
    warmup: float = 0.2
    block: int = 64
    draws: int = 16

    ranges = {"warmup": SHARE, "block": at_least(2), "draws": at_least(2)}


@dataclass(frozen=True)
class Terms:
    """Of sequences of T steps, ends included, with K draws each: all [N, K, T], zero after the end.

    Attributes:
        log_p: log p(x_t | h_t, z_t).
        log_ratio: log q(z_t | h_t, x_t) - log p(z_t | h_t).
        kl: KL(q(z_t | h_t, x_t) || p(z_t | h_t)), given the draws before t.
    """

    log_p: Tensor
    log_ratio: Tensor
    kl: Tensor


class Rssm(Conditioned, HasBoundTerms):
    name: ClassVar[str] = "rssm"
    summary: ClassVar[str] = "a latent state that moves from step to step, as actions say and partly at random"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "Hafner et al. 2019, Learning latent dynamics for planning from pixels; Hafner et al. 2020"
    estimators: ClassVar[tuple[type[Request], ...]] = (Iwae, Elbo)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (StepByStep,)
    in_terms = Elbo
    Config = RssmConfig
    config: RssmConfig
    space: Ragged
    base: Tensor

    def __init__(self, config: RssmConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        if self.attends:
            self.context_encoder = StepwiseEncoder(context)
            if config.context_dropout:
                self.context_encoder.learn_null()
        width, latent = config.width, config.latent
        known = self.known + (self.memory + 1 if self.attends else 0)
        self.emission = self._emission()
        self.stop = Mlp(width, 1, hidden=width, blocks=0) if space.has_eos else None  # type: ignore[attr-defined]
        self.register_buffer("base", torch.zeros(()))  # log-odds of the end
        pieces = space.length + self.space.has_eos > config.block
        self.begun = nn.Parameter(torch.zeros(width)) if pieces else None  # h of a piece that has begun before
        self.enter = nn.Sequential(nn.Linear(latent + known + config.autoregressive * width, width), nn.SiLU())
        self.cell = nn.GRUCell(width, width)
        self.prior = Mlp(width, 2 * latent, hidden=width, blocks=0)
        self.posterior = Mlp(2 * width, 2 * latent, hidden=width, blocks=0)
        made = Mlp(width + latent, width, hidden=width, blocks=0)
        self.decoder = nn.Sequential(made, nn.LayerNorm(width))
        for net in (self.posterior, made):
            net.last.reset_parameters()  # at zero, q would not depend on x, nor x on z: a saddle of the objective
        with torch.no_grad():
            self.posterior.last.bias[latent:] = SURE

    def _emission(self) -> Emission:
        """Of steps, whose end is not its affair."""
        sequences: Any = self.space
        known = stepped(replace(sequences, has_eos=False))
        assert known is not None
        return known.emission(self.config, False)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if space.unit != "step":
            return "its data are no sequences of rows. (--sequence COLUMN makes sequences of the rows of a table.)"
        return no_encoder(context)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if context is not None and context.fill is not None:  # each of its steps is told as it is
            yield from ("context_width", "context_layers")

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, latent=4, width=32, components=2, inner_width=16, block=32, draws=4)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        return {} if space.unit != "step" else {"sees steps": replace(cls.tiny(space), autoregressive=True)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=16, lr=5e-3, warmup=20, clip=1.0, ema=0.99)

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        some = x[torch.randperm(len(x), generator=generator)[:LOOK]]
        steps = some[~self.emission.filled(some)]
        self.emission.prepare(steps, ends=0)
        self.base.fill_(math.log((len(some) + 0.5) / (len(steps) + 0.5)))

    # -- contexts -------------------------------------------------------------------------------------------

    @property
    def attends(self) -> bool:
        """Is the context in steps, of which each is an action?"""
        return self.context is not None and self.context.unit == "step"

    def _told(self, c: Encoded | None, first: int, steps: int) -> Tensor | None:
        """What h_t is told of the context at steps first, first + 1, ...: [N, steps, known].

        Of actions that of the step before, and whether there is one at this step: the end may follow theirs.
        """
        if c is None or c.tokens is None:
            return None if c is None else c.vector[:, None].expand(-1, steps, -1)
        here = c.tokens.new_ones(c.tokens.shape[:2]) if c.mask is None else c.mask.to(c.tokens)
        tokens = torch.cat([c.tokens * here[..., None], here[..., None]], 2)
        line = F.pad(tokens, (0, 0, 1, max(0, first + steps + 1 - tokens.shape[1])))[:, first : first + steps + 1]
        return torch.cat([line[:, :-1, :-1], line[:, 1:, -1:]], 2)

    # -- a step ---------------------------------------------------------------------------------------------

    def _move(self, state: State, before: Tensor, told: Tensor | None) -> Tensor:
        """h_t [M, width] of the state at t - 1, the embedding of x_{t-1} [M, width], and what is told [M, known]."""
        h, z = state
        parts = [z, *([] if told is None else [told]), *([before] if self.config.autoregressive else [])]
        return self.cell(self.enter(torch.cat(parts, 1)), h)  # type: ignore[no-any-return]

    def _start(self, n: int, begun: Tensor | None = None) -> State:
        """Of n sequences, which the emission begins; which of them have ``begun`` [n] before."""
        h: Tensor = self.emission.begin.expand(n, -1)  # type: ignore[operator, union-attr]
        h = h if begun is None or self.begun is None else torch.where(begun[:, None], self.begun, h)
        return h, h.new_zeros(n, self.config.latent)

    def _filter(self, u: Tensor, told: Tensor | None, e: Tensor, state: State, first: Tensor) -> tuple[Any, ...]:
        """Through steps u [N, T, D] with noise e [N, T, K, latent], from a state of N K on; before them were steps
        embedded as ``first`` [N, width].

        Returns h, z, means and log-scales of q, all [N, T, K, ...].
        """
        n, k = len(u), e.shape[2]
        seen = self.emission.embed(u)
        before = torch.cat([first[:, None], seen[:, :-1]], 1)
        found: list[tuple[Tensor, ...]] = []
        for t in range(u.shape[1]):
            h = self._move(state, _copies(before[:, t], k), None if told is None else _copies(told[:, t], k))
            mean, log_s = gaussian(self.posterior(torch.cat([h, _copies(seen[:, t], k)], 1)))
            z = mean + log_s.exp() * e[:, t].flatten(0, 1)
            state = h, z
            found.append((h, z, mean, log_s))
        return tuple(torch.stack(part, 1).unflatten(0, (n, k)).transpose(1, 2) for part in zip(*found, strict=True))

    def _outputs(self, h: Tensor, z: Tensor) -> Tensor:
        """What the emission takes, [..., width]."""
        return self.decoder(torch.cat([h, z], -1))  # type: ignore[no-any-return]

    # -- bounds ---------------------------------------------------------------------------------------------

    def terms(self, u: Tensor, inside: Tensor, told: Tensor | None, e: Tensor, state: State, first: Tensor) -> Terms:
        """Of steps u [N, T, D], of which those ``inside`` [N, T] count; the last of a datum may be fill, its end."""
        h, z, mean, log_s = self._filter(u, told, e, state, first)
        k = e.shape[2]
        log_p = self.emission.log_prob(self._outputs(h, z).transpose(1, 2), u[:, None].expand(-1, k, -1, -1))
        prior_mean, prior_s = gaussian(self.prior(h))
        over = (z - prior_mean) * (-prior_s).exp()
        log_ratio = (prior_s - log_s + 0.5 * (over.square() - e.square())).sum(-1)
        spread = (2 * (log_s - prior_s)).exp() + ((mean - prior_mean) * (-prior_s).exp()).square()
        kl = (prior_s - log_s + 0.5 * (spread - 1)).sum(-1)
        end = self.emission.filled(u)[:, None]
        log_p, log_ratio, kl = (t.masked_fill(end, 0.0) for t in (log_p, log_ratio.mT, kl.mT))
        if self.stop is not None:
            log_p = log_p + F.logsigmoid(torch.where(end, 1, -1) * self._end(h).mT)
        return Terms(*(t.masked_fill(~inside[:, None], 0.0) for t in (log_p, log_ratio, kl)))

    def _end(self, h: Tensor) -> Tensor:
        """Log-odds [...] that there is no step of the state h [..., width]."""
        assert self.stop is not None
        return self.stop(h)[..., 0] + self.base  # type: ignore[no-any-return]

    def _line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Steps x [N, L, D] with what may be their end [N, T, D], and which of these are of a datum [N, T]."""
        lengths = self.space.lengths(x)
        ends = int(self.space.has_eos)
        u = torch.cat([x, self.emission.beginning(len(x)).to(x)[:, :ends]], 1)[:, : int(lengths.max()) + ends]
        return u, torch.arange(u.shape[1], device=x.device) < (lengths + ends)[:, None]

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        u, inside = self._line(batch.x)
        told = self._told(self.batch_context(batch, generator), 0, u.shape[1])
        begin = self.emission.embed(self.emission.beginning(len(u)).to(u))
        size, block = inside.sum(1), self.config.block
        start, before = torch.zeros_like(size), begin[:, 0]
        if u.shape[1] > block:
            start = (batch.rand(generator=generator) * ((size - block).clamp(min=0) + 1)).long()
            places = start[:, None] + torch.arange(block, device=u.device)
            last = self.emission.embed(_at(u, (start - 1).clamp(min=0)[:, None]))[:, 0]
            before = torch.where((start > 0)[:, None], last, before)
            u, inside = _at(u, places), _at(inside, places)
            told = None if told is None else _at(told, places)
        e = batch.randn(u.shape[1], 1, self.config.latent, generator=generator)
        terms = self.terms(u, inside, told, e, self._start(len(u), start > 0), before)
        beta = min(1.0, batch.progress / self.config.warmup) if self.config.warmup else 1.0
        price = beta * terms.kl.clamp(min=self.config.free_nats)
        share = size / inside.sum(1)  # a piece stands for all of its datum
        loss = share * ((price * inside[:, None]) - terms.log_p).sum((1, 2)) / min(block, self.space.length)
        return {"loss": loss, "kl": terms.kl.detach().sum((1, 2)) / inside.sum(1)}

    def learner(self, recipe: Recipe) -> Learner:
        return GradientLearner(self, recipe, self.objective)

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        parts = [self._bound(request, self._terms(x, c, request, noise, rows)) for rows in self._blocks(x, request)]
        return cat(parts)

    def _bound(self, request: Any, terms: Terms) -> Likelihood:
        if isinstance(request, Iwae):
            log_w = _total(terms.log_p - terms.log_ratio)
            nats, se = log_mean_exp(log_w)
            return make(LowerBound, nats, self.space.measure, se, request.draws, ess=effective(log_w))
        nats, se = _mean(_total(terms.log_p - terms.kl))
        return make(LowerBound, nats, self.space.measure, se, request.draws)

    def rows_bound_terms(
        self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise
    ) -> dict[str, Number[Tensor]]:
        parts = [self._terms(x, c, request, noise, rows) for rows in self._blocks(x, request)]
        found = {
            "prior": _mean(torch.cat([_total(-terms.kl) for terms in parts])),
            "reconstruction": _mean(torch.cat([_total(terms.log_p) for terms in parts])),
        }
        return {name: Number(Estimate, nats, se, se, draws=request.draws) for name, (nats, se) in found.items()}

    def _terms(self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise, rows: slice) -> Terms:
        u, inside = self._line(x[rows])
        k = request.draws
        told = self._told(None if c is None else c[rows], 0, u.shape[1])
        e = noise.of(rows).randn(u.shape[1], k, self.config.latent).to(u.device)
        first = self.emission.embed(self.emission.beginning(len(u)).to(u))[:, 0]
        return self.terms(u, inside, told, e, self._start(k * len(u)), first)

    def _blocks(self, x: Tensor, request: Any) -> list[slice]:
        size = max(1, PASS // (request.draws * (x.shape[1] + 1) * self.config.width))
        return [slice(i, min(i + size, len(x))) for i in range(0, len(x), size)]

    # -- draws ----------------------------------------------------------------------------------------------

    def rows_per_draw(self) -> int:
        return 512

    def rows_sample(self, n: int, c: Encoded | None, sampler: Any, generator: torch.Generator) -> Tensor:
        first = self.emission.embed(self.emission.beginning(n))[:, 0]
        return self._go_on(self._start(n), first, c, 0, sampler.length or self.space.length, generator)

    def _go_on(
        self, state: State, before: Tensor, c: Encoded | None, first: int, most: int, generator: torch.Generator
    ) -> Tensor:
        """Up to so many steps [N, L, D] from a state on, of which there were ``first`` before."""
        told, out = self._told(c, first, most), list[Tensor]()
        over = torch.zeros(len(before), dtype=torch.bool, device=before.device)
        for t in range(most):
            h = self._move(state, before, None if told is None else told[:, t])
            mean, log_s = gaussian(self.prior(h))
            z = mean + log_s.exp() * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
            state, step = (h, z), self.emission.sample(self._outputs(h, z), generator).to(self.space.dtype)
            if self.stop is not None:
                p = self._end(h).sigmoid()
                over = over | (uniform(p, generator) < p)
            step = step.masked_fill(over[:, None], self.space.fill)
            out.append(step)
            if bool(over.all()):
                break
            before = self.emission.embed(step[:, None])[:, 0]
        x = torch.stack(out, 1)
        return x[:, : max(1, int(self.space.lengths(x).max()))]

    @torch.no_grad()
    def predict(
        self, before: Any, c: Any = None, *, length: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """What may come after each of N beginnings of K steps, [N, K, D]: up to ``length`` steps [N, L, D] of each.

        The state after a beginning is a draw of q(z_t | h_t, x_t), step by step, as in Hafner et al. 2019 (section 2):
        the posterior that the bound has, which is near p(z | x_1, ..., x_K) and not equal to it. From there on steps
        are drawn as ``sample`` draws them, given all actions of c [N, M, ...].

        Raises UsageError where the beginnings have not one length.
        """
        before = take(self.space, before).to(self.device)
        self.space.check(before)
        lengths = self.space.lengths(before)
        if before.ndim != 3 or not before.shape[1] or int(lengths.min()) < before.shape[1]:
            raise UsageError(
                f"Beginnings of shape {list(before.shape)} have {int(lengths.min())} to {int(lengths.max())} steps.",
                "Give N beginnings of one length, of a step or more: [N, K, D].",
            )
        generator, (n, k) = given_or_fresh(generator, self.device), before.shape[:2]
        with evaluating(self):
            e = (
                None
                if c is None or self.context is None
                else self.encode_context(take(self.context, c).to(self.device))
            )
            noise = torch.randn(n, k, 1, self.config.latent, generator=generator, device=generator.device)
            first = self.emission.embed(self.emission.beginning(n))[:, 0]
            h, z, *_ = self._filter(before, self._told(e, 0, k), noise.to(self.base), self._start(n), first)
            last = self.emission.embed(before[:, -1:])[:, 0]
            most = length or max(1, self.space.length - k)
            return self._go_on((h[:, -1, 0], z[:, -1, 0]), last, e, k, most, generator)


def gaussian(numbers: Tensor) -> Gaussian:
    """Means and log-scales, which stay within a limit, of a net's outputs [..., 2 latent]."""
    mean, raw = numbers.chunk(2, -1)
    return mean, LIMIT * (raw / LIMIT).tanh()


def _copies(rows: Tensor, k: int) -> Tensor:
    """k of each row: [N, ...] -> [N k, ...]."""
    return rows if k == 1 else rows.repeat_interleave(k, 0)


def _at(line: Tensor, places: Tensor) -> Tensor:
    """The steps of each row of line [N, T, ...] at places [N, B]; all false, or the last one, beyond."""
    found = line[torch.arange(len(line), device=line.device)[:, None], places.clamp(max=line.shape[1] - 1)]
    return found & (places < line.shape[1]) if line.dtype == torch.bool else found


def _total(steps: Tensor) -> Tensor:
    """[N, K] of [N, K, T], in float64."""
    return steps.sum(2, dtype=torch.float64)


def _mean(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of k draws [N, k], and its standard error [N]."""
    return draws.mean(1), draws.std(1) / math.sqrt(draws.shape[1])

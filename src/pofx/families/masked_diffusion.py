"""Discrete diffusion: a net that looks both ways fills in what noise has hidden, or replaced (``paths.discrete``).

    log p(x) = log P(length) + log p(x | length)

The length of a text has a distribution of its own; that of an excerpt is given, as are all others. One net answers for
several models, and each number says whose it is:

    request             kind         of the sampler that ...
    vlb                 LowerBound   reveals value after value in an order by lot
    vlb, T steps        LowerBound   goes back in T steps, ``ancestral`` (what one step reveals is independent)
    any-order           LowerBound   reveals value after value in an order by lot
    in-order            Exact        reveals value after value in that order
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pofx.codecs.windows import READ, halves, windows_over
from pofx.core.abilities import Completes
from pofx.core.errors import UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, TrainingSet
from pofx.core.likelihood import Available, Exact, LowerBound
from pofx.core.noise import RowNoise
from pofx.core.options import at_least
from pofx.core.requests import Ancestral, AnyOrder, InOrder, Request, Sampler, StepByStep, Unmasking, VariationalBound
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, ContextOptions
from pofx.nn.encoders import Encoded, no_encoder, told, vector
from pofx.nn.heads import pick, uniform
from pofx.nn.masked import Fields, Lengths, Masked, Strings
from pofx.nn.sites import ImageKind, has_heads, heads_for, mixes
from pofx.nn.transformer import Shape, learned
from pofx.paths.discrete import (
    bayes,
    evenly,
    go_back,
    hidden_draw,
    in_order,
    levels,
    replaced_draw,
    reveal,
    stages,
)
from pofx.paths.likelihood import stratified

WAVES = 8  # numbers that tell a net the noise
Piece: TypeAlias = tuple[Tensor, Tensor]  # values [N, L] of a window, and which of them it is about


@dataclass(frozen=True)
class MaskedDiffusionConfig(ContextOptions, Shape):
    """Options of ``masked-diffusion``, beside those of its transformer (whose ``hidden`` is inside each layer).

    Attributes:
        process: noise hides values ("absorbing"), or replaces them by any others ("uniform").
        schedule: noise of the steps of samplers and of bounds: even, or small steps where data emerge ("cosine").
        net: of data of one size: an MLP over all values at once, or a transformer over them one by one; "auto" is mlp.
        inner_width: of that MLP.
        inner_blocks: its residual blocks.
        head: of image levels: bernoulli, categorical, logistic (a mixture of discretised logistics), or auto.
        components: of each mixture (of Gaussians for reals, of logistics for grids and levels).
        atoms: the most frequent values that an integer or step column may have as point atoms.
        sample_steps: of the sampler.
        draws: of the bounds, per datum.
    """

    process: Literal["absorbing", "uniform"] = "absorbing"
    schedule: Literal["linear", "cosine"] = "linear"
    net: Literal["auto", "mlp", "transformer"] = "auto"
    inner_width: int = 256
    inner_blocks: int = 2
    head: ImageKind = "auto"
    components: int = 8
    atoms: int = 64
    sample_steps: int = 64
    draws: int = 16

    ranges = {"draws": at_least(2)}


class MaskedDiffusion(Conditioned, Completes):
    name = "masked-diffusion"
    summary = "a net fills in hidden symbols, columns or pixels, a few at a time, in any order"
    taxonomy = "explicit density / approximate / diffusion"
    paper = "Sahoo, Arriola, Schiff, Gokaslan, Marroquin, Chiu, Rush & Kuleshov 2024, Simple masked diffusion"
    estimators: ClassVar[tuple[type[Request], ...]] = (VariationalBound, InOrder, AnyOrder)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (Ancestral, Unmasking, StepByStep)
    Config = MaskedDiffusionConfig
    config: MaskedDiffusionConfig

    def __init__(self, config: MaskedDiffusionConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.text, self.noisy = space.alphabet is not None, config.process == "uniform"
        known = self.known + (WAVES if self.noisy else 0)
        self.net: Masked
        if space.alphabet is not None:
            self.block = config.block
            self.net = Strings(space.symbols or 0, config, known, self.memory)
        else:
            heads = heads_for(space, image=config.head, components=config.components, slots=config.atoms)
            shape = config if self.attends else None
            self.block = heads.sites
            self.net = Fields(heads, space.symbols, shape, known, self.memory, config.inner_width, config.inner_blocks)
        self.lengths = Lengths(self.block, self.known) if space.has_eos else None

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: MaskedDiffusionConfig) -> str | None:
        if reason := no_encoder(context):
            return reason
        if space.alphabet is not None:
            if config.net == "mlp":
                return "an MLP takes values of one number. Leave net at auto."
            if space.has_eos and space.length > config.block:
                return f"its texts are up to {space.length} long, more than the block of {config.block}. Give a larger."
            return None
        if reason := free_length(space):
            return reason
        if not has_heads(space):
            return f"there is no head for {space}."
        if config.process == "uniform" and space.symbols is None:
            return f"only values of one alphabet can replace each other, not those of {space}. Use process=absorbing."
        if config.head == "bernoulli" and space.pixels and space.symbols != 2:
            return f"a Bernoulli head holds 2 levels, not {space.symbols}. Leave out head."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield "window"  # attention sees all
        text, attends = space.alphabet is not None, config.net == "transformer"
        if text:
            yield from ("net", "theta") if learned(config) else ("net",)
        elif attends:
            yield from ("block", "positions", "theta")  # a site is known by its place
        else:
            yield from (f.name for f in dataclasses.fields(Shape))
        if text or attends:
            yield from ("inner_width", "inner_blocks")
        if not space.pixels:
            yield "head"
        if not mixes(space, config.head):
            yield "components"
        if all(getattr(c, "step", None) is None for c in space.columns):
            yield "atoms"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        small = serving(cls, space, width=32, layers=1, n_heads=2, block=32, inner_width=64, components=4, atoms=16)
        return dataclasses.replace(small, sample_steps=16, draws=6)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        tiny, found = cls.tiny(space), {}
        if space.symbols is not None:
            found["uniform"] = dataclasses.replace(tiny, process="uniform")
        if space.alphabet is None:
            found["transformer"] = dataclasses.replace(
                tiny, net="transformer", inner_width=256, width=16, layers=1, n_heads=2
            )
        return found

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        if space.alphabet is None:
            return Recipe(batch=128, lr=2e-3, weight_decay=1e-2, clip=1.0, ema=0.998)
        return Recipe(
            batch=12, optimizer="muon", lr=5e-3, schedule="linear", warmup=20,
            weight_decay=0.1, betas=(0.9, 0.99), clip=1.0, ema=0.99,
        )  # fmt: skip

    # -- the parts ------------------------------------------------------------------------------------------

    @property
    def attends(self) -> bool:
        return self.space.alphabet is not None or self.config.net == "transformer"

    @property
    def cut(self) -> bool:
        """Are data longer than the block?"""
        return self.text and self.space.length > self.block

    @property
    def shift(self) -> int:
        """How far a window moves over long data, the rest given. (Of uniform noise no net can tell that: none is.)"""
        return self.block if self.noisy else max(1, self.block // 2)

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        some = x[torch.randperm(len(x), generator=generator)[:5000]] if self.text else x
        self.net.prepare(self.values(some), None if self.text else weight)
        if self.lengths is not None:
            self.lengths.prepare(torch.cat([self.space.lengths(x[i : i + READ]) for i in range(0, len(x), READ)]))

    def values(self, x: Tensor) -> Tensor:
        """Data [N, *E] as values of sites [N, L]."""
        return x if self.text else x.reshape(len(x), -1)

    def data(self, values: Tensor) -> Tensor:
        """The inverse."""
        return values if self.text else values.to(self.space.dtype).reshape(len(values), *self.space.event_shape)

    def inside(self, values: Tensor) -> Tensor:
        return values >= 0 if self.text else torch.ones_like(values, dtype=torch.bool)

    def pieces(self, values: Tensor) -> Iterator[Piece]:
        for start, first, stop in halves(values.shape[1], self.block, self.shift):
            window = values[:, start:stop]
            after = torch.arange(start, stop, device=values.device) >= first
            yield window, self.inside(window) & after

    def outputs(self, values: Tensor, seen: Tensor, h: Encoded | None, m: Tensor | None = None) -> Tensor:
        """What the net says of values [N, L] of which some are seen; of noisy ones at m [N]."""
        known = vector(h)
        if m is not None:
            waves = (math.pi * m[:, None].to(torch.get_default_dtype()) * torch.arange(WAVES, device=m.device)).cos()
            known = waves if known is None else torch.cat([known, waves], 1)
        return self.net(values, seen, known, *told(h))

    def posterior(self, z: Tensor, m: Tensor, h: Encoded | None) -> Tensor:
        """log p(x | z) [N, L, V] of noisy values z [N, L] at m [N]."""
        return bayes(self.net.logits(self.outputs(z, self.inside(z), h, m)), z.clamp(min=0), m)

    # -- training -------------------------------------------------------------------------------------------

    def training_set(self, x: Any) -> TrainingSet:
        """Data as they are, or windows over excerpts that are longer than the block."""
        if not self.cut:
            return super().training_set(x)
        return windows_over(x, lambda rows: rows[rows >= 0], -1, -2, torch.int16, self.block)

    def learner(self, recipe: Recipe) -> Learner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            h, values = self.batch_context(batch, generator), self.values(batch.x)
            free = self.inside(values)
            if self.cut:
                values = self._some(values[:, 1:], batch, generator)
                free = self.inside(values)
                if not self.noisy:  # half of all windows are given a beginning
                    given = (2 * batch.rand(generator=generator) - 1) * free.sum(1)
                    free = free & (torch.arange(free.shape[1], device=free.device) >= given[:, None].long())
            n, width = values.shape
            shift = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).to(values.device)
            u = (batch.start + torch.arange(n, device=values.device) + shift) / max(batch.total, n)  # stratified

            def rand() -> Tensor:
                return batch.rand(width, generator=generator)

            loss = -self.draw_of_bound(values, free, h, u, None, rand)
            if self.lengths is not None:
                loss = loss - self.lengths(free.sum(1), vector(h))
            return {"loss": loss / min(self.block, self.space.length) if self.text else loss}

        muon = (m.weight for m in self.net.net.modules() if isinstance(m, nn.Linear)) if self.attends else ()  # type: ignore[union-attr]
        return GradientLearner(self, recipe, objective, muon)

    @staticmethod
    def _some(values: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Windows [N, L] up to an end within, behind which other data are; one in eight shorter, as some data are."""
        most = (8 * batch.rand(generator=generator)).clamp(max=1) * values.shape[1]
        short = torch.arange(values.shape[1], device=values.device) >= most[:, None]
        return values.masked_fill(short | (values < 0).cummax(1).values, -1)

    def draw_of_bound(
        self, values: Tensor, free: Tensor, h: Encoded | None, u: Tensor, steps: int | None,
        rand: Callable[[], Tensor],
    ) -> Tensor:  # fmt: skip
        """One draw [N] of the bound on log p of the free values [N, L]; u [N], ``rand()`` [N, L] uniform on [0, 1)."""
        grid = None if steps is None else levels(self.config.schedule, steps).to(u.device)
        if not self.noisy:
            return hidden_draw(self._told(values, h), free, u, grid, rand)
        x, size = values.long(), self.net.size or 0
        return replaced_draw(lambda z, m: self.posterior(z, m, h), x, free, u, grid, size, rand)

    def _told(self, values: Tensor, h: Encoded | None) -> Callable[[Tensor], Tensor]:
        """log p [N, L] of every value when these [N, L] are hidden."""
        inside = self.inside(values)
        return lambda hidden: self.net.log_prob(self.outputs(values, inside & ~hidden, h), values)

    # -- likelihood -----------------------------------------------------------------------------------------

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return asked in (VariationalBound, Ancestral) or not (self.noisy or (asked is StepByStep and not self.text))

    def quick_request(self) -> Request:
        return VariationalBound(draws=4)

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        return Ancestral(self.config.sample_steps) if kind in (None, Ancestral) else kind()

    def rows_per_pass(self) -> int:
        """About 2^24 numbers of the widest layer."""
        each = 8 * self.config.width * self.block if self.attends else 4 * self.config.inner_width + 4 * self.block
        each = max(each, self.block * (self.net.size or 1) * (8 if self.noisy else 1))
        return max(1, min(1024, 2**24 // each))

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise) -> Available:
        nats = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        square = torch.zeros_like(nats)
        if self.lengths is not None:
            nats = nats + self.lengths(self.space.lengths(x), vector(c))
        for window, free in self.pieces(self.values(x)):
            found, se = self.of_piece(window, free, c, request, noise)
            nats, square = nats + found, square + se**2
        if isinstance(request, InOrder):
            return Exact(nats, self.space.measure)
        draws = request.draws + (request.draws % 2 if isinstance(request, VariationalBound) else 0)
        return LowerBound(nats, self.space.measure, square.sqrt().detach(), draws)

    def of_piece(
        self, window: Tensor, free: Tensor, h: Encoded | None, request: Any, noise: RowNoise
    ) -> tuple[Tensor, Tensor]:
        """log p [N] of the free values of a window, and its error; a row's noise is as wide as the block."""
        width, log_p = window.shape[1], self._told(window, h)

        def rand() -> Tensor:
            return noise.rand(self.block)[:, :width]

        if isinstance(request, VariationalBound):

            def draw(u: Tensor) -> Tensor:
                return self.draw_of_bound(window, free, h, u, request.steps, rand)

            return stratified(draw, request.draws, noise)
        if isinstance(request, InOrder):
            place = torch.arange(width, device=window.device).expand(free.shape).double()
            return in_order(log_p, free, place if request.order == "raster" else -place), torch.zeros(())
        each = torch.stack([in_order(log_p, free, rand()) for _ in range(request.draws)])
        nats = each.logsumexp(0) - math.log(request.draws)
        return nats, (each - nats).exp().std(0) / math.sqrt(request.draws)  # of a logarithm: the relative error

    # -- samples --------------------------------------------------------------------------------------------

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        if getattr(sampler, "guidance", None) is not None or getattr(sampler, "grid", "schedule") != "schedule":
            raise UsageError(f"{self.name} goes back along its schedule, unguided.", "Leave out grid and guidance.")
        most = (getattr(sampler, "length", None) or self.space.length) if self.text else self.block
        lengths = torch.full((n,), most, device=self.device)
        if self.lengths is not None:
            lengths = pick(self.lengths.log_p(n, vector(c)), generator).clamp(max=most)
        width = max(1, int(lengths.max()))
        values = torch.zeros(n, width, dtype=torch.int64 if self.text else torch.float64, device=self.device)
        values[torch.arange(width, device=self.device) >= lengths[:, None]] = -1
        return self.data(self._filled(values, torch.zeros_like(values, dtype=torch.bool), c, sampler, generator))

    def rows_complete(self, x: Tensor, known: Tensor, c: Encoded | None, generator: torch.Generator) -> Tensor:
        """Given all that is known, wherever it is; the length, too."""
        values = self.values(x)
        values = values if self.text else values.double()
        return self.data(self._filled(values, known.reshape(values.shape), c, self.default_sampler(), generator))

    def _filled(
        self, values: Tensor, known: Tensor, h: Encoded | None, sampler: Any, generator: torch.Generator
    ) -> Tensor:
        """Values [N, L] with those inside that are not known drawn, window by window."""
        values = values.clone()
        for start, first, stop in halves(values.shape[1], self.block, self.shift):
            window, seen = values[:, start:stop], known[:, start:stop].clone()
            seen[:, : first - start] = True
            free = self.inside(window) & ~seen
            drawn = (self._replace if self.noisy else self._reveal)(window, free, h, sampler, generator)
            values[:, start:stop] = drawn.to(values)
        return values

    def _reveal(self, values: Tensor, free: Tensor, h: Encoded | None, sampler: Any, generator: Any) -> Tensor:
        """The free values [N, L] drawn, step after step."""
        lot = uniform(torch.empty(free.shape, device=free.device), generator)
        rule = getattr(sampler, "order", "raster")
        if isinstance(sampler, Ancestral):
            stage = stages(lot, levels(self.config.schedule, sampler.steps).to(lot.device))
        else:
            place = torch.arange(free.shape[1], device=free.device).expand(free.shape).float()
            order, steps = place if rule == "raster" else lot, getattr(sampler, "steps", None) or free.shape[1]
            stage = evenly(order, free, steps)

        def draw(some: Tensor, seen: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            y = self.outputs(some, seen, None if h is None else h[rows])
            drawn = self._drawn(y, sampler, generator).to(some)
            return drawn, self.net.log_prob(y, drawn)

        return reveal(draw, values, self.inside(values) & ~free, free, stage, surest=rule == "confidence")

    def _drawn(self, y: Tensor, sampler: Any, generator: torch.Generator) -> Tensor:
        temperature = getattr(sampler, "temperature", None)
        if temperature is None:
            return self.net.sample(y, generator)
        if self.net.size is None:
            raise UsageError(f"A temperature is of symbols, not of {self.space}.", "Leave out temperature.")
        return pick(self.net.logits(y) / temperature, generator)

    def _replace(self, values: Tensor, free: Tensor, h: Encoded | None, sampler: Any, generator: Any) -> Tensor:
        """The free values [N, L] drawn by steps back from uniform noise."""
        grid = levels(self.config.schedule, sampler.steps).to(values.device)
        return go_back(lambda z, m: self.posterior(z, m, h), values.long(), free, grid, self.net.size or 0, generator)

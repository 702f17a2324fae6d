"""One transformer over both parts of a pair, in either order: the joint, both marginals, both conditionals.

    log p(a, b) = log p(a) + log p(b | a)   in one order,   log p(b) + log p(a | b)   in the other

A pair is a sequence of two segments (``codecs.segment``): the symbols of a text and the patches of an image, say, each
kind with its own ends of the net, after a learned mark that says which part begins, and whether it comes first. Half of
the training rows go each way, so the same weights learn four distributions (Kim et al. 2022, of texts and codes of
images). Given one part, the other is drawn or evaluated exactly as in the order that begins with the given one; alone,
a part is the first segment.

Nothing makes the two orders agree but the data. The model's own answer tosses which one it is, log (p_ab + p_ba) / 2,
a density of its own that is exact; each order by itself is asked for by ``ByChainRule``, and how far they are apart on
held-out pairs tells how far the four distributions are from being those of one joint.

A text has at most as many symbols as the pair's space says, so after the last one its end is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pofx.codecs.segment import Segment, segment
from pofx.codecs.steps import Patches
from pofx.core.abilities import HasParts, PartName
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.likelihood import Exact, Likelihood, LowerBound
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT
from pofx.core.requests import ByChainRule, Direct, ExactLikelihood, Request, Sampler, VariationalBound
from pofx.core.space import Space, filled_up
from pofx.nn.emission import START
from pofx.nn.sequence import Cache
from pofx.nn.transformer import Shape, Transformer
from pofx.paths.head import DiffusionHead
from pofx.paths.likelihood import stratified

LOOK = 500  # training rows that are looked at before training
NAMES: tuple[PartName, PartName] = ("a", "b")


@dataclass(frozen=True)
class JointGptConfig(Shape):
    """Options of ``joint-gpt``, beside those of its transformer (whose block is what a pair takes).

    Attributes:
        patch: side of an image's patch in pixels; 1 for pixels, 0 for the largest of 4, 3, 2, 1 that divides both
            sides.
        image_head: of patches: their levels one after the other, exactly, or all at once by a diffusion whose
            likelihood is a bound (Li et al. 2024).
        components: of each mixture that a number's distribution is.
        inner_width: of the MLP inside a step of several values: a masked one, or that of the diffusion.
        inner_layers: hidden layers, or residual blocks, of that MLP.
        draws: per datum, of the diffusion's bound.
        sample_steps: of the diffusion's sampler.
    """

    patch: int = 0
    image_head: Literal["levels", "diffusion"] = "levels"
    components: int = 8
    inner_width: int = 256
    inner_layers: int = 2
    draws: int = 32
    sample_steps: int = 50

    ranges = {"patch": AMOUNT}


class JointGpt(Model, HasParts):
    name = "joint-gpt"
    summary = "one transformer goes through both parts of a pair in either order, and so knows each given the other"
    taxonomy = "explicit density / tractable / autoregressive"
    paper = "Kim et al. 2022, L-Verse: Bidirectional generation between image and text"
    estimators = (ExactLikelihood, ByChainRule, VariationalBound)
    samplers = (Direct,)
    Config = JointGptConfig
    config: JointGptConfig

    def __init__(self, config: JointGptConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.ends = nn.ModuleList(Ends(self._segment(k), config, s) for k, s in enumerate(self._spaces))
        self.net = Transformer(config, sum(1 + self._segment(k).steps for k in range(2)))

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: JointGptConfig) -> str | None:
        if space.parts is None:
            return "it goes through both parts of a pair. Make pairs of x and what is given: --joint."
        if context is not None:
            return "it takes no context beside the pair. Leave out the context."
        if config.image_head == "diffusion" and not any(part.pixels for part in space.parts):
            return "image_head=diffusion is for pairs with an image. Leave it out."
        reasons = (found for part in space.parts if isinstance(found := segment(part, config), str))
        return next(reasons, None)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield "block"  # what a pair takes
        used = {o for part in space.parts or () if isinstance(s := segment(part, config), Segment) for o in s.options}
        yield from (name for name in ("patch", "components", "inner_width", "inner_layers") if name not in used)
        yield from () if config.image_head == "diffusion" else ("draws", "sample_steps")
        yield from () if any(part.pixels for part in space.parts or ()) else ("image_head",)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, width=32, layers=2, n_heads=2, components=4, inner_width=32)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if not any(part.pixels for part in space.parts or ()):
            return {}
        return {"diffusion": replace(cls.tiny(space), image_head="diffusion", components=8, draws=16, sample_steps=20)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(  # half of a batch goes either way
            batch=64, optimizer="muon", lr=5e-3, schedule="linear", warmup=20,
            weight_decay=0.1, betas=(0.9, 0.99), clip=1.0, ema=0.99,
        )  # fmt: skip

    @property
    def _spaces(self) -> tuple[Space, Space]:
        assert self.space.parts is not None
        return self.space.parts

    def _segment(self, k: int) -> Segment:
        found = segment(self._spaces[k], self.config)
        assert isinstance(found, Segment)
        return found

    def _both(self, x: Tensor) -> list[Tensor]:
        """Pairs x [N, D] as the steps of either part."""
        split: Any = self.space
        return [end.steps_of(v) for end, v in zip(self._ends, split.split(x), strict=True)]

    @property
    def _ends(self) -> list[Ends]:
        return [end for end in self.ends if isinstance(end, Ends)]

    # -- training -------------------------------------------------------------------------------------------

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        split: Any = self.space
        some = x[torch.randperm(len(x), generator=generator)[:LOOK]]
        for end, v in zip(self._ends, split.split(some), strict=True):
            end.prepare(v, generator)

    def learner(self, recipe: Recipe) -> Learner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            u, loss = self._both(batch.x), torch.zeros(len(batch.x), device=batch.x.device)
            noise = [end.noise(batch, generator) for end in self._ends]
            # every other row goes the other way, and the next time it may be its turn
            order = (batch.start + batch.step + torch.arange(len(loss), device=loss.device)) % 2
            for first in (0, 1):
                rows = (order == first).nonzero()[:, 0]
                if not len(rows):
                    continue
                some = [v[rows] for v in u]
                for end, y, steps, drawn in zip(self._ends, self._outputs(first, some), some, noise, strict=True):
                    loss = loss.index_add(0, rows, end.loss(y, steps, [v[rows] for v in drawn]).to(loss))
            return {"loss": loss}

        return GradientLearner(self, recipe, objective, self.net.matrices())

    # -- likelihood -----------------------------------------------------------------------------------------

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return issubclass(asked, Sampler) or (asked is VariationalBound) == any(end.diffuses for end in self._ends)

    def quick_request(self) -> Request:
        request = self.default_request()
        return VariationalBound(draws=4) if isinstance(request, VariationalBound) else request

    def part_estimators(self, part: PartName) -> tuple[type[Request], ...]:
        return (VariationalBound if self._ends[NAMES.index(part)].diffuses else ExactLikelihood,)

    def _outputs(self, first: int, u: list[Tensor]) -> list[Tensor]:
        """The net's outputs for the steps of part 0 and of part 1 [N, L, width], of which ``first`` comes first."""
        one, other = self._ends[first], self._ends[1 - first]
        y = self.net(torch.cat([one.inputs(u[first], 0), other.inputs(u[1 - first], 1)[:, :-1]], 1))
        return [y[:, : one.steps], y[:, 1 + one.steps :]][:: 1 - 2 * first]

    def rows_log_prob(self, x: Tensor, c: None, request: Request, noise: RowNoise) -> Likelihood:
        """Of both orders the exact mixture; of bounds their mean, which is below it (the logarithm is concave)."""
        u, measure = self._both(x), self.space.measure
        orders = [NAMES.index(request.first)] if isinstance(request, ByChainRule) else [0, 1]
        found = []
        for first in orders:
            y = self._outputs(first, u)
            found.append(self._sum([(end, y[k], u[k]) for k, end in enumerate(self._ends)], request, noise))
        each = torch.stack([nats for nats, _ in found])
        if not isinstance(request, VariationalBound):
            return Exact(each.logsumexp(0) - math.log(len(orders)), measure)
        se = torch.stack([se for _, se in found]).square().sum(0).sqrt() / 2
        return LowerBound(each.mean(0), measure, se, request.draws + request.draws % 2)

    def rows_part_log_prob(
        self, part: PartName, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise
    ) -> Likelihood:
        k = NAMES.index(part)
        end, measure = self._ends[k], self._spaces[k].measure
        u = end.steps_of(x)
        if c is None:
            y = self.net(end.inputs(u, 0)[:, :-1])
        else:
            both = {k: u, 1 - k: self._ends[1 - k].steps_of(c)}
            y = self._outputs(1 - k, [both[0], both[1]])[k]
        nats, se = self._sum([(end, y, u)], request, noise)
        if isinstance(request, VariationalBound):
            return LowerBound(nats, measure, se, request.draws + request.draws % 2)
        return Exact(nats, measure)

    def _sum(self, parts: list[tuple[Ends, Tensor, Tensor]], request: Any, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """log p [N] of the parts' steps by the outputs for them, or a bound, and the Monte Carlo error of that."""
        exact = [end.log_prob(y, u) for end, y, u in parts if not end.diffuses]
        nats = torch.stack(exact).sum(0) if exact else torch.zeros((), dtype=torch.float64)
        drawn = [(head, y, u) for end, y, u in parts if isinstance(head := end.emission, DiffusionHead)]
        if not drawn:
            return nats, torch.zeros_like(nats)

        def draw(at: Tensor) -> Tensor:
            return torch.stack([head.bound(y, u, at, noise, request.steps) for head, y, u in drawn]).sum(0)

        mean, se = stratified(draw, request.draws, noise)
        return nats + mean, se

    # -- samples --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def rows_sample(self, n: int, c: None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        order = torch.randint(2, (n,), generator=generator, device=generator.device).to(self.device)
        pairs: Any = self.space
        out = torch.empty(n, *self.space.event_shape, dtype=self.space.dtype, device=self.device)
        for first in order.unique().tolist():
            rows = (order == first).nonzero()[:, 0]
            cache = self._cache(len(rows))
            drawn = {
                k: self._ends[k].drawn(cache, len(rows), place, generator) for place, k in enumerate((first, 1 - first))
            }
            out[rows] = pairs.join(*(self._ends[k].codec.decode(drawn[k]) for k in (0, 1)))
        return out

    @torch.inference_mode()
    def rows_part_sample(self, part: PartName, n: int, c: Tensor | None, generator: torch.Generator) -> Tensor:
        k, cache = NAMES.index(part), self._cache(n)
        if c is not None:
            other = self._ends[1 - k]
            cache.extend(other.inputs(other.steps_of(c), 0))
        return self._ends[k].codec.decode(self._ends[k].drawn(cache, n, int(c is not None), generator))

    def _cache(self, n: int) -> Cache:
        return self.net.cache(n, self.net.shape.block)

    def rows_per_pass(self) -> int:
        """About 2^24 numbers of the widest layer."""
        return max(1, min(1024, 2**24 // (8 * self.config.width * self.net.shape.block)))

    def rows_per_draw(self) -> int:
        """A step of many rows costs little more than one of few: the cache alone is a limit."""
        return 512


class Ends(nn.Module):
    """How one part of a pair enters and leaves the net: 1 + L inputs, of which the first says that it begins.

    Shorter data are filled up to L steps with their end, which the other part may look at, but nobody pays for.
    """

    def __init__(self, of: Segment, config: JointGptConfig, space: Space) -> None:
        super().__init__()
        self.steps, self.space = of.steps, space
        self.codec = of.codec(config)
        self.emission: Any
        if config.image_head == "diffusion" and space.pixels:
            assert isinstance(self.codec, Patches)
            self.emission = DiffusionHead(
                self.codec.each, self.codec.space.levels, config.width, hidden=config.inner_width,
                blocks=config.inner_layers, steps=config.sample_steps,
            )  # fmt: skip
        else:
            self.emission = of.emission(config)
        self.begin = nn.Parameter(START * torch.randn(2, config.width))  # as the first part, as the second
        self.place = nn.Parameter(START * torch.randn(of.steps, config.width))

    def prepare(self, x: Tensor, generator: torch.Generator) -> None:
        self.codec.prepare(x, generator)
        u = self.codec.encode(x)
        self.emission.prepare(u[~self.emission.filled(u)], ends=len(u) if self.space.has_eos else 0)

    def steps_of(self, x: Tensor) -> Tensor:
        """Data [N, *E] as steps [N, L, ...], all as many as the longest has."""
        return self.codec.encode(filled_up(self.space, x))

    def inputs(self, u: Tensor, second: int) -> Tensor:
        """[N, 1 + L, width], as the first part (0) or the second (1)."""
        return torch.cat([self.begin[second].expand(len(u), 1, -1), self.emission.embed(u) + self.place], 1)

    @property
    def diffuses(self) -> bool:
        return isinstance(self.emission, DiffusionHead)

    def noise(self, batch: Batch, generator: torch.Generator) -> list[Tensor]:
        """Of a training batch, what ``loss`` draws from [B, L, ...]."""
        if not isinstance(head := self.emission, DiffusionHead):
            return []
        size = (self.steps, head.sites)
        cell, at = batch.rand(*size, generator=generator), batch.rand(self.steps, generator=generator)
        return [cell, at, batch.randn(*size, generator=generator)]

    def loss(self, y: Tensor, u: Tensor, noise: list[Tensor]) -> Tensor:
        """What is lowered [N], in nats: minus log p of steps u, or what a bound on it has that can be learned."""
        if isinstance(head := self.emission, DiffusionHead):
            return head.loss(y, u, *noise).sum(1)
        return -self.log_prob(y, u)

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        """log p [N] of steps u, from the outputs y [N, L, width] at the beginning and at all steps but the last."""
        log_p, filled = self.emission.log_prob(y, u), self.emission.filled(u)
        return log_p.masked_fill(filled.cumsum(1) > 1, 0.0).sum(1, dtype=torch.float64)  # the first fill is the end

    def drawn(self, cache: Cache, n: int, second: int, generator: torch.Generator) -> Tensor:
        """Steps [n, L, ...] after what the cache holds, which then holds them, too."""
        over = torch.zeros(n, 1, dtype=torch.bool, device=self.place.device)
        y, u = cache.step(self.begin[second].expand(n, -1)), self.emission.beginning(n)
        for place in self.place:
            step = self.emission.sample(y, generator)[:, None]
            over = over | self.emission.filled(step)
            step = torch.where(over if step.ndim == 2 else over[..., None], self.emission.fill, step)
            u = torch.cat([u, step], 1)
            y = cache.step((self.emission.embed(step) + place)[:, 0])
        return u[:, 1:]

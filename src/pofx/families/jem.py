"""A classifier that is an energy-based model: its logits g_y(x) tilt a Gaussian, one for each class (JEM).

    p(x, y) = exp(g_y(x)) N(x; 0, I) / Z,    p(x) = sum_y p(x, y),    p(y | x) = softmax_y g(x),
    p(x | y) = exp(g_y(x)) N(x; 0, I) / Z(y)

(Grathwohl et al. 2020, eq. 5 to 8). It learns log p(y | x) + log p(x): the first by its own gradient, the second by
contrastive divergence over chains of p(x) that are kept (section 4). p(x) is what it says given no context.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.abilities import Classifies
from pofx.core.family import serving
from pofx.core.learner import Learner, Recipe
from pofx.core.likelihood import Exact, Likelihood
from pofx.core.options import AMOUNT
from pofx.core.space import Space
from pofx.families.conditioned import idle_of_contexts
from pofx.families.contrastive import ContrastiveLearner
from pofx.families.energies import EnergyOptions, Tilted
from pofx.nn.mlp import Mlp


@dataclass(frozen=True)
class JemConfig(EnergyOptions):
    """Options of JEM.

    Attributes:
        blocks: residual blocks, of the MLP or per level of the conv net.
        generative: weight of log p(x) beside log p(y | x); 0: a classifier.
    """

    hidden: int = 128
    blocks: int = 2
    generative: float = 1.0

    ranges = {"generative": AMOUNT}


class Jem(Tilted, Classifies):
    name: ClassVar[str] = "jem"
    summary: ClassVar[str] = "a classifier whose logits are an energy of data and classes"
    taxonomy: ClassVar[str] = "explicit density / approximate / energy-based"
    paper: ClassVar[str] = "Grathwohl et al. 2020"
    Config = JemConfig
    config: JemConfig

    def __init__(self, config: JemConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.context_encoder = None  # a class is no context of the net, but one of what it gives
        assert context is not None
        self.classes = len(context.values)
        self.net = config.analysis(self.shape, self.classes, 0)
        if isinstance(self.net, Mlp):
            self.net.last.reset_parameters()  # at zero, its chains would learn nothing of the layers before

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: JemConfig) -> str | None:
        if context is None or not context.values:
            return "it models data and their classes: name their column (label=COLUMN), and give it (--given label)."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield from idle_of_contexts(None)  # no net is told a class, and it knows p(x) without
        if not config.generative:
            yield from ("steps", "buffer", "restart", "step_size", "magnitude")

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, hidden=32, blocks=1, channels=8, steps=3, step_size=0.4, buffer=400, warmup=50, temperatures=10
        )

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, betas=(0.5, 0.999), warmup=50, ema=0.995, epochs=50)

    def learner(self, recipe: Recipe) -> Learner:
        return ContrastiveLearner(self, recipe, persistent=True)

    def validated(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        """log p(y | x), the part of what it learns that is known exactly."""
        assert c is not None
        every = self.given(null=True).classify(x)
        return Exact(every.nats.gather(1, c.long()[:, None])[:, 0], every.measure)

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Any:
        """The class [N], or of those dropped the number behind the last, which stands for any."""
        return c if dropped is None else torch.where(dropped, self.classes, c)

    def null_context(self, n: int) -> Any:
        return torch.full((n,), self.classes, device=self.device)

    def logits(self, y: Tensor) -> Tensor:
        """[C, K] of y [C, d]"""
        return self.net(y.unflatten(1, self.shape))

    def tilt(self, y: Tensor, h: Tensor) -> Tensor:
        g = self.logits(y)
        every = torch.cat([g, g.logsumexp(1, keepdim=True)], 1)
        return every.gather(1, h[:, None])[:, 0]

    def moved(self, y: Tensor, h: Tensor, noise: Any) -> Tensor:
        return super().moved(y, torch.full_like(h, self.classes), noise) if self.config.generative else y

    def contrast(self, data: Tensor, h: Tensor, y: Tensor, given: Tensor) -> dict[str, Tensor]:
        g = self.logits(data)
        wrong, loss = (g.argmax(1) != h).float(), F.cross_entropy(g, h, reduction="none")
        terms = {"cross_entropy": loss.detach(), "errors": wrong}
        if not self.config.generative:
            return {"loss": loss} | terms
        real, drawn = g.logsumexp(1), self.logits(y).logsumexp(1)
        energy = drawn - real + self.config.magnitude * (drawn.square() + real.square())
        return {"loss": loss + self.config.generative * energy, "gap": (real - drawn).detach()} | terms

    def rows_classify(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.logits(self.states(x, None)[0]).double(), 1)

"""The discriminative row of the contract: p(y | x) of a label y given an image or a table row x.

Nothing here is special: the space is ``Label``, the context is what the other families model, and the
likelihood is exact. It says what the label costs once x is known, and nothing about p(x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.abilities import ClassesAtOnce
from pofx.core.learner import Batch, GradientLearner, Recipe
from pofx.core.likelihood import Exact, Likelihood, per_row
from pofx.core.noise import RowNoise
from pofx.core.options import BELOW_ONE
from pofx.core.requests import ExactLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, ContextOptions
from pofx.nn.encoders import Encoded, no_encoder
from pofx.nn.mlp import Mlp


@dataclass(frozen=True)
class ClassifierConfig(ContextOptions):
    """Options of ``classifier``."""

    width: int = 128
    """numbers that the encoder (a ConvNet for images, one linear map for tables) hands to the MLP."""
    hidden: int = 128
    """width of the MLP's residual stream."""
    blocks: int = 2
    """residual blocks of the MLP."""
    smoothing: float = 0.01
    """label smoothing: the share of probability that training spreads over all classes."""

    ranges = {"smoothing": BELOW_ONE}


class Classifier(Conditioned, ClassesAtOnce):
    """Encoder -> MLP -> softmax: log p(y | x) is the log-softmax, exact."""

    name = "classifier"
    summary = "a ConvNet or MLP gives the probability of each class given the rest"
    taxonomy = "conditional / discriminative"
    paper = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood,)
    Config = ClassifierConfig

    def __init__(self, config: ClassifierConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context, width=config.width)
        self.mlp = Mlp(config.width, len(space.values), hidden=config.hidden, blocks=config.blocks)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not space.values:
            return "it models a label; say which with --target (a column, or 'label')."
        if context is None or context.values:
            return "it needs a table or images to tell the label from; load with --target."
        return None

    @classmethod
    def tiny(cls, space: Space) -> ClassifierConfig:
        return ClassifierConfig(width=32, hidden=32, blocks=1)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, weight_decay=0.05, epochs=20, ema=0.99)

    def logits(self, c: Encoded | None) -> Tensor:
        """Unnormalised log-probabilities [N, K] of the classes."""
        assert c is not None
        return self.mlp(c.vector)

    def learner(self, recipe: Recipe) -> GradientLearner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            logits = self.logits(self.batch_context(batch, generator))
            smooth = F.cross_entropy(logits, batch.x, reduction="none", label_smoothing=self.config.smoothing)
            wrong = (logits.argmax(-1) != batch.x).float()
            return {"loss": smooth, "errors": wrong}

        return GradientLearner(self, recipe, objective)

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        every = self.rows_classes(len(x), c, request, noise)
        assert isinstance(every, Exact)
        return per_row(lambda t: t.gather(-1, x[:, None])[:, 0], every)

    def rows_classes(self, n: int, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        return Exact(F.log_softmax(self.logits(c).double(), -1), self.space.measure)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return torch.multinomial(self.logits(c).softmax(-1), 1, generator=generator)[:, 0]

    def rows_per_pass(self) -> int:
        assert self.context is not None
        return 2048 if self.context.pixels else 8192

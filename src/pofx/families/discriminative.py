"""The discriminative row of the contract: p(y | x) of a label y given an image or a table row x.

Nothing here is special: the space is ``Label``, the context is what the other families model, and the
likelihood is exact. It says what the label costs once x is known, and nothing about p(x).

A classifier of noised data is told the noise of x and guides path models (paths/guidance.py). Divided by its standard
deviation, z = alpha x + sigma eps depends on the log SNR alone: one classifier serves every Gaussian path.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.codecs.real import preprocess
from pofx.core.abilities import ClassesAtOnce
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, GradientLearner, Recipe
from pofx.core.likelihood import Exact, Likelihood, per_row
from pofx.core.noise import RowNoise
from pofx.core.options import BELOW_ONE, POSITIVE
from pofx.core.requests import ExactLikelihood, Request, Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import Conditioned, ContextOptions, NetOptions
from pofx.families.continuous import BatchNoise
from pofx.nn.encoders import Encoded, no_encoder
from pofx.nn.mlp import Mlp
from pofx.nn.unet import LogSnrFeatures


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
    noised: bool = False
    """trained on data with noise of every size added, and told its size: a guide of path models. The likelihood is
    that of data with the smallest."""
    smallest: float = 1e-3
    """noise that it is trained on, in standard deviations of the data."""
    largest: float = 200.0
    """the same at the other end."""

    ranges = {"smoothing": BELOW_ONE, "smallest": POSITIVE, "largest": POSITIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.smallest < self.largest:
            raise UsageError(
                f"The noise cannot rise from {self.smallest:g} to {self.largest:g}.", "Swap smallest and largest."
            )


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
        size: dict[str, Any] = {"hidden": config.hidden, "blocks": config.blocks}
        if not config.noised:
            self.preprocess, self.mlp = None, Mlp(config.width, len(space.values), **size)
            return
        assert context is not None
        self.context_encoder = None  # what it is given is no context of a net but z, beside the log SNR
        self.preprocess = preprocess(context, shared_scale=True)
        self.shape = context.event_shape if context.pixels else (self.preprocess.dim,)
        self.level = LogSnrFeatures(64)
        self.noised_net = NetOptions(channels=32, **size).analysis(self.shape, len(space.values), 64)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        if not space.values:
            return "it models a label; say which with --target (a column, or 'label')."
        if context is None or context.values:
            return "it needs a table or images to tell the label from; load with --target."
        if config.noised and (not (context.columns or context.pixels) or preprocess(context).code_sizes):
            return "noise is for images, and for tables of complete real columns. Leave noised out."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield "context_width"  # it is the width
        if config.noised:
            yield from ("width", "context_dropout", "context_layers", "context_vocabulary", "context_augment")
        else:
            yield from (*super().idle(space, context, config), "smallest", "largest")

    @classmethod
    def tiny(cls, space: Space) -> ClassifierConfig:
        return ClassifierConfig(width=32, hidden=32, blocks=1)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        return {"noised": ClassifierConfig(noised=True, hidden=32, blocks=1)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, weight_decay=0.05, epochs=20, ema=0.99)

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        if self.preprocess is not None:
            assert c is not None
            self.preprocess.fit(c, weight, generator)

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        if self.preprocess is None:
            return super().encode_context(c, dropped)
        return Encoded(self.preprocess.split(c).y.to(next(self.parameters()).dtype))

    def null_context(self, n: int) -> Encoded:
        if self.preprocess is None:
            return super().null_context(n)
        raise Unsupported("A classifier of noised data knows no p(label).", "Fit with context_dropout instead.")

    def logits(self, c: Encoded | None) -> Tensor:
        """Unnormalised log-probabilities [N, K] of the classes; of a classifier of noised data at the least noise."""
        assert c is not None
        if self.preprocess is None:
            return self.mlp(c.vector)
        return self.noised_logits(c.vector, torch.full_like(c.vector[:, 0], -2 * math.log(self.config.smallest)))

    def noised_logits(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """[N, K] for z [N, d] of unit variance where the data have it, and log SNR [N]."""
        dtype = next(self.parameters()).dtype
        return self.noised_net(z.to(dtype).reshape(-1, *self.shape), self.level(log_snr.to(dtype)))

    def noised_log_probs(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """log p(y | z) of every class [N, K], of z [N, d] = (alpha x + sigma eps) / sqrt(alpha^2 + sigma^2), whose
        gradient guides; x standardised by ``preprocess``."""
        return F.log_softmax(self.noised_logits(z, log_snr), -1)

    def batch_logits(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of a training batch; noised, with log SNRs drawn evenly."""
        if self.preprocess is None:
            return self.logits(self.batch_context(batch, generator))
        y = self.preprocess.split(batch.c, BatchNoise(batch, generator)).y
        first, last = (-2 * math.log(noise) for noise in (self.config.largest, self.config.smallest))
        log_snr = (first + (last - first) * batch.rand(generator=generator)).to(y)
        signal, noise = log_snr.sigmoid().sqrt()[:, None], (-log_snr).sigmoid().sqrt()[:, None]
        return self.noised_logits(signal * y + noise * batch.randn(y.shape[1], generator=generator).to(y), log_snr)

    def learner(self, recipe: Recipe) -> GradientLearner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            logits = self.batch_logits(batch, generator)
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

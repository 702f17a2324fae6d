"""An energy-based model: a net g tilts a Gaussian, p(y | c) = exp(g(y, c)) N(y; 0, I) / Z(c).

objective            what is lowered
pcd, cd              E_p[g] - E_data[g], the first over Langevin's chains, kept (Tieleman 2008; Du & Mordatch 2019) or
                     started at the data (Hinton 2002)
nce                  -log s(g(y)) - E_N[ log(1 - s(g)) ], s(g) = 1 / (1 + exp(-g)): data told from draws of the
                     Gaussian, whose ratio is g where Z is 1 (Gutmann & Hyvarinen 2010, eq. 3 to 8)
score-matching       |s|^2 / 2 + tr(ds/dy), s = grad log p (Hyvarinen 2005, theorem 1)
sliced               the same along random directions (Song et al. 2019, eq. 8)
denoising            |s(y + sigma e) + e / sigma|^2 / 2: of the data with noise sigma added (Vincent 2011, eq. 11)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.options import POSITIVE
from pofx.core.space import Space
from pofx.families.continuous import BatchNoise
from pofx.families.contrastive import ContrastiveLearner
from pofx.families.energies import EnergyOptions, Tilted
from pofx.nn.encoders import Encoded, no_encoder, vector
from pofx.nn.mlp import Mlp
from pofx.paths import matching

CHAINED = ("steps", "buffer", "restart", "step_size", "magnitude")


@dataclass(frozen=True)
class EbmConfig(EnergyOptions):
    """Options of an energy-based model.

    Attributes:
        objective: contrastive divergence of chains that are kept ("pcd") or start at the data ("cd"); noise-contrastive
            estimation; score matching, exact, sliced or denoising.
        noises: draws of the Gaussian per datum, in noise-contrastive estimation.
        sigma: of the noise in denoising, in standard deviations of the data.
    """

    objective: Literal["pcd", "cd", "nce", "score-matching", "sliced", "denoising"] = "pcd"
    hidden: int = 128
    blocks: int = 2
    noises: int = 4
    sigma: float = 0.1

    ranges = {"sigma": POSITIVE}


class Ebm(Tilted):
    name: ClassVar[str] = "ebm"
    summary: ClassVar[str] = "a net gives the energy; chains draw, annealing normalises"
    taxonomy: ClassVar[str] = "explicit density / approximate / energy-based"
    paper: ClassVar[str] = "Xie et al. 2016; Du & Mordatch 2019; Gutmann & Hyvärinen 2010; Hyvärinen 2005"
    Config = EbmConfig
    config: EbmConfig

    def __init__(self, config: EbmConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.net = config.analysis(self.shape, 1, self.known)
        if isinstance(self.net, Mlp):
            self.net.last.reset_parameters()  # at zero, its chains would learn nothing of the layers before

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: EbmConfig) -> str | None:
        return no_encoder(context) or super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        yield from () if config.objective in ("pcd", "cd") else CHAINED
        yield from ("buffer", "restart") if config.objective == "cd" else ()
        yield from () if config.objective == "nce" else ("noises",)
        yield from () if config.objective == "denoising" else ("sigma",)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, hidden=32, blocks=1, channels=8, steps=5, step_size=0.2, buffer=400, warmup=50, temperatures=10
        )

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if space.name != "reals":  # a few cases tell
            return {}
        plain = {"hidden": 48, "blocks": 1}
        others = ("nce", "score-matching", "sliced", "denoising")
        return {name: EbmConfig(objective=name, **plain) for name in others} | {  # type: ignore[arg-type]
            "cd": replace(cls.tiny(space), objective="cd", buffer=EbmConfig().buffer)
        }

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=128, lr=2e-3, betas=(0.5, 0.999), warmup=50, ema=0.995, epochs=50)

    def learner(self, recipe: Recipe) -> Learner:
        if self.config.objective in ("pcd", "cd"):
            return ContrastiveLearner(self, recipe, self.config.objective == "pcd")
        return GradientLearner(self, recipe, self.objective)

    def tilt(self, y: Tensor, h: Encoded | None) -> Tensor:
        return self.net(y.unflatten(1, self.shape), vector(h))[:, 0]

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        h, noise = self.batch_context(batch, generator), BatchNoise(batch, generator)
        y = self.states(batch.x, noise)[0]
        if self.config.objective == "nce":
            return {"loss": self.told_apart(y, h, noise)}

        def score(y: Tensor) -> Tensor:
            y = y if y.requires_grad else y.requires_grad_()
            [found] = torch.autograd.grad(self.log_path(y, h, 1.0).sum(), y, create_graph=True)
            return found

        if self.config.objective == "denoising":
            loss = matching.denoising(score, y, noise.randn(y.shape[1]).to(y), self.config.sigma)
        elif self.config.objective == "sliced":
            signs = (noise.rand(y.shape[1]) < 0.5).to(y) * 2 - 1
            loss = matching.sliced(score, y, signs[None])
        else:
            loss = matching.exact(score, y)
        return {"loss": loss}

    def told_apart(self, y: Tensor, h: Encoded | None, noise: BatchNoise) -> Tensor:
        """The logistic loss of data y [B, d] and ``noises`` draws of the Gaussian for each [B]."""
        k = self.config.noises
        others = noise.randn(k, y.shape[1]).to(y).flatten(0, 1)
        each = None if h is None else h[torch.arange(len(y), device=y.device).repeat_interleave(k)]
        real, drawn = self.tilt(y, h), self.tilt(others, each).view(-1, k)
        shift = torch.tensor(float(k)).log().to(y)  # log of the odds of noise
        return F.softplus(shift - real) + F.softplus(drawn - shift).sum(1)

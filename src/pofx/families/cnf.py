"""Continuous normalising flows: data and noise are the two ends of a differential equation, trained by likelihood.

dz/dt = f(z, t; h),   log p(y) = log p(z(1)) + int_0^1 tr df/dz dt       Chen et al. 2018; Grathwohl et al. 2019
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pofx.core.family import serving
from pofx.core.learner import Batch
from pofx.core.likelihood import Estimate, Exact
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT
from pofx.core.requests import OdeLikelihood, Request, Sampler
from pofx.core.space import Space
from pofx.families.continuous import BatchNoise
from pofx.families.flow import WATCHED, Flow, FlowConfig
from pofx.nn.encoders import Encoded, vector
from pofx.transforms.base import Delta, Noise, Transform
from pofx.transforms.continuous import Continuous
from pofx.transforms.ode import estimate, follow, probes


@dataclass(frozen=True)
class CnfConfig(FlowConfig):
    """Options of ``cnf``, beside those of every flow.

    Attributes:
        layers: differential equations, one after the other.
        hidden: width of the net that gives the velocity.
        blocks: residual blocks of that net.
        train_steps: panels of the solver in training, of each equation.
        ode_steps: panels of the likelihood's solver.
        exact_up_to: largest d whose divergence is exact; beyond, it is estimated by random probes: one in training, and
            of the likelihood ``draws``, unless the noise that dequantises the data is drawn as often.
        recompute: activations of the net for its gradient are computed twice and not kept: less memory, more time.
    """

    layers: int = 1
    train_steps: int = 4
    ode_steps: int = 4
    exact_up_to: int = 8
    recompute: bool = False

    ranges = {"exact_up_to": AMOUNT}


class Cnf(Flow):
    """A free net as velocity: nothing about it needs to be invertible."""

    name = "cnf"
    summary = "a differential equation from data to a Gaussian, its velocity a net trained by likelihood"
    taxonomy = "explicit density / approximate / normalising flow"
    paper = "Grathwohl et al. 2019, FFJORD: free-form continuous dynamics for scalable reversible generative models"
    estimators = (OdeLikelihood,)
    Config = CnfConfig
    config: CnfConfig

    def layers(self) -> list[Transform]:
        c = self.config
        return [
            Continuous(self.dim, self.width, c.hidden, c.blocks, c.train_steps, c.exact_up_to, c.recompute)
            for _ in range(c.layers)
        ]

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, hidden=32, blocks=1, codes_hidden=32, train_steps=1, ode_steps=1, draws=4)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if space.measure != Measure.lebesgue(2):  # a few cases tell
            return {}
        return {
            "probed": replace(cls.tiny(space), exact_up_to=1),
            "two equations, recomputed": replace(cls.tiny(space), layers=2, recompute=True),
        }

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from (name for name in super().idle(space, context, config) if name != "draws")  # of probes, too

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        return True

    def default_request(self, kind: type[Request] | None = None) -> Request:
        c, noisy = self.config, self.preprocess.kind is not Exact
        per_solve = 0 if self.dim <= c.exact_up_to else 1 if noisy else c.draws
        return OdeLikelihood(c.ode_steps, per_solve, c.draws if noisy else 0)

    def quick_request(self) -> Request:
        asked: Any = self.default_request()
        few = {"probes": min(asked.probes, 2), "draws": min(asked.draws, 2)}
        return replace(asked, steps=1, **few)

    # -- hooks of Flow ------------------------------------------------------------------------------------

    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        step = self.flow(y, vector(h), BatchNoise(batch, generator))
        return -(step.log_term + self.base.log_prob(step.z, vector(h)))

    def density(self, y: Tensor, h: Encoded | None, request: Any, noise: RowNoise) -> Estimate:
        v = vector(h)
        asking = [y, *self.parameters(), *([] if v is None else [v])]
        graph, probe = (
            torch.is_grad_enabled() and any(t.requires_grad for t in asking),
            probes(request.probes, y.double(), noise),
        )

        def solve(steps: int, noise: Noise) -> tuple[Tensor, Tensor]:
            z, parts, variance = y, y.new_zeros(1, len(y)).double(), y.new_zeros(len(y)).double()
            for transform in self.flow.transforms:
                if isinstance(transform, Continuous):
                    change = follow(transform.field(v), 0.0, 1.0, z.double(), steps, noise, probe, graph)
                    z, parts, variance = change.z, parts + change.trace, variance + change.se**2
                else:
                    step = transform(z, v)
                    z, parts = step.z, parts + step.log_term
            return parts + self.base.log_prob(z, v), variance.sqrt()

        return estimate(solve, request, noise, self.dim, "continuous flow")

    def arrive(self, y: Tensor, h: Encoded | None) -> Tensor:
        """z [N, d] of y [N, d], solved closely."""
        z, v = y, vector(h)
        for transform in self.flow.transforms:
            z = transform.moved(z, v, 0.0, 1.0) if isinstance(transform, Continuous) else transform(z, v).z
        return z

    def watch(self, z: Tensor, y: Tensor, h: Encoded | None) -> None:
        self.check_finite(y)
        self.check_back(self.arrive(y[:WATCHED], None if h is None else h[:WATCHED]), z[:WATCHED])

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        parts = self.split(x)
        return Delta(self.arrive(parts.y, self.given_codes(parts.codes, c)))

    def rows_score(self, x: Tensor, c: Encoded | None) -> Tensor:
        """The gradient of the density with the exact divergence, at places that are the same for all calls."""
        with torch.enable_grad():
            x, places = x.detach().requires_grad_(), RowNoise.by_place(len(x), torch.Generator(x.device).manual_seed(0))
            parts = self.split(x)
            lik = self.density(parts.y, c, OdeLikelihood(self.config.ode_steps), places)
            (score,) = torch.autograd.grad((lik.nats + parts.log_jacobian).sum(), x)
        return score

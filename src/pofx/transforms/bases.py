"""The densities that flows start from, on R^d: z = f(x) is laid out as ``out`` of the chain, then what came to its end.

By their names:

    normal    N(0, I), with the tails of ``nn.tails``: no value is out of the question
    student   t with learned degrees of freedom, one per entry: a Lipschitz map of a normal has no heavier tails than
              the normal (Jaini et al. 2020, theorem 4); they have to be in the base
    mixture   K normals with learned means, scales and weights: modes without a bridge between them
    a model   any model of reals (``OfModel``)
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pofx.core.errors import UsageError
from pofx.core.likelihood import Exact
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.nn.heads import pick
from pofx.nn.tails import lengthen, normal_log_prob

BaseKind = Literal["normal", "student", "mixture"]


class Base(Protocol):
    """A density that is exact, and its draws; h [n, width] is what the flow is given, or None."""

    def log_prob(self, z: Tensor, h: Tensor | None) -> Tensor:
        """log p(z | h) [N] of z [N, d]."""
        ...

    def sample(self, n: int, h: Tensor | None, generator: torch.Generator) -> Tensor:
        """n draws [n, d], on the generator's device or the base's."""
        ...


class NormalBase(nn.Module):
    """N(0, I)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def log_prob(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        return normal_log_prob(z).sum(1)

    def sample(self, n: int, h: Tensor | None, generator: torch.Generator) -> Tensor:
        return lengthen(torch.randn(n, self.dim, generator=generator, device=generator.device))


class StudentBase(nn.Module):
    """Student's t with nu degrees of freedom in each entry, learned; it starts at nu = 10.

    Draws are Bailey's (1994): sqrt(nu (u^(-2/nu) - 1)) cos(2 pi v) of two uniform numbers, differentiable in nu.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_freedom = nn.Parameter(torch.full((dim,), math.log(10.0)))

    @property
    def freedom(self) -> Tensor:
        """nu [d], float64."""
        return self.log_freedom.double().clamp(math.log(0.2), math.log(1e4)).exp()

    def log_prob(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        nu = self.freedom
        constant = ((nu + 1) / 2).lgamma() - (nu / 2).lgamma() - 0.5 * (nu * math.pi).log()
        stretch = torch.log1p(z.double().square() / nu)  # z^2 overflows float32 beyond 1e19
        return (constant - (nu + 1) / 2 * stretch).sum(1).to(z.dtype)

    def sample(self, n: int, h: Tensor | None, generator: torch.Generator) -> Tensor:
        nu = self.freedom
        u, v = torch.rand(2, n, len(nu), generator=generator, device=generator.device, dtype=torch.float64).to(
            nu.device
        )
        radius = (nu * torch.expm1(-2 / nu * (1 - u).log())).sqrt()
        return (radius * (2 * math.pi * v).cos()).to(self.log_freedom.dtype)


class MixtureBase(nn.Module):
    """sum_k w_k N(m_k, diag s_k^2), all learned, each normal with the tails of ``nn.tails``."""

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, dim))
        self.log_scale = nn.Parameter(torch.zeros(components, dim))

    def log_prob(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        log_p = [
            log_w + (normal_log_prob((z - mean) * (-log_s).exp()) - log_s).sum(1)
            for log_w, mean, log_s in zip(self.logits.log_softmax(0), self.mean, self.log_scale, strict=True)
        ]
        return torch.stack(log_p).logsumexp(0)

    def sample(self, n: int, h: Tensor | None, generator: torch.Generator) -> Tensor:
        k = pick(self.logits.expand(n, -1), generator)
        noise = lengthen(torch.randn(n, self.mean.shape[1], generator=generator, device=generator.device).to(self.mean))
        return self.mean[k] + self.log_scale[k].exp() * noise


class OfModel(nn.Module):
    """A model as a base, trained with the flow as far as its parameters ask for a gradient.

    Raises UsageError unless it has a density on R^d without a context, and where its likelihood is not exact.
    """

    def __init__(self, model: Model, dim: int) -> None:
        super().__init__()
        if model.context is not None or model.space.measure != Measure.lebesgue(dim):
            raise UsageError(f"{model!r} is no density in {dim} dimensions.", f"Give a p(x) over Reals(({dim},)).")
        self.model = model

    def log_prob(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        space = self.model.space
        likelihood = self.model.log_prob(z.to(space.dtype).reshape(-1, *space.event_shape))
        if not isinstance(likelihood, Exact):
            raise UsageError(f"The likelihood of {self.model!r} is not exact.", "Give a flow, or a mixture.")
        return likelihood.nats.to(z.dtype)

    def sample(self, n: int, h: Tensor | None, generator: torch.Generator) -> Tensor:
        return self.model.sample(n, generator=generator).flatten(1)


def base(kind: BaseKind, dim: int, components: int) -> Base:
    """The base of that name."""
    if kind == "normal":
        return NormalBase(dim)
    return StudentBase(dim) if kind == "student" else MixtureBase(dim, components)

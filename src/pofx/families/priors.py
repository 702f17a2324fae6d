"""Priors p(z) of latent variables: N(0, I), a mixture, another family; and the codes that one is fitted to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pofx.core.errors import Unsupported
from pofx.core.learner import TrainingSet
from pofx.core.likelihood import Exact
from pofx.core.model import replace_config
from pofx.core.nested import nested, spelled
from pofx.core.noise import RowNoise
from pofx.core.options import Options
from pofx.nn.heads import pick
from pofx.spaces import Reals

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
PASS = 2**21  # latents that one call of a prior in closed form may hold
KERNELS = 500  # draws of a prior by which the density of each dimension is estimated


class Prior(nn.Module, ABC):
    """p(z) over latents [..., L].

    Attributes:
        rows_per_pass: how many z one call of ``log_prob`` may hold.
    """

    rows_per_pass: int = PASS

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) [...] of z [..., L], exact."""

    @abstractmethod
    def log_marginals(self, z: Tensor) -> Tensor:
        """log p(z_d) of every dimension alone [..., L]."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws [n, L]."""

    def divergence(self, mean: Tensor, log_scale: Tensor) -> Tensor | None:
        """KL(N(mean_d, scale_d^2) || p(z_d)) [N, L] where the dimensions are independent and it has a closed form."""
        return None


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) - self.latent * HALF_LOG_2PI

    def log_marginals(self, z: Tensor) -> Tensor:
        return -0.5 * z.square() - HALF_LOG_2PI

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.latent, generator=generator, device=generator.device)

    def divergence(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Kingma & Welling 2014, appendix B."""
        return 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale


@dataclass(frozen=True)
class NormalOptions(Options):
    """None."""


@dataclass(frozen=True)
class MixtureOptions(Options):
    components: int = 10


class MixturePrior(Prior):
    """p(z) = sum_k w_k N(z; m_k, diag s_k^2), learned with the rest of the model.

    The prior that maximises the ELBO is the aggregate posterior, itself a mixture (Tomczak & Welling 2018,
    eq. 5); this one learns its components directly.
    """

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))

    def log_prob(self, z: Tensor) -> Tensor:
        # -((z - m) / s)^2 / 2 expanded: two matrix products instead of a [..., K, L] temporary
        precision = (-2 * self.log_scale).exp()
        constant = -0.5 * (self.mean.square() * precision).sum(1) - self.log_scale.sum(1) + self.logits.log_softmax(0)
        quadratic = -0.5 * z.square() @ precision.T + z @ (self.mean * precision).T
        return (quadratic + constant).logsumexp(-1) - z.shape[-1] * HALF_LOG_2PI

    def log_marginals(self, z: Tensor) -> Tensor:
        log_n = Normal(self.mean, self.log_scale.exp()).log_prob(z[..., None, :])  # [..., K, L]
        return (self.logits.log_softmax(0)[:, None] + log_n).logsumexp(-2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = pick(self.logits.expand(n, -1), generator)
        noise = torch.randn(n, self.mean.shape[1], generator=generator, device=generator.device).to(self.mean)
        return self.mean[k] + self.log_scale[k].exp() * noise


class FamilyPrior(Prior):
    """p(z) of another family; N(0, I) stands in for it until it is ``fitted``."""

    fitted: Tensor

    def __init__(self, latent: int, text: str, fitted: bool) -> None:
        super().__init__()
        self.model, self.start = nested(text, Reals((latent,))), StandardNormal(latent)
        if self.model.default_request().kind != "Exact":
            raise Unsupported(
                f"prior={text}: {self.model.name} has no exact density, without which the bound is none.",
                "Name a flow, normal or mixture.",
            )
        self.rows_per_pass = self.model.rows_per_pass()
        self.register_buffer("fitted", torch.tensor(fitted))

    def log_prob(self, z: Tensor) -> Tensor:
        if not self.fitted:
            return self.start.log_prob(z)
        rows = z.reshape(-1, z.shape[-1]).double()
        noise = RowNoise(0, lambda: torch.arange(len(rows), device=z.device))  # which an exact density has no use for
        lik = self.model.rows_log_prob(rows, None, self.model.default_request(), noise)
        assert isinstance(lik, Exact)
        return lik.nats.to(z.dtype).reshape(z.shape[:-1])

    def log_marginals(self, z: Tensor) -> Tensor:
        """Estimated, by Gaussian kernels on draws of the prior."""
        if not self.fitted:
            return self.start.log_marginals(z)
        drawn = self.sample(KERNELS, torch.Generator(z.device).manual_seed(0)).to(z)
        kernels = Normal(drawn, 1.06 * KERNELS**-0.2 * drawn.std(0))  # Silverman 1986, eq. 3.28
        return kernels.log_prob(z[..., None, :]).logsumexp(-2) - math.log(KERNELS)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        if not self.fitted:
            return self.start.sample(n, generator)
        return self.model.rows_sample(n, None, self.model.default_sampler(), generator).float()

    def divergence(self, mean: Tensor, log_scale: Tensor) -> Tensor | None:
        return None if self.fitted else self.start.divergence(mean, log_scale)


PRIORS = {"normal": NormalOptions, "mixture": MixtureOptions}  # that are no family; the options of each


def prior(text: str, latent: int, after: bool) -> Prior:
    """The prior that ``text`` names; one that is fitted ``after`` the rest is not fitted yet.

    Raises UsageError or Unsupported.
    """
    name, options = spelled(text)
    if name not in PRIORS:
        return FamilyPrior(latent, text, not after)
    own = replace_config(PRIORS[name](), options)
    return StandardNormal(latent) if name == "normal" else MixturePrior(latent, own.components)


@dataclass(eq=False)
class Codes(TrainingSet):
    """A training set of codes z of rows: draws from q(z | x, c), new ones in every epoch. mean, scale: [N, L]."""

    mean: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.z[index]

    def set_epoch(self, number: int) -> None:
        self.z = draw(self.mean, self.scale, torch.Generator().manual_seed(number)).double()


def draw(mean: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each N(mean, diag scale^2), by a generator on any device."""
    return mean + scale * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)

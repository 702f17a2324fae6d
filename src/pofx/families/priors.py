"""Priors p(z) of latent variables.

normal                   N(0, I)
mixture:components=K     of Gaussians, learned
vamp:components=K        the encoder's own posteriors of K learned pseudo-inputs (Tomczak & Welling 2018)
independent              categories with learned probabilities, of discrete latents
a family                 with an exact density of what z is: a flow as nsf, an autoregressive one as maf; made, say,
                         of discrete latents
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import replace_config
from pofx.core.likelihood import Exact
from pofx.core.nested import nested, spelled
from pofx.core.noise import RowNoise
from pofx.core.options import Options
from pofx.core.space import Space
from pofx.nn.heads import pick

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
PASS = 2**21  # latents that one call of a prior in closed form may hold
KERNELS = 500  # draws of a prior by which the density of each dimension is estimated


class Drawn(Protocol):
    """What a prior has to know of the posterior whose z it is a prior of (``posteriors.Posterior`` says it all)."""

    width: int
    shape: tuple[int, ...]
    space: Space

    @property
    def discrete(self) -> bool: ...
    def values(self, z: Tensor) -> Tensor: ...
    def latents(self, values: Tensor) -> Tensor: ...


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


class GaussianMixture(Prior):
    """p(z) = sum_k w_k N(z; m_k, diag s_k^2): a subclass says which."""

    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights [K], means and log-scales [K, L]."""

    def log_prob(self, z: Tensor) -> Tensor:
        log_w, mean, log_scale = self.parts()
        # -((z - m) / s)^2 / 2 expanded: two matrix products instead of a [..., K, L] temporary
        precision = (-2 * log_scale).exp()
        constant = -0.5 * (mean.square() * precision).sum(1) - log_scale.sum(1) + log_w
        quadratic = -0.5 * z.square() @ precision.T + z @ (mean * precision).T
        return (quadratic + constant).logsumexp(-1) - z.shape[-1] * HALF_LOG_2PI

    def log_marginals(self, z: Tensor) -> Tensor:
        log_w, mean, log_scale = self.parts()
        log_n = Normal(mean, log_scale.exp()).log_prob(z[..., None, :])  # [..., K, L]
        return (log_w[:, None] + log_n).logsumexp(-2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        log_w, mean, log_scale = self.parts()
        k = pick(log_w.expand(n, -1), generator)
        noise = torch.randn(n, mean.shape[1], generator=generator, device=generator.device).to(mean)
        return mean[k] + log_scale[k].exp() * noise


class MixturePrior(GaussianMixture):
    """The mixture learned directly, with the rest of the model.

    The prior that maximises the ELBO is the aggregate posterior, itself a mixture (Tomczak & Welling 2018, eq. 5).
    """

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits.log_softmax(0), self.mean, self.log_scale


class VampPrior(GaussianMixture):
    """p(z) = 1/K sum_k q(z | u_k) of learned pseudo-inputs u_k (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are what the encoder reads of a datum, and of a context where there is one; they start as training
    rows.

    Args:
        components: K.
        features, known: widths of what the encoder reads of a datum and of a context.
        encode: gives mean and log-scale [K, L] of q, from both [K, features] and [K, known] or None.
    """

    def __init__(
        self,
        components: int,
        features: int,
        known: int,
        encode: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self.pseudo = nn.Parameter(torch.randn(components, features))
        self.told = nn.Parameter(torch.zeros(components, known)) if known else None
        self.encode = encode

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_scale = self.encode(self.pseudo, self.told)
        return mean.new_full((len(mean),), -math.log(len(mean))), mean, log_scale

    @torch.no_grad()
    def prepare(self, rows: Tensor, generator: torch.Generator) -> None:
        """Start as some of the rows, as the encoder reads them [N, features]."""
        index = torch.randint(len(rows), (len(self.pseudo),), generator=generator, device=generator.device)
        self.pseudo.copy_(rows[index.to(rows.device)])


class IndependentPrior(Prior):
    """p(z) of L independent categories of V values, z [..., L * V] as one-hot vectors; probabilities are learned."""

    def __init__(self, latent: int, values: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(latent, values))

    @property
    def log_p(self) -> Tensor:
        """[L, V]"""
        return self.logits.log_softmax(1)

    def log_prob(self, z: Tensor) -> Tensor:
        return z @ self.log_p.flatten()

    def log_marginals(self, z: Tensor) -> Tensor:
        return (z.unflatten(-1, self.logits.shape) * self.log_p).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        index = pick(self.log_p.expand(n, -1, -1), generator)
        return F.one_hot(index, self.logits.shape[1]).to(self.logits.dtype).flatten(1)


class FamilyPrior(Prior):
    """p(z) of another family; what is simplest stands in for it until it is ``fitted``: N(0, I), equal categories."""

    fitted: Tensor

    def __init__(self, text: str, posterior: Drawn, fitted: bool) -> None:
        super().__init__()
        self.model = nested(text, posterior.space)
        self.start = simplest(posterior)
        self.values, self.latents = posterior.values, posterior.latents
        self.discrete = posterior.discrete
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
        rows = self.values(z.reshape(-1, z.shape[-1]))
        noise = RowNoise(0, lambda: torch.arange(len(rows), device=z.device))  # which an exact density has no use for
        lik = self.model.rows_log_prob(rows, None, self.model.default_request(), noise)
        assert isinstance(lik, Exact)
        return lik.nats.to(z.dtype).reshape(z.shape[:-1])

    def log_marginals(self, z: Tensor) -> Tensor:
        """Estimated on draws of the prior: by Gaussian kernels, of categories by how often each is drawn."""
        if not self.fitted:
            return self.start.log_marginals(z)
        drawn = self.sample(KERNELS, torch.Generator(z.device).manual_seed(0)).to(z)
        if self.discrete:
            share = (drawn.sum(0) + 0.5).unflatten(0, (self.model.space.dims, -1))
            return (z.unflatten(-1, share.shape) * (share / share.sum(1, keepdim=True)).log()).sum(-1)
        kernels = Normal(drawn, 1.06 * KERNELS**-0.2 * drawn.std(0))  # Silverman 1986, eq. 3.28
        return kernels.log_prob(z[..., None, :]).logsumexp(-2) - math.log(KERNELS)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        if not self.fitted:
            return self.start.sample(n, generator)
        return self.latents(self.model.rows_sample(n, None, self.model.default_sampler(), generator))

    def divergence(self, mean: Tensor, log_scale: Tensor) -> Tensor | None:
        return None if self.fitted else self.start.divergence(mean, log_scale)


@dataclass(frozen=True)
class NoOptions(Options):
    """None."""


@dataclass(frozen=True)
class MixtureOptions(Options):
    components: int = 10


@dataclass(frozen=True)
class VampOptions(Options):
    components: int = 100


# that are no family; the options of each
PRIORS: dict[str, type[Options]] = {
    "auto": NoOptions, "normal": NoOptions, "mixture": MixtureOptions, "vamp": VampOptions, "independent": NoOptions,
}  # fmt: skip


def fits(text: str, posterior: str) -> None:
    """Raise UsageError where the prior that ``text`` names is none of what that posterior draws."""
    name, drawn = spelled(text)[0], spelled(posterior)[0]
    discrete = drawn == "categorical"
    if name in (("normal", "mixture", "vamp") if discrete else ("independent",)):
        good = "independent, or a family of codes such as made" if discrete else "normal, mixture, vamp or a family"
        raise UsageError(f"prior={text} is no prior of posterior={posterior}.", f"Use {good}.")
    if name == "vamp" and drawn != "gaussian":
        raise UsageError(
            f"prior={text} with posterior={posterior}: its density at every draw would be asked of the whole flow.",
            "Use posterior=gaussian, or prior=mixture.",
        )


def simplest(posterior: Drawn) -> Prior:
    """N(0, I), or independent categories."""
    if not posterior.discrete:
        return StandardNormal(posterior.width)
    latent, values = posterior.shape
    return IndependentPrior(latent, values)


def prior(text: str, posterior: Drawn, after: bool, vamp: Callable[[int], VampPrior]) -> Prior:
    """The prior that ``text`` names; one that is fitted ``after`` the rest is not fitted yet.

    ``vamp`` makes one of so many pseudo-inputs. Raises UsageError or Unsupported.
    """
    name, options = spelled(text)
    if name not in PRIORS:
        return FamilyPrior(text, posterior, not after)
    own: Any = replace_config(PRIORS[name](), options)
    if name == "mixture":
        return MixturePrior(posterior.width, own.components)
    return vamp(own.components) if name == "vamp" else simplest(posterior)

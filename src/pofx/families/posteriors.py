"""Posteriors q(z | x, c): what the numbers of an encoder are made into.

gaussian             N(mean, diag scale^2) (Kingma & Welling 2014, eq. 9)
iaf:layers=2,...     Gaussian noise through inverse autoregressive layers, told a vector of the encoder's: one pass
                     draws z and its density (Kingma et al. 2016, eq. 9 to 12)
realnvp:layers=2,... the same with couplings (Dinh et al. 2017)
categorical:values=V independent categories; z holds one-hot vectors of V entries, one for each (Jang et al. 2017)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, OneHotCategorical, constraints
from torch.nn import functional as F

from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import replace_config
from pofx.core.learner import TrainingSet
from pofx.core.nested import spelled
from pofx.core.options import Options, at_least
from pofx.core.space import Space
from pofx.families.gradients import gumbel, gumbel_softmax
from pofx.families.latent import GaussianProposal, Proposal, log_normal
from pofx.families.priors import IndependentPrior, Prior
from pofx.spaces import Codes, Reals
from pofx.transforms.base import Affine, Chain, Transform
from pofx.transforms.coupling import Coupling
from pofx.transforms.masked import MaskedAutoregressive

DRAWS = 64  # by which the moments of a flow are estimated


class Posterior(nn.Module, ABC):
    """q(z | x, c) of z [..., width], from an encoder's numbers.

    Attributes:
        outputs: how many numbers of the encoder it takes.
        width: numbers of one z.
        space: what a family that is the prior is a model of.
        shape: of one z: [width], or categories and their values.
        discrete: are z one-hot vectors, without a derivative?
    """

    outputs: int
    width: int
    space: Space
    shape: tuple[int, ...]
    discrete: ClassVar[bool] = False

    @abstractmethod
    def propose(self, out: Tensor) -> Any:
        """q of N rows, from an encoder's numbers [N, outputs]."""

    @abstractmethod
    def distribution(self, q: Any) -> Distribution:
        """The same with what torch's distributions have."""

    def divergence(self, q: Any, prior: Prior) -> Tensor | None:
        """KL(q || p) of each independent part of z [N, parts] where it has a closed form."""
        return None

    def log_marginals(self, q: Any, z: Tensor) -> Tensor:
        """log q(z_d) [N, L] of each dimension of z [N, width]; of a flow, by Gaussians of its moments."""
        told = self.distribution(q)
        return Normal(told.mean, told.stddev).log_prob(z)

    def still(self, q: Any, z: Tensor) -> Tensor:
        """log q(z) [N, k] of z [N, k, L], where only z has a gradient."""
        raise NotImplementedError  # of a flow or of categories the options refuse what asks for it

    def values(self, z: Tensor) -> Tensor:
        """z [..., width] as data of ``space`` [..., *E]."""
        return z.double()

    def latents(self, values: Tensor) -> Tensor:
        """The inverse of ``values``."""
        return values.float()


class Gaussian(Posterior):
    def __init__(self, latent: int) -> None:
        super().__init__()
        self.outputs, self.width, self.shape = 2 * latent, latent, (latent,)
        self.space = Reals((latent,))

    def propose(self, out: Tensor) -> GaussianProposal:
        mean, log_scale = out.chunk(2, 1)
        return GaussianProposal(mean, log_scale.clamp(-7, 4))

    def distribution(self, q: GaussianProposal) -> Distribution:
        return Independent(Normal(q.mean, q.log_scale.exp()), 1)

    def divergence(self, q: GaussianProposal, prior: Prior) -> Tensor | None:
        return prior.divergence(q.mean, q.log_scale)

    def still(self, q: GaussianProposal, z: Tensor) -> Tensor:
        fixed = GaussianProposal(q.mean.detach(), q.log_scale.detach())
        return log_normal(fixed.inverse(z)) - fixed.log_scale.sum(1)[:, None]


# -- flows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowOptions(Options):
    """Of the layers: their number, the width and the number of the hidden layers of each net, and the width of the
    encoder's vector that they are told."""

    layers: int = 2
    hidden: int = 128
    blocks: int = 1
    told: int = 32


@dataclass(frozen=True, eq=False)
class FlowProposal(Proposal):
    """z = f(y; h), y ~ start; log q(z) = log N(e; 0, I) - log |det dz/de|. h: [N, told]."""

    start: GaussianProposal
    chain: Chain
    h: Tensor

    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        y, log_q = self.start(e)
        step = self.chain(y.flatten(0, 1), self._each(y))
        return step.z.unflatten(0, y.shape[:2]), log_q - step.log_term.unflatten(0, y.shape[:2])

    def inverse(self, z: Tensor) -> Tensor:
        y = self.chain.inverse(z.flatten(0, 1), self._each(z))
        return self.start.inverse(y.unflatten(0, z.shape[:2]))

    def _each(self, z: Tensor) -> Tensor:
        return self.h[:, None].expand(-1, z.shape[1], -1).flatten(0, 1)


class FlowDistribution(Distribution):
    """A ``FlowProposal``; its mean and variance are estimates by the same ``DRAWS`` of noise for every row."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, q: FlowProposal) -> None:
        self.q = q
        super().__init__(q.start.mean.shape[:1], q.start.mean.shape[1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        n, width = self.q.start.mean.shape
        e = torch.randn(n, torch.Size(sample_shape).numel(), width).to(self.q.start.mean)
        return self.q(e)[0].transpose(0, 1).reshape(*sample_shape, n, width)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = value.shape[:-1]
        e = self.q.inverse(value.reshape(-1, *self.q.start.mean.shape).transpose(0, 1))
        return self.q(e)[1].T.reshape(shape)

    @property
    def mean(self) -> Tensor:
        return self._draws.mean(1)

    @property
    def variance(self) -> Tensor:
        return self._draws.var(1)

    @property
    def _draws(self) -> Tensor:
        n, width = self.q.start.mean.shape
        half = torch.randn(DRAWS // 2, width, generator=torch.Generator().manual_seed(0)).to(self.q.start.mean)
        return self.q(torch.cat([half, -half]).expand(n, -1, -1))[0]


class Flow(Posterior):
    def __init__(self, latent: int, name: str, options: FlowOptions) -> None:
        super().__init__()
        self.start = Gaussian(latent)
        self.outputs, self.width, self.shape = 2 * latent + options.told, latent, (latent,)
        self.space = Reals((latent,))
        size: Any = {"context": options.told, "hidden": options.hidden, "blocks": options.blocks}

        def layer(i: int) -> Transform:
            if name == "iaf":
                return MaskedAutoregressive(latent, Affine(), reverse=i % 2 == 1, **size)
            changed = (torch.arange(latent) % 2 == i % 2) | torch.tensor(latent == 1)
            return Coupling(changed, Affine(), **size)

        self.chain = Chain([layer(i) for i in range(options.layers)])

    def propose(self, out: Tensor) -> FlowProposal:
        start = self.start.propose(out[:, : self.start.outputs])
        return FlowProposal(start, self.chain, out[:, self.start.outputs :])

    def distribution(self, q: FlowProposal) -> Distribution:
        return FlowDistribution(q)


# -- categories ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CategoryOptions(Options):
    """How many values each latent has."""

    values: int = 2

    ranges = {"values": at_least(2)}


@dataclass(frozen=True, eq=False)
class CategoryProposal(Proposal):
    """Independent categories; log_p [N, L, V]. A draw is the largest of log_p + Gumbel noise (Gumbel 1954)."""

    log_p: Tensor

    def __call__(self, e: Tensor) -> tuple[Tensor, Tensor]:
        if e.requires_grad:
            raise Unsupported("Categories have no gradient, which chains go by.", "Ask for iwae or elbo.")
        noise = gumbel(e).unflatten(-1, self.log_p.shape[1:])
        index = (self.log_p.detach()[:, None] + noise).argmax(-1)
        z = F.one_hot(index, self.log_p.shape[-1]).to(self.log_p.dtype)
        return z.flatten(2), (z * self.log_p[:, None]).sum((2, 3))

    def relaxed(self, e: Tensor, temperature: float) -> Tensor:
        """Soft one-hot vectors z [N, K, L * V]."""
        noise = gumbel(e).unflatten(-1, self.log_p.shape[1:])
        return gumbel_softmax(self.log_p[:, None], noise, temperature).flatten(2)

    def inverse(self, z: Tensor) -> Tensor:
        raise Unsupported("Categories are no one-to-one map of noise.", "Ask for iwae or elbo.")


class OneHots(Independent):  # type: ignore[type-arg]
    """L independent one-hot vectors as one event [L * V]."""

    def __init__(self, log_p: Tensor) -> None:
        super().__init__(OneHotCategorical(logits=log_p, validate_args=False), 1, validate_args=False)
        self._event_shape = torch.Size([log_p.shape[1] * log_p.shape[2]])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(sample_shape).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.unflatten(-1, self.base_dist.param_shape[-2:]))

    @property
    def mean(self) -> Tensor:
        return self.base_dist.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)


class Categories(Posterior):
    discrete = True

    def __init__(self, latent: int, values: int) -> None:
        super().__init__()
        self.outputs = self.width = latent * values
        self.shape, self.space = (latent, values), Codes((latent,), values)

    def propose(self, out: Tensor) -> CategoryProposal:
        return CategoryProposal(out.unflatten(1, self.shape).log_softmax(-1))

    def distribution(self, q: CategoryProposal) -> Distribution:
        return OneHots(q.log_p)

    def divergence(self, q: CategoryProposal, prior: Prior) -> Tensor | None:
        if not isinstance(prior, IndependentPrior):
            return None
        return (q.log_p.exp() * (q.log_p - prior.log_p)).sum(-1)

    def log_marginals(self, q: CategoryProposal, z: Tensor) -> Tensor:
        return (z.unflatten(-1, self.shape) * q.log_p).sum(-1)

    def values(self, z: Tensor) -> Tensor:
        return z.unflatten(-1, self.shape).argmax(-1)

    def latents(self, values: Tensor) -> Tensor:
        return F.one_hot(values.long(), self.shape[1]).float().flatten(-2)


POSTERIORS: dict[str, type[Options]] = {
    "gaussian": Options, "iaf": FlowOptions, "realnvp": FlowOptions, "categorical": CategoryOptions,
}  # fmt: skip


def posterior(text: str, latent: int) -> Posterior:
    """The posterior that ``text`` names. Raises UsageError."""
    name, options = spelled(text)
    if name not in POSTERIORS:
        raise UsageError(f"There is no posterior {name!r}.", f"Use one of {', '.join(POSTERIORS)}.")
    if name == "gaussian":
        if options:
            raise UsageError(f"posterior={text}: a Gaussian has no options.", "Write posterior=gaussian.")
        return Gaussian(latent)
    own: Any = replace_config(POSTERIORS[name](), options)
    return Categories(latent, own.values) if name == "categorical" else Flow(latent, name, own)


@dataclass(eq=False)
class LatentSet(TrainingSet):
    """A training set of latents of rows: draws from q(z | x, c), new ones in every epoch.

    Attributes:
        posterior: makes q and what a family as prior learns from.
        out: the encoder's numbers of every row [N, outputs].
    """

    posterior: Posterior
    out: Tensor

    def __post_init__(self) -> None:
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.out)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.values[index]

    def set_epoch(self, number: int) -> None:
        z = draw(self.posterior, self.out, torch.Generator().manual_seed(number))
        self.values = self.posterior.values(z)


def draw(posterior: Posterior, out: Tensor, generator: torch.Generator) -> Tensor:
    """One z [N, width] of each row, by a generator on any device."""
    e = torch.randn(len(out), 1, posterior.width, generator=generator, device=generator.device).to(out)
    z: Tensor = posterior.propose(out)(e)[0][:, 0]
    return z

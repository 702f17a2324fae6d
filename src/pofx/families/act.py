"""Action chunks: all of the next k actions at once, by a transformer that is told what is seen, and a style z.

    p(a_1, ..., a_k | c) = integral of N(z; 0, I) prod_t p(a_t | z, c) dz

(Zhao et al. 2023, "ACT", sections IV-B and IV-C). A datum [k, A] is k actions of A numbers, the context c what a policy
sees. The encoder reads c and the whole chunk and proposes z; the decoder makes all k actions from z and c in one pass.
Training lowers

    -log p(a | z, c) + beta KL(q(z | a, c) || N(0, I)),

with beta = 1 the ELBO. There a is Laplace around what the decoder makes, at a scale that it says: the absolute error of
the paper, whose loss is this one at a fixed scale and beta = 10. Whatever beta trained it, ``log_prob`` bounds the
density of the model (latent.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from pofx.core.abilities import FromLatents
from pofx.core.errors import UsageError, WrongShape
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe
from pofx.core.options import SHARE, at_least
from pofx.core.requests import Sampler
from pofx.core.space import Space, free_length
from pofx.families.conditioned import ContextOptions
from pofx.families.latent import GaussianProposal, Latent, Proposal, log_normal
from pofx.nn.encoders import Encoded, no_encoder, told
from pofx.nn.heads import Head, MixtureOfGaussians
from pofx.nn.laplace import Laplace
from pofx.nn.sites import Heads
from pofx.nn.transformer import Memory, Shape, Transformer
from pofx.spaces import Real

PASS = 2**20  # numbers of decoder states that one pass may hold
MOST = 1024  # steps of a chunk


@dataclass(frozen=True)
class ActConfig(ContextOptions):
    """Options of a model of action chunks.

    Attributes:
        latent: dimensions of z.
        width: of both transformers.
        layers: of each.
        n_heads: of each attention.
        head: of each number: "laplace" (least absolute errors), "gaussian" (least squares).
        beta: weight of the divergence in training; 1 is the bound.
        warmup: share of the budget over which beta rises from 0: else a decoder that is told what is seen learns to do
            without z before the encoder has anything to say (Bowman et al. 2016, section 3.1).
        draws: of the bounds that log_prob returns.
    """

    latent: int = 32
    width: int = 64
    layers: int = 2
    n_heads: int = 4
    head: Literal["laplace", "gaussian"] = "laplace"
    beta: float = 1.0
    warmup: float = 0.0
    draws: int = 64

    ranges = {"draws": at_least(2), "warmup": SHARE}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transformer  # noqa: B018  # raises where widths and heads do not fit

    @property
    def transformer(self) -> Shape:
        return Shape(width=self.width, layers=self.layers, n_heads=self.n_heads, positions="learned", bias="all")


class Act(Latent, FromLatents):
    name: ClassVar[str] = "act"
    summary: ClassVar[str] = "a chunk of actions at once, by a transformer that is told what is seen and a latent style"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "Zhao, Kumar, Levine & Finn 2023, Learning fine-grained bimanual manipulation"
    Config = ActConfig
    config: ActConfig

    def __init__(self, config: ActConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.steps, width = space.event_shape[0], config.width
        self.each = space.dims // self.steps
        sites = (space.dims,)
        head: Head = Laplace(sites) if config.head == "laplace" else MixtureOfGaussians(1, sites)
        self.heads = Heads(space, [head], [range(space.dims)])
        self.action_in, self.z_in = nn.Linear(self.each, width), nn.Linear(config.latent, width)
        self.told_in = nn.Linear(self.known, width) if self.known else None
        self.encoder = Transformer(config.transformer, self.steps, self.memory)
        self.decoder = Transformer(config.transformer, self.steps, self.memory)
        # what z and a are enters and leaves at every step: through layers alone, which start as nothing, no gradient
        # would tell the encoder of the decoder
        self.propose = nn.Linear(self.steps * width, 2 * config.latent)
        self.out = nn.Linear(width, self.each * head.params)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := free_length(space) or no_encoder(context):
            return reason
        plain = space.columns and all(isinstance(c, Real) and c.step is None and not c.nullable for c in space.columns)
        if not plain:
            return "its data are chunks of real numbers, [steps, actions]. Fit a vae, or declare columns as real."
        if space.event_shape[0] > MOST:
            return f"a chunk of {space.event_shape[0]} steps is longer than {MOST}. Give shorter ones."
        return None

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, latent=4, width=16, layers=1, n_heads=2, draws=16)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=2e-3, warmup=100, ema=0.999, epochs=50)

    @property
    def attends(self) -> bool:
        return self.memory > 0

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        self.heads.prepare(x, weight)

    # -- encoder and decoder ----------------------------------------------------------------------------------

    def _through(self, net: Transformer, tokens: Tensor, c: Encoded | None, k: int = 1) -> Tensor:
        """Tokens [N k, steps, width], k neighbours for each context, all of which see each other."""
        if c is not None and self.told_in is not None:
            tokens = tokens + self.told_in(c.vector).repeat_interleave(k, 0)[:, None]
        memory: Memory | None = None
        for seen, mask in told(c):
            memory = seen.repeat_interleave(k, 0), None if mask is None else mask.repeat_interleave(k, 0)
        inside = torch.ones(1, self.steps, dtype=torch.bool, device=tokens.device)
        return net(tokens, memory, inside)  # type: ignore[no-any-return]

    def proposal(self, x: Tensor, c: Encoded | None) -> GaussianProposal:
        tokens = self.action_in(self.heads.embed(x).unflatten(1, (self.steps, self.each)))
        mean, log_scale = self.propose(self._through(self.encoder, tokens, c).flatten(1)).chunk(2, 1)
        return GaussianProposal(mean, log_scale)

    def decode(self, z: Tensor, c: Encoded | None) -> Tensor:
        """Parameters of the heads [N, K, P] of z [N, K, L]."""
        tokens = self.z_in(z.flatten(0, 1))[:, None].expand(-1, self.steps, -1)
        made = self.out(self._through(self.decoder, tokens, c, z.shape[1]))
        return made.flatten(1).unflatten(0, z.shape[:2])  # type: ignore[no-any-return]

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        c = self.batch_context(batch, generator)
        q = self.proposal(batch.x, c)
        z, _ = q(batch.randn(1, self.latents, generator=generator))
        kl, warmup = self.divergence(q, c), self.config.warmup
        beta = self.config.beta * (min(1.0, batch.progress / warmup) if warmup else 1.0)
        return {"loss": beta * kl - self.log_terms(batch.x, z, c)[0][:, 0], "kl": kl.detach()}

    def learner(self, recipe: Recipe) -> Learner:
        return GradientLearner(self, recipe, self.objective)

    # -- the contract -----------------------------------------------------------------------------------------

    @property
    def latents(self) -> int:
        return self.config.latent

    @property
    def latent_dims(self) -> int:
        return self.latents

    @property
    def codes_per_pass(self) -> int:
        return max(1, PASS // (self.steps * self.config.width))

    def log_terms(self, x: Tensor, z: Tensor, c: Encoded | None) -> tuple[Tensor, Tensor]:
        return self.heads.log_prob(self.decode(z, c), x[:, None]).sum(-1), log_normal(z)

    def divergence(self, q: Proposal, c: Any) -> Tensor:
        assert isinstance(q, GaussianProposal)
        return 0.5 * (q.mean.square() + (2 * q.log_scale).exp() - 1 - 2 * q.log_scale).sum(1)

    def rows_encode(self, x: Tensor, c: Encoded | None) -> Distribution:
        q = self.proposal(x, c)
        return Independent(Normal(q.mean, q.log_scale.exp()), 1)

    def rows_sample_joint(self, n: int, c: Encoded | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, self.latents, generator=generator, device=generator.device).to(self.device)
        return self.heads.sample(self.decode(z[:, None], c)[:, 0], generator), z

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.rows_sample_joint(n, c, generator)[0]

    def rows_from_latents(self, z: Tensor, c: Encoded | None) -> Tensor:
        return self.heads.typical(self.decode(z[:, None], c)[:, 0])


def ensemble(chunks: Tensor, decay: float = 0.01) -> Tensor:
    """The actions [T, A] of a policy that asks for a chunk at every step: chunks [T, k, A], row t asked for at time t.

    At time t up to k chunks have an action; their mean has weights exp(-decay i), i = 0 being the oldest (Zhao et al.
    2023, section IV-A). Raises WrongShape for other shapes, UsageError for a decay that is negative.

    Example:
        >>> ensemble(torch.tensor([[[1.0], [1.0]], [[3.0], [3.0]]]), decay=0.0).tolist()
        [[1.0], [2.0]]
    """
    if chunks.ndim != 3 or not chunks.numel():
        raise WrongShape(f"Chunks have shape {list(chunks.shape)}.", "Give one of k actions for each time: [T, k, A].")
    if not decay >= 0:
        raise UsageError(f"decay is {decay}; it must be 0 or more.", "Leave it out for 0.01.")
    times, k, _ = chunks.shape
    found = []
    for t in range(times):
        asked = torch.arange(max(0, t - k + 1), t + 1)
        weight = (-decay * torch.arange(len(asked), dtype=torch.float64)).exp()
        found.append((weight / weight.sum()).to(chunks) @ chunks[asked, t - asked])
    return torch.stack(found)

"""The contract of every family: a Model, and p(x | c) as a Conditional.

Shapes: ``*S`` sample batch, ``*C`` context batch, ``*E`` one event, ``N`` flat rows. A family writes the
``rows_*`` hooks on flat rows; ``Conditional`` does the rest for all of them: checks, broadcasting of
contexts, chunking, eval mode.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pofx.core.errors import EmptyData, Unsupported, UsageError, WrongShape
from pofx.core.likelihood import Kind, Likelihood, Unavailable, cat, per_row
from pofx.core.space import Space

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pofx.core.learner import Learner, Recipe


@dataclass(frozen=True)
class Budget:
    """What one likelihood may cost.

    ``estimator`` is one of the model's ``estimators`` (the first is the default), ``draws`` the Monte
    Carlo draws per datum, ``steps`` the solver steps; None leaves the family's own default. A family
    raises UsageError for a field that it cannot use.
    """

    estimator: str | None = None
    draws: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Sampler:
    """How to sample: ``name`` is one of the model's ``samplers`` (the first is the default)."""

    name: str | None = None
    steps: int | None = None


class Model(nn.Module):
    """p(x | c) of one family over one space. A family is one final subclass.

    Class attributes describe the family to ``pofx families``; hooks below do the mathematics.

    Args:
        config: the family's own frozen dataclass of plain values.
        space: what one x is.
        context: what x is conditioned on; None for p(x).
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line: how the family models p(x)
    taxonomy: ClassVar[str]  # its place, e.g. "explicit density / tractable / autoregressive"
    paper: ClassVar[str]
    claims: ClassVar[frozenset[Kind]]  # the kinds of likelihood it may return
    estimators: ClassVar[tuple[str, ...]] = ()  # names for Budget.estimator
    samplers: ClassVar[tuple[str, ...]] = ()  # names for Sampler.name
    uses_draws: ClassVar[bool] = False  # Budget.draws means something
    uses_steps: ClassVar[bool] = False  # Budget.steps and Sampler.steps mean something
    latent: ClassVar[bool] = False  # rows_encode exists
    has_score: ClassVar[bool] = False  # rows_score exists
    quick: ClassVar[Budget] = Budget()  # the cheapest useful likelihood: what validation during training uses
    known_failures: ClassVar[dict[str, str]] = {}  # "check" or "check:case" of the conformance suite -> reason
    Config: ClassVar[type]

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__()
        if reason := self.refuses(space, context, config):
            raise Unsupported(f"{self.name} does not serve {space}: {reason}", "See 'pofx families'.")
        self.config, self.space, self.context = config, space, context

    # -- what a family declares ---------------------------------------------------------------------

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        """Why this family cannot serve the space and context (a sentence with the remedy), or None."""
        raise NotImplementedError

    @classmethod
    def tiny(cls, space: Space) -> Any:
        """A Config that trains in seconds on ``space``: the size the conformance suite uses."""
        raise NotImplementedError

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        """How this family is trained on ``space`` unless the user says otherwise."""
        raise NotImplementedError

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        """Look at the training data once, before training: scales, bins, start values into buffers."""

    def learner(self, recipe: Recipe) -> Learner:
        """Everything that differs between families in training."""
        raise NotImplementedError

    # -- the mathematics, on flat rows ----------------------------------------------------------------

    def rows_log_prob(self, x: Tensor, c: Tensor | None, budget: Budget, generator: torch.Generator) -> Likelihood:
        """log p(x | c) of rows x [N, *E] given c [N, *Ec] or None; nats [N]."""
        raise NotImplementedError

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """n rows [n, *E] (of ``space.dtype``), row i given c[i] of c [n, *Ec]."""
        raise NotImplementedError

    def rows_encode(self, x: Tensor, c: Tensor | None) -> Distribution:
        """q(z | x, c) with batch shape [N] and event shape [latent]. Exists where ``latent`` is True."""
        raise Unsupported(f"{self.name} has no latent variable to encode into.", "Fit a vae, a gmm or a flow.")

    def rows_score(self, x: Tensor, c: Tensor | None) -> Tensor:
        """grad_x log p(x | c) [N, *E] over a continuous space. Exists where ``has_score`` is True."""
        raise Unsupported(
            f"{self.name} has no score (gradient of the log-density).", "Fit a gaussian, gmm, flow or ddpm."
        )

    def rows_per_pass(self) -> int:
        """How many rows one pass may hold: about 2^22 numbers of data, at most 8192 rows."""
        return max(1, min(8192, 2**22 // max(1, math.prod(self.space.event_shape))))

    # -- what a user calls ------------------------------------------------------------------------------

    def given(self, c: Tensor | None = None) -> Conditional:
        """p(. | c) for c [*C, *Ec], or p(.) for a model without context.

        Raises UsageError where a context is missing or is not taken, WrongShape or BadValue where c is
        not of the context space.
        """
        return Conditional(self, c)

    def log_prob(
        self, x: Tensor, *, budget: Budget | None = None, generator: torch.Generator | None = None
    ) -> Likelihood:
        """Short for ``given().log_prob(x)``: log p(x), x [*S, *E], nats [*S]."""
        return self.given().log_prob(x, budget=budget, generator=generator)

    def sample(self, n: int, *, generator: torch.Generator | None = None, sampler: Sampler | None = None) -> Tensor:
        """Short for ``given().sample(n)``: n draws [n, *E]."""
        return self.given().sample(n, generator=generator, sampler=sampler)

    @property
    def device(self) -> torch.device:
        tensors: list[Tensor] = [*self.parameters(), *self.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    def parameter_count(self) -> int:
        """Fitted numbers: trainable parameters, or what a counting family counts."""
        return sum(p.numel() for p in self.parameters())


@dataclass(frozen=True)
class Conditional:
    """p(x | c) for a context batch c [*C, *Ec] (or p(x) when the model takes none): light, immutable."""

    model: Model
    c: Tensor | None = None

    def __post_init__(self) -> None:
        context = self.model.context
        if context is None and self.c is not None:
            raise UsageError(
                f"This {self.model.name} models p(x) and takes no context.", "Fit it with a context (--given)."
            )
        if context is not None and self.c is None:
            raise UsageError(
                f"This {self.model.name} models p(x | c) with c a {context}; no c was given.", "Call model.given(c)."
            )
        if context is not None and self.c is not None:
            context.check(self.c)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """*C"""
        if self.c is None:
            return ()
        assert self.model.context is not None
        return tuple(self.c.shape[: self.c.ndim - len(self.model.context.event_shape)])

    def log_prob(
        self, x: Tensor, *, budget: Budget | None = None, generator: torch.Generator | None = None
    ) -> Likelihood:
        """log p(x | c) in nats per datum in raw data space.

        Args:
            x: [*S, *C, *E], checked against the space.
            budget: what the likelihood may cost, where it is not exact.
            generator: the source of Monte Carlo draws; a fixed seed 0 where none is given.

        Returns:
            A Likelihood with nats [*S, *C], of a kind in ``model.claims``.
        """
        model, budget = self.model, budget or Budget()
        _check_budget(model, budget)
        model.space.check(x)
        batch = x.shape[: x.ndim - len(model.space.event_shape)]
        flat = x.reshape(-1, *model.space.event_shape)
        c = self._contexts(batch)
        if len(flat) == 0:
            raise EmptyData("There are no rows to score.", "Give at least one datum.")
        gen = _generator(generator, model.device)
        with evaluating(model):
            size, parts = model.rows_per_pass(), []
            for i in range(0, len(flat), size):
                rows = flat[i : i + size].to(model.device)
                parts.append(model.rows_log_prob(rows, None if c is None else c[i : i + size], budget, gen))
        lik = cat(parts)
        return lik if isinstance(lik, Unavailable) else per_row(lambda t: t.reshape(batch), lik)

    def sample(self, n: int, *, generator: torch.Generator | None = None, sampler: Sampler | None = None) -> Tensor:
        """n draws for every context: [n, *C, *E], of ``space.dtype``, without gradient."""
        model, sampler = self.model, sampler or Sampler()
        if n < 0:
            raise UsageError(f"Cannot draw {n} samples.", "Ask for 0 or more.")
        if sampler.name is not None and sampler.name not in model.samplers:
            known = ", ".join(model.samplers) or "one way to sample, without a name"
            raise UsageError(f"{model.name} has no sampler {sampler.name!r}; it has {known}.")
        if sampler.steps is not None and (sampler.steps < 1 or not model.uses_steps):
            raise UsageError(f"{model.name} cannot sample in {sampler.steps} steps.", "Leave out steps.")
        batch = (n, *self.batch_shape)
        rows = math.prod(batch)
        c = self._contexts(batch)
        gen = _generator(generator, model.device)
        if rows == 0:
            return torch.empty(*batch, *model.space.event_shape, dtype=model.space.dtype)
        with evaluating(model), torch.no_grad():
            size, parts = model.rows_per_pass(), []
            for i in range(0, rows, size):
                m = min(size, rows - i)
                parts.append(model.rows_sample(m, None if c is None else c[i : i + m], sampler, gen))
        return torch.cat(parts).reshape(*batch, *model.space.event_shape)

    def encode(self, x: Tensor) -> Distribution:
        """q(z | x, c) for x [*C or N, *E]; raises Unsupported where the family has no latent."""
        flat, c = self._flat(x)
        with evaluating(self.model):
            return self.model.rows_encode(flat, c)

    def score(self, x: Tensor) -> Tensor:
        """grad_x log p(x | c), shaped like x; raises Unsupported where it does not exist."""
        flat, c = self._flat(x)
        with evaluating(self.model):
            return self.model.rows_score(flat, c).reshape(x.shape)

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.model.space.check(x)
        k = len(self.model.space.event_shape)
        flat = x.reshape(-1, *self.model.space.event_shape).to(self.model.device)
        return flat, self._contexts(x.shape[: x.ndim - k])

    def _contexts(self, batch: tuple[int, ...] | torch.Size) -> Tensor | None:
        """c repeated to one flat row per entry of the batch shape [*S, *C]."""
        if self.c is None:
            return None
        assert self.model.context is not None
        want = self.batch_shape
        if tuple(batch[len(batch) - len(want) :]) != want:
            raise WrongShape(
                f"A batch of shape {tuple(batch)} does not end in the context batch {want}.",
                "Shapes are x [*S, *C, *E] for contexts [*C, *Ec].",
            )
        event = self.model.context.event_shape
        return self.c.expand(*batch, *event).reshape(-1, *event).to(self.model.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the former mode after."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """The caller's generator, or a fresh one of seed 0: the global random state is never touched."""
    return torch.Generator(device).manual_seed(0) if generator is None else generator


def _check_budget(model: Model, budget: Budget) -> None:
    if budget.estimator is not None and budget.estimator not in model.estimators:
        known = ", ".join(model.estimators) or "a single one, without a name"
        raise UsageError(f"{model.name} has no likelihood estimator {budget.estimator!r}; it has {known}.")
    if budget.draws is not None and (budget.draws < 2 or not model.uses_draws):
        limit = "needs at least 2 draws (one has no standard error)" if model.uses_draws else "takes no draws"
        raise UsageError(f"{model.name} {limit}; {budget.draws} were asked for.")
    if budget.steps is not None and (budget.steps < 1 or not model.uses_steps):
        limit = "needs at least 1 step" if model.uses_steps else "takes no solver steps"
        raise UsageError(f"{model.name} {limit}; {budget.steps} were asked for.")


def replace_config(config: Any, changes: dict[str, Any]) -> Any:
    """``dataclasses.replace`` with a named error for an unknown option."""
    known = {f.name for f in dataclasses.fields(config)}
    if unknown := sorted(set(changes) - known):
        raise UsageError(f"Unknown option {unknown[0]!r}; this family has: {', '.join(sorted(known))}.")
    return dataclasses.replace(config, **changes)

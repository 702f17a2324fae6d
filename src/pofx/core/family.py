"""What a family declares, and the hooks that it writes on flat rows: N of them, of events ``*E``."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pofx.core.abilities import (
    able,
)
from pofx.core.errors import Unsupported, UsageError
from pofx.core.likelihood import KINDS, Kind, Likelihood
from pofx.core.noise import RowNoise
from pofx.core.requests import Direct, Request, Sampler
from pofx.core.space import Space

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pofx.core.learner import Learner, Recipe, Stage, TrainingSet


class Family(nn.Module):
    """Base of ``Model``: class attributes describe the family to ``pofx families``; hooks do the mathematics.

    Args:
        config: the family's own frozen dataclass of plain values.
        space: what one x is.
        context: what x is conditioned on; None for p(x).
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line: how the family models p(x)
    taxonomy: ClassVar[str]  # its place, e.g. "explicit density / tractable / autoregressive"
    paper: ClassVar[str]
    estimators: ClassVar[tuple[type[Request], ...]]  # what it answers of its likelihood, over one space or another
    samplers: ClassVar[tuple[type[Sampler], ...]] = (Direct,)  # how it draws, over one space or another
    known_failures: ClassVar[dict[str, str]] = {}  # "check" or "check:case" of the conformance suite -> reason
    Config: ClassVar[type]

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__()
        if reason := self.refuses(space, context, config):
            others = able(space, context)  # itself among them: its options are what cannot be
            remedy = f"These do: {', '.join(others)}." if others and self.name not in others else "See 'pofx families'."
            raise Unsupported(f"{self.name} does not serve {space}: {reason}", remedy)
        self.config, self.space, self.context = config, space, context
        self.remarks: list[str] = []  # of ``prepare``: what the data made it do that nobody asked for, in sentences

    # -- what a family declares ---------------------------------------------------------------------

    @classmethod
    def claims(cls) -> frozenset[Kind]:
        """The kinds of likelihood that it may return: those of its estimators."""
        return frozenset(KINDS[request.kind] for request in cls.estimators)

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        """Does this model, over its own space, answer this one of ``estimators`` or ``samplers``?"""
        return True

    @property
    def own_estimators(self) -> tuple[type[Request], ...]:
        """Those that this model answers; the first is its default."""
        return tuple(kind for kind in self.estimators if self.answers(kind))

    @property
    def own_samplers(self) -> tuple[type[Sampler], ...]:
        return tuple(kind for kind in self.samplers if self.answers(kind))

    def default_request(self, kind: type[Request] | None = None) -> Request:
        """A request of this class (None: the first of ``own_estimators``). What it must be told, the config says."""
        kind = kind or self.own_estimators[0]
        needs = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        return kind(**{name: getattr(self.config, name) for name in needs})

    def quick_request(self) -> Request:
        """The cheapest useful likelihood: what validation during training asks for."""
        return self.default_request()

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        return (kind or self.own_samplers[0])()

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        """Why this family cannot serve the space and context (a sentence with the remedy), or None."""
        raise NotImplementedError

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        """Options that change nothing on this space, beside the others: ``fit`` refuses them where they are set."""
        return ()

    @classmethod
    def tiny(cls, space: Space) -> Any:
        """A Config that trains in seconds on ``space``: the size the conformance suite uses."""
        raise NotImplementedError

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        """Further Configs of that size, by name, whose options change the mathematics: the suite checks them, too."""
        return {}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        """How this family is trained on ``space`` unless the user says otherwise."""
        raise NotImplementedError

    def prepare(self, x: Any, c: Any, weight: Tensor | None, generator: torch.Generator) -> None:
        """Look at the training data once, before training: scales, bins, start values into buffers.

        x and c are tensors; of data beyond memory Rows where the family is ``InBlocks``, else a sample of rows.
        """

    def learner(self, recipe: Recipe) -> Learner:
        """Everything that differs between families in training."""
        raise NotImplementedError

    def stages(self, recipe: Recipe) -> list[Stage]:
        """What a fit goes through, one after the other: the learner on the training data, unless a family has more."""
        from pofx.core.learner import Stage

        return [Stage("model", recipe, partial(self.learner, recipe))]

    def training_set(self, x: Any) -> TrainingSet:
        """What minibatches are drawn from: the training data x as they are, or what is made of them once."""
        from pofx.core.learner import RowDataset

        return RowDataset(x)

    # -- the mathematics, on flat rows; c is what ``encode_context`` makes of contexts -----------------

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Any:
        """What the hooks below take in the place of contexts c [N, *Ec]: themselves, or what an encoder makes of them.

        Rows can be taken of it by ``[index]``, and batches of it joined by its own ``cat`` where it is no tensor. Each
        row follows from its own context alone: it is made once, whatever is asked of it. In training, a family that
        has a null context puts that in the place of rows ``dropped`` [N].
        """
        return c

    def null_context(self, n: int) -> Any:
        """n rows of what ``encode_context`` makes, which stand for no context."""
        raise Unsupported(
            f"{self.name} learns no p(x | no context).",
            "Fit a family with the option context_dropout, or fit this one without a context.",
        )

    def rows_log_prob(self, x: Tensor, c: Any, request: Request, noise: RowNoise) -> Likelihood:
        """log p(x | c) of rows x [N, *E] given N contexts or None; nats [N].

        What it draws comes from ``noise``, so that a row's number does not depend on the batch.
        """
        raise NotImplementedError

    def rows_sample(self, n: int, c: Any, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """n rows [n, *E] (of ``space.dtype``), row i given c[i]."""
        raise NotImplementedError

    def rows_per_pass(self) -> int:
        """How many rows one pass may hold: about 2^22 numbers of data, at most 8192 rows."""
        return max(1, min(8192, 2**22 // max(1, self.space.dims)))

    def rows_per_draw(self) -> int:
        """How many rows are drawn at once."""
        return self.rows_per_pass()

    # -- what it is made of ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        tensors: list[Tensor] = [*self.parameters(), *self.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")


def idle(cls: type[Family], space: Space, context: Space | None, config: Any) -> list[str]:
    """The options of ``config`` that are not at their default and change nothing on this space."""
    default = {f.name: f.default for f in dataclasses.fields(config)}
    return [name for name in cls.idle(space, context, config) if getattr(config, name) != default[name]]


def serving(cls: type[Family], space: Space, **options: Any) -> Any:
    """A Config of the options that mean something on this space."""
    config = cls.Config(**options)
    unset = set(idle(cls, space, None, config))
    return cls.Config(**{name: value for name, value in options.items() if name not in unset})


def replace_config(config: Any, changes: dict[str, Any]) -> Any:
    """``dataclasses.replace`` with a named error for an unknown option, or a number that tensors cannot hold."""
    known = {f.name for f in dataclasses.fields(config)}
    if unknown := sorted(set(changes) - known):
        raise UsageError(f"Unknown option {unknown[0]!r}; this family has: {', '.join(sorted(known))}.")
    if large := [f"{k}={v}" for k, v in changes.items() if isinstance(v, int) and abs(v) >= 2**63]:
        raise UsageError(f"{large[0]} is beyond 64 bits.", "Give a smaller number.")
    return dataclasses.replace(config, **changes)

"""The contract of every family: a Model gives p(x | c) as a Conditional.

Shapes: ``*S`` sample batch, ``*C`` context batch, ``*E`` one event, ``N`` flat rows. A family writes the
``rows_*`` hooks of ``Family`` on flat rows; ``Conditional`` does the rest for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import HasParts, PartName, ability_of
from pofx.core.conditional import Conditional
from pofx.core.family import Family
from pofx.core.likelihood import Likelihood
from pofx.core.noise import RowNoise
from pofx.core.requests import AnyRequest, AnySampler, Request, Sampler
from pofx.core.space import Space, take


class Model(Family):
    """p(x | c) of one family over one space. A family is one final subclass; ``Family`` says what it writes."""

    def given(self, c: Any = None, *, before: Any = None, null: bool = False) -> Conditional:
        """p(. | c) for c [*C, *Ec], or p(.) for a model without context; c is an array, a frame, ... (``space.take``).

        ``before`` [*C, K, ...] are beginnings (of the space of x, their ends not meant): what is evaluated or
        sampled then comes after them. Without a context they alone make up the batch *C.

        ``null`` asks for p(x | no context) of a model of p(x | c) that was trained with some contexts left out (its
        option ``context_dropout``); what guidance starts from.

        Raises UsageError where a context is missing or is not taken, WrongShape or BadValue where c is
        not of the context space, Unsupported where the family cannot go on from a beginning or knows no null context.
        """
        return Conditional(
            self,
            c if c is None or self.context is None else take(self.context, c),
            None if before is None else take(self.space, before),
            null,
        )

    def log_prob(self, x: Any, *, request: AnyRequest = None, generator: torch.Generator | None = None) -> Likelihood:
        """Short for ``given().log_prob(x)``: log p(x), x [*S, *E], nats [*S]."""
        return self.given().log_prob(x, request=request, generator=generator)

    def sample(self, n: int, *, generator: torch.Generator | None = None, sampler: AnySampler = None) -> Tensor:
        """Short for ``given().sample(n)``: n draws [n, *E]."""
        return self.given().sample(n, generator=generator, sampler=sampler)

    def part_model(self, name: PartName, *, given: bool = False) -> Model:
        """p(a) or p(b) of a model of pairs, or with ``given`` p(a | b) or p(b | a): a model that shares its weights.

        Raises Unsupported where this is no model of pairs that knows their parts.

        Example:
            >>> import pofx
            >>> digits = pofx.load("digits", given="label", joint=True)
            >>> run = pofx.fit(digits, "joint-gpt", steps=2, options={"width": 16, "layers": 1})
            >>> label = run.model.part_model("b", given=True)
            >>> label.given(digits.space.split(digits.test.x)[0][:3]).classes().nats.shape
            torch.Size([3, 10])
        """
        return PartOfPair(ability_of(self, HasParts), name, given)

    def parts(self) -> dict[str, Model]:
        """The models inside this one by their names in it; what is inside them is theirs."""
        found: dict[str, Model] = {}
        for name, module in self.named_modules():
            if name and isinstance(module, Model) and not any(name.startswith(f"{other}.") for other in found):
                found[name] = module
        return found

    def parameter_count(self) -> int:
        """Fitted numbers: trainable parameters, or what a counting family counts."""
        parts = self.parts().values()
        others = {id(p) for part in parts for p in part.parameters()}
        own = sum(p.numel() for p in self.parameters() if id(p) not in others)
        return own + sum(part.parameter_count() for part in parts)

    def __repr__(self) -> str:
        """One line; ``model.children()`` are its parts."""
        of = f"p(x), x: {self.space}" if self.context is None else f"p(x | c), x: {self.space}, c: {self.context}"
        return f"{self.name}: {of}; {self.parameter_count():,} fitted numbers"


class PartOfPair(Model):
    """p(a), p(b), p(a | b) or p(b | a) of a model that ``HasParts``, with its weights; ``part_model`` makes it."""

    name = "part"
    summary = "one part of a pair, alone or given the other, by a model of pairs"
    estimators = ()  # those of the model of pairs: see own_estimators

    def __init__(self, pairs: Any, part: PartName, given: bool) -> None:
        assert pairs.space.parts is not None
        spaces = dict(zip(("a", "b"), pairs.space.parts, strict=True))
        own, other = spaces.pop(part), next(iter(spaces.values()))
        super().__init__(pairs.config, own, other if given else None)
        self.pairs, self.part_name = pairs, part

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        return None

    @property
    def own_estimators(self) -> tuple[type[Request], ...]:
        found: tuple[type[Request], ...] = self.pairs.part_estimators(self.part_name)
        return found

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        lik: Likelihood = self.pairs.rows_part_log_prob(self.part_name, x, c, request, noise)
        return lik

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        x: Tensor = self.pairs.rows_part_sample(self.part_name, n, c, generator)
        return x

    def rows_per_pass(self) -> int:
        rows: int = self.pairs.rows_per_pass()
        return rows

    def rows_per_draw(self) -> int:
        rows: int = self.pairs.rows_per_draw()
        return rows

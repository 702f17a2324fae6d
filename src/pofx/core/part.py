"""One part of a pair, alone or given the other, by a model of pairs: a Model like any other, of the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import PartName
from pofx.core.likelihood import Likelihood
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.requests import Request, Sampler
from pofx.core.space import Space


class PartOfPair(Model):
    """p(a), p(b), p(a | b) or p(b | a) of a model that ``HasParts``; ``Model.part_model`` makes it."""

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

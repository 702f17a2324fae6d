"""A student beside the net of a path: it draws in a few steps, and learns how in a stage of its own.

The net is its teacher, whose likelihoods, scores of noised data and samplers stay what they are (paths/distill.py).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pofx.core.conditional import evaluating
from pofx.core.learner import Batch, GradientLearner, Recipe, Stage, TrainingSet
from pofx.core.likelihood import Unavailable
from pofx.core.noise import RowNoise
from pofx.core.options import Range
from pofx.core.requests import FewStep, Sampler
from pofx.core.space import Space
from pofx.families.continuous import BatchNoise, Continuous, ContinuousConfig
from pofx.nn.encoders import Encoded
from pofx.paths.distill import STUDENTS, consistency_loss, even_angles
from pofx.paths.objective import TIMES, WEIGHTINGS, path_loss
from pofx.paths.predict import Denoise, Denoiser
from pofx.paths.samplers import sample
from pofx.paths.schedule import Schedule

HOPS = 2.0, 80.0  # of a student of consistency, over the whole way, at first and at last (cf. Song & Dhariwal 2024)
PAIRED = 20  # steps of the sampler that finds the datum of a noise
PAIRS, PAIRED_NUMBERS = 1024, 2**18  # of one epoch, and numbers in all their data, at most
REUSED = 8  # times that a pair is used, each at another time of the path


@dataclass(frozen=True)
class StudentOptions(ContinuousConfig):
    """Options of a path with a student.

    Attributes:
        student: a second net that draws in a few steps, learned from the first by "consistency" (Song et al. 2023) or
            "reflow" (Liu et al. 2023); likelihoods stay those of the first.
        student_share: of the budget, at its end, in which it learns.
    """

    student: Literal["none", "consistency", "reflow"] = "none"
    student_share: float = 0.4

    ranges = {"student_share": Range(0, 1, above=True, below=True)}


class Pairs(TrainingSet):
    """Noise and the datum it leads to, made anew for each epoch: rows that ``make`` finds from a seed.

    Args:
        make: seed -> the training row [M] whose context and codes each pair has, and the pairs [M, ...].
    """

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]], count: int) -> None:
        self.make, self.count = make, count
        self.owners, self.pairs = torch.empty(0), torch.empty(0)

    def __len__(self) -> int:
        return REUSED * self.count

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.pairs[index % self.count]

    def owner(self, index: Tensor) -> Tensor:
        return self.owners[index % self.count]

    def set_epoch(self, number: int) -> None:
        self.owners, self.pairs = self.make(number)


class Taught(Continuous):
    """Base of paths that may have a student. A subclass makes ``student`` from its ``net`` once it has that."""

    config: StudentOptions  # type: ignore[assignment]
    schedule: Schedule
    shape: tuple[int, ...]
    net: nn.Module
    student: nn.Module | None
    begun: Tensor | None  # whether the student, where there is one, has begun to learn: before, nothing is drawn by it

    @abstractmethod
    def denoiser(self, h: Encoded | None, net: nn.Module | None = None) -> Denoiser:
        """The denoiser of rows y [N, *shape] given h, by this net."""

    @abstractmethod
    def within(self, denoise: Denoise) -> Denoise:
        """The denoiser kept to where data are, for samplers."""

    @abstractmethod
    def from_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of z at the noise's end of the path [n, *shape]."""

    @abstractmethod
    def levels(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """u [B] uniform in [0, 1), stratified over the whole batch."""

    def answers(self, asked: Any) -> bool:
        return super().answers(asked) and (asked is not FewStep or bool(self.begun))

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        kind = kind or self.own_samplers[0]
        return kind() if hasattr(kind, "steps") else kind(steps=self.config.sample_steps)  # type: ignore[attr-defined,call-arg]

    @property
    def solver(self) -> Any:
        """The default of the samplers that go all the way, step by step: what guides or watches them sees no leaps."""
        return self.default_sampler(next(kind for kind in self.own_samplers if kind is not FewStep))

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if config.student == "none":
            yield "student_share"

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if config.student != "none" and config.predict in ("eps", "score"):
            return (
                f"a student cannot leap from noise by a net that predicts {config.predict}, whose errors there are "
                "many times as large in the datum. Choose predict=v, or leave student at none."
            )
        return super().refuses(space, context, config)

    def learner(self, recipe: Recipe) -> GradientLearner:
        taught = nn.ModuleList(part for part in self.children() if part is not self.student)
        return GradientLearner(taught, recipe, self._terms)

    def stages(self, recipe: Recipe) -> list[Stage]:
        share = self.config.student_share
        if self.student is None:
            return super().stages(recipe)
        learner = partial(GradientLearner, self.student, recipe, self._student_terms)
        return [
            Stage("teacher", recipe, partial(self.learner, recipe), 1 - share),
            Stage("student", recipe, learner, share, self._lessons, self._no_likelihood),
        ]

    def _no_likelihood(self, *of: Any) -> Unavailable:
        return Unavailable("a student of few steps has no likelihood; the model has that of its teacher")

    def _lessons(self, x: Any, c: Any, generator: torch.Generator) -> TrainingSet:
        """What a student learns from; it starts as its teacher."""
        assert self.student is not None
        assert self.begun is not None
        self.student.load_state_dict(self.net.state_dict())
        self.begun.fill_(True)
        if self.config.student == "consistency":
            return self.training_set(x)
        count = max(1, min(PAIRS, PAIRED_NUMBERS // self.dim))
        return Pairs(partial(self._pairs, x, c, count), count)

    @torch.no_grad()
    def _pairs(self, x: Any, c: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Which row of x [N, *E] and c each pair is of [M], and noise, datum and codes of each [M, 2 d + codes]."""
        generator, found = torch.Generator().manual_seed(seed), []
        owners = torch.randint(len(x), (count,), generator=generator)
        times = self.schedule.times(PAIRED)
        first, last = self.schedule(times[0]), self.schedule(times[-1])
        with evaluating(self):
            for rows in owners.split(self.rows_per_pass()):
                codes = self.split(x[rows].to(self.device), RowNoise.by_place(len(rows), generator)).codes
                h = self.given_codes(codes, None if c is None else self.encode_context(c[rows].to(self.device)))
                z = self.from_noise(len(rows), generator)
                end = sample("dpm++", self.within(self.denoiser(h)), self.schedule, times, z, generator)
                y = end / last.alpha.item()
                noise = (z - first.alpha.item() * y) / first.sigma.item()
                found.append(torch.cat([noise.flatten(1), y.flatten(1), codes.to(y)], 1))
        return owners, torch.cat(found)

    def _student_terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            e = self.batch_context(batch, generator)
            if self.config.student == "consistency":
                parts = self.split(batch.x, BatchNoise(batch, generator))
                y, codes, eps = parts.y, parts.codes, batch.randn(self.dim, generator=generator)
            else:
                eps, y, codes = batch.x.split([self.dim, self.dim, batch.x.shape[1] - 2 * self.dim], 1)
            h = self.given_codes(codes.long(), e)
        y, eps, u = y.reshape(-1, *self.shape), eps.reshape(-1, *self.shape), self.levels(batch, generator)
        student = self.denoiser(h, self.student)
        if self.config.student == "reflow":
            return {"loss": path_loss(student, y, [eps], u, TIMES["cosine"], WEIGHTINGS["edm"])}
        teacher, hops = self.within(self.denoiser(h)), HOPS[0] * (HOPS[1] / HOPS[0]) ** min(batch.progress, 1.0)
        return {"loss": consistency_loss(student, teacher, self.schedule, y, eps, u, hops)}

    def leaps(self, n: int, h: Encoded | None, steps: int, generator: torch.Generator) -> Tensor:
        """n draws of the student's y [n, *shape]."""
        denoise, times = self.within(self.denoiser(h, self.student)), even_angles(self.schedule, steps)
        z = self.from_noise(n, generator)
        return STUDENTS[self.config.student](denoise, self.schedule, times, z, generator)


def student_of(net: nn.Module, config: StudentOptions) -> nn.Module | None:
    """A student of the net, where the config names one."""
    return None if config.student == "none" else copy.deepcopy(net)

"""Likelihoods and samples of any number of rows, block by block: in this process, or by the workers of a Ray cluster.

``in_order`` maps a function over jobs and gives its answers in the jobs' order, whoever computes them. What a job
answers follows from the job alone (its block boundaries, its seed), so both engines give the same numbers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from pofx.cluster import connected
from pofx.core.abilities import DrawsByChains, can
from pofx.core.conditional import Conditional
from pofx.core.errors import NotANumber, PofxError, Unsupported, UsageError
from pofx.core.likelihood import Available, Likelihood, Unavailable, cat
from pofx.core.model import Model
from pofx.core.requests import Request, Sampler
from pofx.core.verdict import Verdict
from pofx.data.pieces import Piece, blocks
from pofx.data.tabular import Rounded
from pofx.evaluate.likelihood import Mean, Tally

Job = TypeVar("Job")
A = TypeVar("A")
Drawn: TypeAlias = tuple[Tensor, Verdict | None]

AHEAD = 2  # jobs of each core of a cluster that are under way or wait for those before them
TRIES = 3  # times that a job whose worker dies is given to another one
DRAWN = 2**16  # rows that are drawn at once, of data of few numbers each


# -- likelihoods -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    """What is known of the rows of one piece: their likelihood [n], and what reading them had to tell."""

    piece: Piece
    likelihood: Likelihood
    notes: list[str]


@dataclass(frozen=True)
class Evaluation:
    """log p of the rows of a piece. Callable, so that it and its model travel to workers as one object.

    Attributes:
        seed: of Monte Carlo draws. A block has the seed that follows from this one and from where it begins (the first
            one this very seed): rows that are equal have noise of their own, in other blocks, too.
        labels, options: of the run's data, to read rows by.
    """

    model: Model
    request: Request | None
    seed: int
    labels: Sequence[str] | None
    options: Mapping[str, Any]

    def __call__(self, piece: Piece) -> Evaluated:
        model, notes, found, first = self.model, list[str](), list[Likelihood](), piece.first
        how: Any = {"labels": self.labels, "options": self.options, "notes": notes}
        for part in blocks(piece, model.space, model.context, **how):
            generator = torch.Generator(model.device).manual_seed(_seed(self.seed, piece.number, first))
            try:
                with torch.no_grad():
                    found.append(model.given(part.c).log_prob(part.x, request=self.request, generator=generator))
            except NotANumber as error:
                place = f"{piece.file}, counted from its row {first}"
                raise NotANumber(f"{place}: {error.problem}", error.remedy) from error
            first += len(part)
        return Evaluated(piece, cat(found), notes)


@dataclass
class Stream:
    """The likelihoods of pieces, in order; ``tally`` and ``notes`` have grown when all have been taken."""

    evaluation: Evaluation
    pieces: Sequence[Piece]
    cluster: str | None = None
    notes: list[str] = field(default_factory=list)
    tally: Tally = field(init=False)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.tally = Tally(self.evaluation.model.space)

    def __iter__(self) -> Generator[tuple[Piece, Available], None, None]:
        """The likelihood of each piece's rows. Raises Unsupported where there is none."""
        with closing(in_order(self.evaluation, self.pieces, self.cluster)) as answers:
            for answer in answers:
                lik = answer.likelihood
                if isinstance(lik, Unavailable):
                    raise Unsupported(f"{self.evaluation.model.name} has no likelihood: {lik.reason}")
                tell_once(self.notes, answer.notes)
                self.tally.add(lik)
                yield answer.piece, lik

    def mean(self) -> Mean:
        """Of the rows so far."""
        return self.tally.mean(time.perf_counter() - self.started)


def tell_once(told: list[str], notes: Sequence[str]) -> None:
    """Add to what is told what is not yet; values that were rounded add up by column."""
    for note in notes:
        same = [i for i, t in enumerate(told) if isinstance(t, Rounded) and isinstance(note, Rounded)
                and t.column == note.column]  # fmt: skip
        if same and isinstance(note, Rounded):
            told[same[0]] = told[same[0]].and_of(note)  # type: ignore[attr-defined]
        elif note not in told:
            told.append(note)


# -- samples -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """Draws of one block: job (b, n) is n rows by a generator that follows from the seed and b (of the first: it)."""

    given: Conditional
    sampler: Sampler | None
    seed: int

    def __call__(self, job: tuple[int, int]) -> Drawn:
        number, n = job
        generator = torch.Generator(self.given.model.device).manual_seed(_seed(self.seed, number))
        return drawn(self.given, n, generator, self.sampler)


def drawn(given: Conditional, n: int, generator: torch.Generator, sampler: Sampler | None = None) -> Drawn:
    """n draws [n, *C, *E], and whether chains that drew them have mixed: told, whatever it is, by who asks here."""
    if can(given.model, DrawsByChains):
        return given.sample_with_verdict(n, generator=generator, sampler=sampler)
    return given.sample(n, generator=generator, sampler=sampler), None


def draw(drawing: Drawing, n: int, cluster: str | None = None) -> Generator[Drawn, None, None]:
    """n rows in blocks [m, *C, *E], the same on any engine, each with the verdict of the chains that drew it."""
    dims = drawing.given.model.space.dims * max(1, int(np.prod(drawing.given.batch_shape)))
    size = max(1, min(DRAWN, 2**24 // max(1, dims)))
    jobs = [(b, min(size, n - b * size)) for b in range(max(1, -(-n // size)))]
    return in_order(drawing, jobs, cluster)


def _seed(seed: int, *place: int) -> int:
    """``seed`` itself for the first place, and one that is well spread for each other."""
    if not any(place):
        return seed
    return int(np.random.SeedSequence([seed % 2**64, *place]).generate_state(1, np.uint64)[0] >> np.uint64(1))


# -- engines -----------------------------------------------------------------------------------------------


def in_order(work: Callable[[Job], A], jobs: Sequence[Job], cluster: str | None = None) -> Generator[A, None, None]:
    """``work`` of each job, in their order: here, or by as many workers of a Ray cluster as it has cores.

    Raises what ``work`` raises (of several, the first in order), UsageError where the cluster cannot do it.
    """
    if cluster is None:
        yield from map(work, jobs)
        return
    with connected(cluster) as ray:
        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(num_cpus=1, max_retries=TRIES)(_answer)
        what, todo, waiting = ray.put(work), iter(jobs), deque[Any]()
        try:
            while True:
                waiting.extend(task.remote((what,), job) for job in islice(todo, ahead - len(waiting)))
                if not waiting:
                    return
                try:
                    answer = ray.get(waiting.popleft())
                except ray.exceptions.RayError as error:
                    first = str(error).partition("\n\nThe above exception")[0]  # what came of what follows below it
                    raise UsageError(
                        f"The cluster could not do it: {first.strip().splitlines()[-1].rstrip('.')}.",
                        "Each of its machines needs this pofx, and the files by the same path or address.",
                    ) from error
                if isinstance(answer, PofxError):
                    raise answer
                yield answer
        finally:
            for left in waiting:  # never by force, see engine.py
                ray.cancel(left)


def _answer(what: tuple[Any], job: Any) -> Any:
    """What a worker does. An error of ours is an answer, too, which waits for those before it."""
    try:
        return _held(*what)(job)
    except PofxError as error:
        return error


@lru_cache(maxsize=1)
def _held(what: Any) -> Any:
    """The work, with its model: fetched once by each worker."""
    import ray

    torch.set_num_threads(1)  # a worker has one core
    return ray.get(what)

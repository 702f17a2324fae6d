"""What a fitted model is worth on given rows: every figure of a comparison, each guarded and bounded in time."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import Encodes, FromLatents, HasBoundTerms, ShowsWay, can
from pofx.core.errors import EmptyData, PofxError, UsageError
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.options import AMOUNT, POSITIVE, Options, at_least
from pofx.core.requests import Ais, ExactLikelihood, Sampler, StepByStep
from pofx.core.space import Space, join
from pofx.core.verdict import Verdict, worst
from pofx.data.parts import Data, Part, class_counts
from pofx.data.rows import read_rows
from pofx.evaluate import recommend
from pofx.evaluate.cost import Speed, grow, latency, speed_curve
from pofx.evaluate.dependent import share
from pofx.evaluate.inference import inference_gap
from pofx.evaluate.judge import DRAWS, in_words, judging, metrics_json
from pofx.evaluate.latent import linear_probe, usage
from pofx.evaluate.latent_space import codes, groups, reconstruct, strips
from pofx.evaluate.likelihood import Mean, encode, mean_log_prob, unavailable
from pofx.evaluate.outlier import corrupt, detect
from pofx.evaluate.pairs import judged, judged_classes
from pofx.evaluate.paths import (
    FEWEST_DRAWS,
    MOST_DRAWS,
    at_steps,
    bound_terms,
    guided,
    guides,
    planar,
    quality_by_steps,
    trajectories,
)
from pofx.evaluate.predict import predict
from pofx.evaluate.stream import drawn as draws_of
from pofx.evaluate.text import marks
from pofx.evaluate.two_sample import C2st, Features, Groups, c2st, frechet, memorisation, mmd, nearest, prdc
from pofx.train.checkpoint import write_arrays

TRAIN_ROWS = 20_000  # training rows among which copies are looked for
LATENT_ROWS = 1000
RATE_ROWS = 1024  # rows over which throughput is measured
SHOWN_TEXTS, SHOWN_SYMBOLS = 2, 600  # of which the surprise at each symbol is kept
SHOWN_BYTES, SHOWN_ROWS = 4 * 2**20, 4  # of samples and of data kept for reports, about; the fewest rows
TASK_ROWS = 500  # pairs on which the metrics of the task are taken
SHOWN_PAIRS, SHOWN_DRAWS = 6, 4  # of which draws are kept beside the truth, and of each
DEPENDENT = 4  # columns that others determine, whose share of the likelihood is measured
CURVE_SECONDS = 4.0  # for the speed of sampling over length, at most
EVALUATION = 0.25  # of the time of a fit, which evaluation may take,
SHORTEST = 5.0  # seconds, but never less than these: fewer rows would make figures of noise
GAP_ROWS, GAP_SECONDS = 16, 10.0  # rows of which the inference gap is told, and the least evaluation that it is part of
USUAL = 30.0  # seconds of a fit whose evaluation that of a budget in steps is like


@dataclass(frozen=True)
class Settings(Options):
    """What a comparison was asked for (see ``compare``); the budget of each fit in seconds or in steps."""

    seconds: float | None = USUAL
    steps: int | None = None
    cores: int | None = None  # of each family; None for as many threads as torch has
    seed: int = 0
    needs: tuple[str, ...] = ()
    samples: int = 2000
    max_test: int = 2000
    device: str = "auto"

    ranges = {"seconds": POSITIVE, "seed": AMOUNT, "samples": at_least(2), "max_test": at_least(2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        recommend.check(self.needs)

    @property
    def limit(self) -> float:
        """Seconds for the evaluation of one family."""
        return max(SHORTEST, EVALUATION * (self.seconds or USUAL))

    def within(self, share: float) -> float | None:
        """Seconds that a likelihood may take: a share of the limit, or any time where the budget is in steps, whose
        numbers depend on no clock."""
        return None if self.seconds is None else share * self.limit

    @property
    def quality_rows(self) -> int:
        """Rows of each side in two-sample tests; their cost is fixed by it (some 2 s at 1000)."""
        return 1000 if (self.seconds or USUAL) >= USUAL else 400

    @property
    def budget(self) -> str:
        """Of each fit, in words."""
        return f"{self.seconds:g} s" if self.steps is None else f"{self.steps:,} steps"

    def generator(self, purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
        """One stream of draws per purpose."""
        return torch.Generator(device).manual_seed(1000 * self.seed + purpose)


@dataclass(frozen=True)
class Study:
    """The rows, features and outliers on which every family is judged.

    Attributes:
        test: test rows in one random order, of which every family evaluates the first.
        features: the map of the two-sample tests (None over labels: there is nothing to look at).
        train: training rows in random order, at most ``TRAIN_ROWS``.
        real, known: the features of test rows and of these training rows.
        near: the distance of each of ``real`` to the nearest of ``known``.
        outliers: (what they are in words, rows).
    """

    data: Data
    settings: Settings
    test: Part
    features: Features | None
    train: Part
    real: Tensor
    known: Tensor
    near: Tensor
    outliers: tuple[tuple[str, Part], ...]

    @staticmethod
    def prepare(data: Data, settings: Settings, outliers: Any = None, anomaly: str | None = None) -> Study:
        """Draw the rows; ``outliers`` and ``anomaly`` as in ``compare``."""
        if len(data.test) == 0:
            raise EmptyData("The test part has no rows, so nothing can be compared.", "Choose another split.")
        test = data.test[torch.randperm(len(data.test), generator=settings.generator(0))]
        found = []
        if anomaly is not None:
            test, odd = _split_by_class(data, test, anomaly)
            found.append((f"test rows of class {anomaly!r}", odd[: settings.max_test].in_memory()))
        if outliers is not None:
            found.append(_other_rows(data, outliers, settings))
        test = test[: settings.max_test].in_memory()
        train = data.train[torch.randperm(len(data.train), generator=settings.generator(2))[:TRAIN_ROWS]].in_memory()
        if data.space.values:
            empty = torch.empty(0)
            return Study(data, settings, test, None, train, empty, empty, empty, tuple(found))
        if data.space.event_shape:  # a single number has nothing to shuffle
            shuffled, words = corrupt(data.space, test, settings.generator(1))
            found.insert(0, (words, shuffled))
        some = test[: settings.quality_rows]
        features = Features(data.space, train, data.context, seed=settings.seed)
        real, known = features.of(some), features.of(train)
        near = nearest(real, known)
        return Study(data, settings, test, features, train, real, known, near, tuple(found))

    @property
    def valid(self) -> Part:
        """Validation rows, as many as test rows are evaluated at most: what may be decided before these are seen."""
        return self.data.valid.draw(self.settings.max_test, self.settings.seed)

    def reference(self) -> dict[str, Any]:
        """The two-sample tests with training rows for samples: what a perfect model would reach."""
        if self.features is None:
            return {"unavailable": "Labels have no sample quality."}
        some = self.known[: self.settings.quality_rows]
        return {"n": len(self.real)} | self.two_sample(self.real, some, (self.test.groups, self.train.groups))

    def two_sample(self, real: Tensor, fake: Tensor, groups: Groups, paired: bool = False) -> dict[str, Any]:
        told: Any = {"groups": groups, "paired": paired}
        return {
            "c2st": guarded(lambda: c2st(real, fake, **told, seed=self.settings.seed)),
            "mmd": guarded(lambda: mmd(real, fake, **told, generator=self.settings.generator(3))),
            "frechet": guarded(lambda: frechet(real, fake, groups=groups)),
            "prdc": guarded(lambda: prdc(real, fake, groups=groups)),
        }

    @property
    def groups(self) -> Groups:
        """Of test rows, and of draws, row i of which is given the context of row i."""
        return self.test.groups, self.test.groups if self.data.context is not None else None


def evaluate(study: Study, model: Model, tell: Callable[[str], None]) -> tuple[dict[str, Any], Mean, dict[str, Part]]:
    """All figures of a fitted model as plain data, its mean log-likelihood with the rows, and what it drew, by name.

    ``tell`` is called with the name of each stage. The likelihood may take 35% of the time limit, with the terms of a
    bound, for which 5% are kept; sampling 20% and what that left over, its speed over length 10%, outliers 10%; the
    rest, some 30%, is bounded by its number of rows. Last, draws in fewer steps and with guidance take 20% each at
    most, and end at 95% of the whole. Where the budget is in steps, likelihoods of all rows are taken, whatever the
    time.
    """
    settings, space, begun = study.settings, study.data.space, time.perf_counter()
    tell("likelihood")
    in_terms = can(model, HasBoundTerms)
    lik = _likelihood(study, model, settings.within(0.3 if in_terms else 0.35))
    found: dict[str, Any] = {"likelihood": lik.to_json(rows=False)}
    if in_terms:  # with the draws of the likelihood, whose terms they are where it is that bound
        left = max(0.05 * settings.limit, 0.35 * settings.limit - (time.perf_counter() - begun))
        found["terms"] = guarded(lambda: bound_terms(model, study.test, settings.generator(5, model.device), left))
    tell("sampling")
    drawing = 0.2 * settings.limit + max(0.0, 0.35 * settings.limit - (time.perf_counter() - begun))
    try:
        found["sampling"], fake = _sample(study, model, drawing)
    except Exception as error:
        found["sampling"], fake = {"unavailable": reason(error)}, None
    drawn: dict[str, Part] = {} if fake is None else {"samples": shown(fake, space)}
    tell("sample quality")
    found["quality"] = guarded(lambda: _quality(study, fake, found["sampling"].get("cut")))
    if study.data.context is not None and not space.values:
        tell("pairs")
        found["pairs"] = guarded(lambda: _pairs(study, model, fake, found["sampling"], drawn))
    tell("latents")
    found["latents"] = _latents(study, model, drawn)
    tell("outliers")
    found["outliers"] = _outliers(study, model, lik, settings.within(0.1))
    if study.data.dependent:
        tell("dependent columns")
        found["dependent"] = _dependent(study, model, settings.within(0.05))
    if space.values:
        said = guarded(lambda: _classes(study, model, drawn))
        found |= said if "accuracy" in said else {"accuracy": said}
    if space.alphabet is not None:
        found["surprise"] = guarded(lambda: {"texts": _surprise(study, model)})
    if fake is not None and getattr(model.default_sampler(), "steps", None) is not None:
        tell("steps of the sampler")
        _on_the_way(study, model, fake, found, drawn, begun + 0.95 * settings.limit)
    return found, lik, drawn


def _likelihood(study: Study, model: Model, seconds: float | None) -> Mean:
    generator, test = study.settings.generator(5, model.device), study.test
    try:
        found = mean_log_prob(model, test, generator=generator, seconds=seconds)
        if found.n == len(test) < RATE_ROWS:  # too few rows for a throughput: take them again and again
            many = test[torch.arange(RATE_ROWS) % len(test)]
            again = mean_log_prob(model, many, generator=generator, seconds=0.035 * study.settings.limit)
            found = dataclasses.replace(found, rows_per_second=again.rows_per_second)
        return found
    except Exception as error:
        return unavailable(reason(error), model.space)


def _sample(study: Study, model: Model, seconds: float) -> tuple[dict[str, Any], Part]:
    """Draws (given the contexts of the test rows), with the time for one and the rate for many.

    Of data of free length also the speed over length; and where a few draws of the longest length would take too
    long, all are cut short, and ``cut`` says after how many steps.
    """
    space = model.space
    generator, verdicts = study.settings.generator(6, model.device), list[Verdict]()
    figures: dict[str, Any] = {"cut": None}

    sampler = StepByStep() if StepByStep in model.own_samplers else None
    timed = study.settings.generator(9, model.device)
    if space.fill is not None and sampler is not None:

        def steps(rows: int, length: int) -> int:
            return int(space.lengths(_draw(study, model, 0, rows, StepByStep(length), timed, []).x).max())

        curve = speed_curve(steps, space.length, min(CURVE_SECONDS, 0.1 * study.settings.limit))
        # a single draw, twice at most, and the first block, which ``grow`` takes for 2.75 of them
        sampler = StepByStep(_affordable(curve, space.length, seconds / 5))
        figures["speed"] = plain(curve)
    one = latency(lambda: _draw(study, model, 0, 1, sampler, timed, []), seconds=0.1 * seconds)
    grown = grow(
        lambda start, size: _draw(study, model, start, size, sampler, generator, verdicts),
        study.settings.samples,
        seconds - 2 * one,
        one=one,
    )
    x = join(space, [p.x for p in grown.parts])
    space.check(x)
    if space.fill is not None and sampler is not None and sampler.length == int(space.lengths(x).max()):
        figures["cut"] = sampler.length  # else all ended before it
    figures |= {"latency": one, "rows_per_second": grown.rows_per_second, "n": grown.rows, "seconds": grown.seconds}
    if verdicts:
        figures["chains"] = worst(verdicts).to_json()
    return figures, Part(x, _contexts(study, 0, len(x)))


def _draw(
    study: Study,
    model: Model,
    start: int,
    size: int,
    sampler: Sampler | None,
    generator: torch.Generator,
    verdicts: list[Verdict],
) -> Part:
    """The draws start .. start + size - 1, given the contexts of test rows, over and over.

    ``verdicts`` gets that of chains.
    """
    c = _contexts(study, start, size)
    x, verdict = draws_of(model.given(c), size if c is None else 1, generator, sampler)
    verdicts.extend([] if verdict is None else [verdict])
    return Part((x if c is None else x[0]).cpu(), c)


def _contexts(study: Study, start: int, size: int) -> Tensor | None:
    contexts = study.test.c
    return None if contexts is None else contexts[torch.arange(start, start + size) % len(contexts)]


def _affordable(curve: Sequence[Speed], longest: int, seconds: float) -> int | None:
    """How many steps of the largest batch ``seconds`` allow; None where that is the longest."""
    if not curve:
        return None
    length = max(1, int(seconds * curve[-1].steps_per_second / curve[-1].rows))
    return length if length < longest else None


def _quality(study: Study, fake: Part | None, cut: int | None) -> dict[str, Any] | Unavailable:
    """The two-sample tests, and whether samples copy training rows; all ``cut`` alike, where samples are."""
    if study.features is None:
        return Unavailable("Labels have no sample quality.")
    if fake is None:
        return Unavailable("There are no samples.")
    real, known, near = study.real, study.known, study.near
    if cut is not None:
        real, known = (study.features.of(part.cut(cut)) for part in (study.test[: len(real)], study.train))
        near = nearest(real, known)
    drawn = study.features.of(fake[: len(real)])
    about = {"features": study.features.description, "n": len(drawn), "n_train": len(known)}
    copying = guarded(lambda: memorisation(known, real, drawn, groups=study.groups, near=near))
    paired = study.data.context is not None
    return about | study.two_sample(real, drawn, study.groups, paired) | {"memorisation": copying}


def _pairs(
    study: Study, model: Model, fake: Part | None, sampling: Mapping[str, Any], drawn: dict[str, Part]
) -> dict[str, Any] | Unavailable:
    """The metrics of the task, of the draws that there are, of texts of what a search finds; and, into ``drawn``, some
    draws, those of one context together."""
    space, settings, n, cut = study.data.space, study.settings, len(study.test), sampling.get("cut")
    one_right = study.data.context is not None and not study.data.context.values  # a class has no one right x
    sampler = judging(model) if one_right and cut is None else model.default_sampler()
    generator = settings.generator(15, model.device)
    if sampler.searches:
        grown = grow(
            lambda start, size: _draw(study, model, start, size, sampler, generator, []),
            min(n, TASK_ROWS),
            0.1 * settings.limit,
        )
        x = join(space, [p.x for p in grown.parts])[None]
    elif fake is None:
        return Unavailable("There are no samples.")
    else:  # of which the first n are given the n contexts of test rows, the next n the same, ...
        x = fake.x[: max(1, min(DRAWS, len(fake) // n)) * n]
        x = x.reshape(max(1, len(x) // n), -1, *x.shape[1:])
    test, x, notes, metrics = study.test[: min(x.shape[1], TASK_ROWS)].read(), x[:, :TASK_ROWS], list[str](), {}
    if cut is not None:
        notes.append(f"There was time for the first {cut:,} steps of each draw, so they are not judged.")
    elif one_right:
        metrics = judged(space, test.x, x, seed=settings.seed, notes=notes, group=test.groups)
    some, few = [*x[:SHOWN_DRAWS, :SHOWN_PAIRS]], min(n, SHOWN_PAIRS)
    if not sampler.searches and cut is None and len(some[0]) == few:
        each = max(sampling["latency"], few / sampling["rows_per_second"])
        more = min(SHOWN_DRAWS - len(some), int(0.05 * settings.limit / each))
        some += [_draw(study, model, 0, few, None, generator, []).x for _ in range(more)]
    every = join(space, some).unflatten(0, (len(some), -1))
    drawn["pairs"] = Part(every.transpose(0, 1).flatten(0, 1))
    about = {"rows": len(test), "how": in_words(sampler, len(x)), "draws": len(some), "notes": notes}
    return about | {"metrics": metrics_json(metrics)}


def _on_the_way(
    study: Study, model: Model, fake: Part, found: dict[str, Any], drawn: dict[str, Part], until: float
) -> None:
    """Of models that draw in steps, into ``found`` and ``drawn``: quality over steps, trajectories, guided draws."""
    limit, sampler = study.settings.limit, model.default_sampler()
    each = 1 / (found["sampling"]["rows_per_second"] * sampler.steps)  # type: ignore[attr-defined]

    def seed(purpose: int) -> torch.Generator:
        return study.settings.generator(purpose, model.device)

    def left() -> float:
        return min(0.2 * limit, max(0.0, until - time.perf_counter()))

    def ways() -> dict[str, Any]:
        drawn["trajectories"] = trajectories(model, study.test.c, seed(12))
        return {"n": len(drawn["trajectories"])}

    def grid() -> dict[str, Any]:
        about, drawn["guided"] = guided(model, study.test, lambda: seed(13), each, left())
        return about

    if planar(study.data.space) and can(model, ShowsWay):
        found["trajectories"] = guarded(ways)
    if study.features is not None:
        found["steps"] = guarded(lambda: _steps(study, model, fake, found["sampling"], each, left()))
    if guides(model):
        found["guided"] = guarded(grid)


def _steps(
    study: Study, model: Model, fake: Part, sampling: Mapping[str, Any], each: float, seconds: float
) -> dict[str, Any]:
    """Quality over the steps of the model's sampler, up to its own number."""
    features, settings, sampler = study.features, study.settings, model.default_sampler()
    assert features is not None
    real, most = study.real[:MOST_DRAWS], sampler.steps  # type: ignore[attr-defined]

    def against(some: Tensor) -> C2st:
        paired = study.data.context is not None
        return c2st(real, some, paired=paired, groups=study.groups, folds=3, seed=settings.seed)

    def draw(steps: int, n: int) -> Tensor:
        asked = dataclasses.replace(sampler, steps=steps)  # type: ignore[call-arg]
        return features.of(_draw(study, model, 0, n, asked, settings.generator(14, model.device), []))

    begun = time.perf_counter()
    floor = against(study.known[:MOST_DRAWS])
    test = time.perf_counter() - begun
    points = quality_by_steps(draw, against, most, each, test, seconds - test)
    n = points[-1].n if points else FEWEST_DRAWS
    own = StepByStep not in model.own_samplers and len(fake) >= n  # these there are in any case
    if own and most not in [p.steps for p in points]:
        points.append(at_steps(most, features.of(fake[:n]), 1 / sampling["rows_per_second"], against))
    return {"sampler": sampler.name, "default": most, "floor": floor, "points": points}


def _latents(study: Study, model: Model, drawn: dict[str, Part]) -> dict[str, Any]:
    """What the latents know, how rows come back from them, and, into ``drawn``, what moves in images with them."""
    features, test = study.features, study.test[:LATENT_ROWS]
    if features is None:
        return {"probe": {"unavailable": "The labels are what this model predicts."}}

    def seen() -> dict[str, Any]:
        names, x = strips(model, test)
        drawn["latents"] = Part(x.flatten(0, 1))
        return {"names": names}

    found = {
        "probe": guarded(lambda: linear_probe(model, study.train, study.test, features)),
        "usage": guarded(lambda: usage(model, test)),
        "inference": guarded(lambda: _inference(study, model)),
    }
    if can(model, Encodes) and test.label is not None and study.data.labels:
        k = len(study.data.labels)
        found["groups"] = guarded(
            lambda: figures_of(groups(codes(model, test), k, test.label, seed=study.settings.seed))
        )
    if can(model, Encodes) and can(model, FromLatents):
        found["reconstruction"] = guarded(lambda: figures_of(reconstruct(model, test)))
        if study.data.space.pixels and len(test) > 1:
            found["strips"] = guarded(seen)
    return found


def _inference(study: Study, model: Model) -> dict[str, Any]:
    """The parts of the inference gap on a few test rows, log p by short annealing."""
    if study.settings.limit < GAP_SECONDS:
        return {
            "unavailable": f"It takes passes by the row, for which {GAP_SECONDS:g} seconds of evaluation are needed."
        }
    truth = None if ExactLikelihood in model.own_estimators else Ais(temperatures=20, chains=4)
    return inference_gap(model, study.test[:GAP_ROWS], fits=50, truth=truth, seed=study.settings.seed).to_json()


def _outliers(study: Study, model: Model, inliers: Mean, seconds: float | None) -> list[dict[str, Any]]:
    generator = study.settings.generator(7, model.device)
    share, group = None if seconds is None else seconds / max(1, len(study.outliers)), study.test.groups

    def one(words: str, rows: Part) -> dict[str, Any]:
        return guarded(lambda: detect(model, inliers, rows, words, group=group, generator=generator, seconds=share))

    return [{"outliers": words} | one(words, rows) for words, rows in study.outliers]


def _dependent(study: Study, model: Model, seconds: float | None) -> list[dict[str, Any]]:
    """What the columns that others determine add to the likelihood, each given all others; of the first few."""
    names = [c.name for c in study.data.space.columns]
    columns = [name for name in study.data.dependent if name in names][:DEPENDENT]
    generator = study.settings.generator(10, model.device)
    each = None if seconds is None else seconds / max(1, len(columns))

    def one(name: str) -> dict[str, Any]:
        values = study.train.x[:, names.index(name)]
        spread = float(values[~values.isnan()].std())
        return guarded(lambda: share(model, study.test, name, spread, generator, each))

    return [{"column": name} | one(name) for name in columns]


def _surprise(study: Study, model: Model) -> list[list[tuple[str, float]]]:
    """The first test texts, in stretches of text with their surprise in bits."""
    out = []
    for i in range(min(SHOWN_TEXTS, len(study.test))):
        row = study.test[i : i + 1].read()
        x = row.x[0][row.x[0] >= 0]
        c, before = (None if v is None else v[0] for v in (row.c, row.before))
        found = marks(model, x[:SHOWN_SYMBOLS], c, before)
        out.append([(m.text, round(m.bits, 2)) for m in found if m.text or len(x) <= SHOWN_SYMBOLS])
    return out


def _classes(study: Study, model: Model, drawn: dict[str, Part]) -> dict[str, Any]:
    """How often the most probable class is the right one, beside always guessing the commonest; and, given a context,
    the other metrics of classes. Into ``drawn`` the most probable ones."""
    generator = study.settings.generator(8, model.device)
    found = predict(model, study.test.c, counts=class_counts(study.data), generator=generator)
    told = {"accuracy": found.accuracy(study.test.x).to_json()}
    if study.data.context is None:
        return told
    drawn["pairs"] = Part(found.label[:SHOWN_PAIRS])
    metrics = metrics_json(judged_classes(found, study.test.x, seed=study.settings.seed))
    about = {"rows": len(study.test), "how": "the likeliest class", "draws": 1, "notes": []}
    return told | {"pairs": about | {"metrics": metrics}}


def _split_by_class(data: Data, test: Part, name: str) -> tuple[Part, Part]:
    """The test rows of all other classes, and those of class ``name``."""
    if data.labels is None or test.label is None:
        raise UsageError(f"The data have no labels, so none is {name!r}.", "Name their column: label=COLUMN.")
    if name not in data.labels:
        raise UsageError(f"There is no class {name!r}.", f"Classes: {', '.join(data.labels[:20])}.")
    odd = test.label == data.labels.index(name)
    if min(int(odd.sum()), int((~odd).sum())) < 2:
        raise EmptyData(f"{int(odd.sum())} of {len(test)} test rows are of class {name!r}.", "2 of each are needed.")
    return test[~odd], test[odd]


def _other_rows(data: Data, source: Any, settings: Settings) -> tuple[str, Part]:
    """Rows of another data set, read as rows of this one's space."""
    if isinstance(source, Data):
        name, part = source.name, source.test
        if (source.space, source.context) != (data.space, data.context):
            raise UsageError(f"The outliers are {source.space}, the data {data.space}.", "Give rows of the same space.")
    elif isinstance(source, Part):
        name, part = "the given rows", source
    else:
        name = Path(source).name if isinstance(source, str | os.PathLike) else "the given rows"
        part = read_rows(data.space, data.context, source, labels=data.labels, options=data.options)
    order = torch.randperm(len(part), generator=settings.generator(4))[: settings.max_test]
    return f"rows of {name}", part[order].in_memory()


# -- plain data ------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON takes them; Unavailable as {"unavailable": reason}."""
    if isinstance(value, Unavailable):
        return {"unavailable": value.reason}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return encode(value)


def figures_of(found: Any) -> dict[str, Any]:
    """The numbers of a dataclass, without its tensors."""
    return {k: v for k, v in vars(found).items() if not isinstance(v, Tensor)}


def guarded(measure: Callable[[], Any]) -> dict[str, Any]:
    """What was measured as plain data, or why it could not be: one measure that fails leaves the others standing."""
    try:
        return dict(plain(measure()))
    except Exception as error:
        return {"unavailable": reason(error)}


def reason(error: Exception) -> str:
    """Our own errors explain themselves; others are named."""
    return str(error) if isinstance(error, PofxError) else f"{type(error).__name__}: {error}"


def save_shown(path: Path, study: Study) -> None:
    """Some test rows, and x of some training rows, for reports."""
    space = study.data.space
    save_rows(path, shown(study.test, space), train_x=shown(study.train, space).x)


def save_rows(path: Path, part: Part, **more: Tensor) -> None:
    """x, c and label of a part, and more arrays, in one .npz file."""
    arrays = {"x": part.x, "c": part.c, "label": part.label, **more}
    write_arrays(path, {k: v.numpy() for k, v in arrays.items() if v is not None})


def shown(part: Part, space: Space) -> Part:
    """As many of the first rows as a report needs: at most 1000, and some megabytes.

    Of data of free length a few at the least, cut where one alone has as much.
    """
    size = space.dtype.itemsize * math.prod(abs(k) for k in space.event_shape)  # of a step, where the length is free
    if space.fill is not None:
        length = min(space.length, SHOWN_BYTES // size)
        part, size = part.cut(length), size * length
    return part[: max(SHOWN_ROWS, min(1000, SHOWN_BYTES // max(1, size)))].read()

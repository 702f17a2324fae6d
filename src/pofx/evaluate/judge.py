"""What a model of p(x | c) is worth on pairs: the metrics of its task beside the held-out likelihood."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import beginnings
from pofx.core.errors import EmptyData, UsageError
from pofx.core.model import Model
from pofx.core.options import COUNT, check
from pofx.core.requests import AnyRequest, Decoding, Sampler
from pofx.data.parts import Data, Part, class_counts
from pofx.evaluate.likelihood import Mean, encode, mean_log_prob
from pofx.evaluate.pairs import Judged, firsts, judged, judged_classes, retrieval
from pofx.evaluate.predict import predict
from pofx.evaluate.stream import drawn as draws_of
from pofx.evaluate.two_sample import Features, c2st, frechet
from pofx.train.run import Run, read_data

PAIRS, DRAWS = 200, 8  # that are judged, and draws of each, unless told
BEAMS = 4  # of the search for a text
FEWEST = 20  # pairs of which draws are told from the truth by a classifier
FEWEST_OF_CLOUDS = 40  # of which clouds of features have a distance


@dataclass(frozen=True, eq=False, repr=False)
class Judgement:
    """What was found on n pairs.

    Attributes:
        metrics: of the task by name, each with its interval and in words.
        likelihood: log p(x | c) of the same pairs, with its kind and errors.
        how: how x were drawn given each c, in words.
        notes: what was left out, and why.
        part, drawn: the pairs, and the draws [K, n, *E] (None of labels, which are judged by their probabilities).
    """

    metrics: Mapping[str, Judged]
    likelihood: Mean
    how: str
    notes: tuple[str, ...]
    part: Part
    drawn: Tensor | None

    @property
    def n(self) -> int:
        return len(self.part)

    def __repr__(self) -> str:
        lines = [(name, found.text, found.words) for name, found in self.metrics.items()]
        lines.append(("log p(x | c)", self.likelihood.text, self.likelihood.bits_text * self.likelihood.available))
        wide = [max(len(line[i]) for line in lines) for i in range(2)]
        head = f"{self.n:,} pairs, {self.how}; 95% intervals"
        return "\n".join([head, *(f"{a:{wide[0]}}  {b:{wide[1]}}  {c}".rstrip() for a, b, c in lines)])

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.n,
            "how": self.how,
            "metrics": metrics_json(self.metrics),
            "likelihood": self.likelihood.to_json(rows=False),
            "notes": list(self.notes),
        }


def metrics_json(metrics: Mapping[str, Judged]) -> dict[str, dict[str, Any]]:
    """Plain data, with the printed form beside the numbers."""
    return {
        name: {k: encode(v) for k, v in dataclasses.asdict(found).items()} | {"text": found.text}
        for name, found in metrics.items()
    }


def judge(
    run: Run | Model,
    data: Data | Part | None = None,
    *,
    n: int = PAIRS,
    draws: int | None = None,
    sampler: Sampler | None = None,
    request: AnyRequest = None,
    recall: int | None = None,
    seed: int = 0,
) -> Judgement:
    """Judge a model of p(x | c) on pairs by its task's own metrics (``evaluate.pairs.judged``) and by likelihood.

    Labels are judged by the probabilities of all classes. Given a label there is no one right x: draws are then not
    laid beside single rows, but told from all of them by a classifier, as is done whatever the context.

    Args:
        run: of a model with a context.
        data: whose test part (or the part that) holds the pairs; by default those of the run's own data.
        n: pairs, drawn by the seed.
        draws: of each pair (default: ``DRAWS``, or the 1 best of a search).
        sampler: how they are drawn (default: a beam search with ``BEAMS`` beams where texts are drawn symbol by symbol,
            else the model's own).
        request: how the likelihood is estimated.
        recall: adds recall at this many, of x by c and of c by x (``evaluate.pairs.retrieval``), from n² likelihoods.
        seed: of all that is drawn.

    Raises UsageError where the model has no context, EmptyData where there are no pairs, and the errors of drawing.

    Example:
        >>> import pofx
        >>> data = pofx.load("wine", target="label")
        >>> found = judge(pofx.fit(data, "classifier", steps=20), data)
        >>> found.n, list(found.metrics), found.likelihood.symbol
        (18, ['accuracy', 'log-loss', 'calibration error'], '=')
    """
    model = run.model if isinstance(run, Run) else run
    for name, value in (("n", n), ("draws", draws), ("recall", recall)):
        if value is not None:
            check(name, value, int, COUNT)
    if model.context is None:
        raise UsageError(
            f"This {model.name} models p(x): there are no pairs to judge.",
            "Fit it with a context: --given or --target.",
        )
    if data is None and not isinstance(run, Run):
        raise UsageError("A model has no data of its own.", "Give data, or the run.")
    if data is None:
        assert isinstance(run, Run)
        data = read_data(run.info, str(run.path or "this run"))
    part = data.test if isinstance(data, Data) else data
    if not len(part) or part.c is None:
        raise EmptyData("There are no pairs of x and c to judge by.", "Give rows with their contexts.")
    part = part.draw(n, seed).read()

    def fresh() -> torch.Generator:
        return torch.Generator(model.device).manual_seed(seed)

    likelihood = mean_log_prob(model, part, request=request, generator=fresh())
    notes, x = list[str](), None
    if model.space.values:
        counts = class_counts(data) if isinstance(data, Data) else None
        found = predict(run, part.c, counts=counts, request=request, generator=fresh())
        metrics, how = judged_classes(found, part.x, seed=seed), "by the probabilities of all classes"
    else:
        sampler = judging(model) if sampler is None else sampler
        k = draws or (1 if sampler.searches else DRAWS)
        x, verdict = draws_of(model.given(part.c, before=beginnings(model, part.before)), k, fresh(), sampler)
        x, how = x.cpu(), in_words(sampler, k)
        if verdict is not None and not verdict.mixed:
            notes.append(f"The chains that drew have {verdict}.")
        told: Any = {"seed": seed, "notes": notes, "group": part.groups}
        metrics = {} if model.context.values else judged(model.space, part.x, x, **told)
        if (len(part) if part.groups is None else len(part.groups.unique())) >= FEWEST:
            metrics |= _like_real(model, data, part, x[0], seed, notes)
    if recall is not None:
        one = part if part.groups is None else part[firsts(part.groups)]  # else several would be as right
        found_by = retrieval(model, one.x, one.c, recall, request=request, generator=fresh())
        metrics |= {f"recall@{recall}, {name}": of for name, of in found_by.recall.items()}
    return Judgement(metrics, likelihood, how, tuple(notes), part, x)


def judging(model: Model) -> Sampler:
    """How a model's draws are judged unless told: texts by the best that a search finds, where it has one."""
    if model.space.alphabet is not None:
        own: list[Any] = [model.default_sampler(kind) for kind in model.own_samplers]
        own = [dataclasses.replace(s, beams=BEAMS) if isinstance(s, Decoding) else s for s in own]
        return next((s for s in own if s.searches), model.default_sampler())
    return model.default_sampler()


def in_words(sampler: Sampler, k: int) -> str:
    """Such as "8 draws each by dpm++, steps 20", or "the best each of a search with 4 beams"."""
    fields = {f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)}
    if sampler.searches:
        beams = fields.pop("beams", None)
        what = f"the {f'{k} ' * (k > 1)}best each of a search" + (f" with {beams} beams" if beams else "")
    else:
        what = f"{k} draw{'s' * (k > 1)} each by {sampler.name}"
    told = (f"{name.replace('_', ' ')} {value}" for name, value in fields.items() if value not in (None, False, (), ""))
    return ", ".join([what, *told])


def _like_real(
    model: Model, data: Data | Part, part: Part, x: Tensor, seed: int, notes: list[str]
) -> dict[str, Judged]:
    """How often a classifier tells pairs with a draw from real ones, and how far apart their features are."""
    features = Features(model.space, data.train if isinstance(data, Data) else part, model.context, seed=seed)
    notes.append(f"The features of a pair: {features.description}.")
    real, fake = features.of(part), features.of(Part(x, part.c))

    def told(value: float, se: float, words: str, unit: str = "", most: float = math.inf) -> Judged:
        low, high = (min(most, max(0.0, value + z * se)) for z in (-1.96, 1.96))
        return Judged(value, low, high, words, "less", unit, len(part))

    group = part.groups
    apart = c2st(real, fake, paired=True, groups=(group, group), seed=seed)
    out = {"told from real": told(apart.accuracy, apart.se, "accuracy of a classifier of pairs: 50% is best", "%", 1.0)}
    if (len(part) if group is None else len(group.unique())) >= FEWEST_OF_CLOUDS:
        far = frechet(real, fake, groups=(group, group))
        words = "of the Gaussians that fit the features of draws and of the truth"
        if isinstance(data, Data) and len(data.train) >= len(part):
            known = frechet(real, features.of(data.train.draw(len(part), seed)))
            words += f" ({known.distance:.3g} of as many training pairs)"
        out["Fréchet distance"] = told(far.distance, far.se, words)
    return out

"""Probabilities of classes p(y | x): of a model of labels as they are, of a model given labels by Bayes' rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import Classifies, can
from pofx.core.errors import Unsupported, UsageError
from pofx.core.likelihood import Available, Estimate, Exact, Kind, LowerBound, Unavailable, make, stack
from pofx.core.measure import Measure
from pofx.core.model import Model
from pofx.core.requests import AnyRequest
from pofx.core.space import Space, take
from pofx.data.parts import UNREAD
from pofx.evaluate.likelihood import Mean, summarise
from pofx.evaluate.ranking import share_error
from pofx.spaces import Label
from pofx.train.run import Run


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """p(y | x) of every class y, for each of N rows.

    Attributes:
        classes: the K classes by name.
        nats: log p(y | x) [N, K], float64; NaN in a row that the model holds impossible under every class.
        kind: Exact, or Estimate where the probabilities are made of bounds or estimates; ``caveat`` then says of which.
        counts: how often training has seen each class; None where that is not known.
        evidence: log p(x) = log sum over y of p(x | y) p(y) of each row, where Bayes' rule made the probabilities: how
            usual the row is whatever its class. None of a model that says p(y | x) itself.
    """

    classes: tuple[str, ...]
    nats: Tensor
    kind: Kind
    caveat: str = ""
    counts: tuple[float, ...] | None = None
    evidence: Available | None = None

    @property
    def probabilities(self) -> Tensor:
        """[N, K]; each row sums to one."""
        return self.nats.exp()

    @property
    def label(self) -> Tensor:
        """The most likely class of each row [N] int64; -1 where there are no probabilities."""
        return torch.where(self.nats.isnan().any(1), -1, self.nats.nan_to_num().argmax(1))

    @property
    def names(self) -> list[str | None]:
        """The most likely class of each row by name."""
        return [None if k < 0 else self.classes[k] for k in self.label.tolist()]

    def columns(self) -> dict[str, Any]:
        """What a table of the predictions holds: the most likely class, then the probability of each class by name."""
        name = "class"
        while name in self.classes:
            name += "_"
        return {name: self.names} | {k: self.probabilities[:, j] for j, k in enumerate(self.classes)}

    def likelihood(self, label: Tensor) -> Available:
        """log p(label | x) of a class for each row [N]."""
        nats = self.nats.gather(1, label.to(self.nats.device)[:, None])[:, 0].nan_to_num(nan=-math.inf)
        return make(self.kind, nats, Measure.counting(1), caveat=self.caveat)

    def log_loss(self, label: Tensor) -> Mean:
        """The mean of log p(label | x) [N]; ``loss_text`` of it is the log-loss."""
        return summarise(self.likelihood(label), Label(self.classes), torch.ones(len(label), dtype=torch.float64))

    def accuracy(self, label: Tensor) -> Accuracy:
        """How often the most likely class is the right one [N]."""
        right = (self.label.cpu() == label.cpu()).double().mean().item()
        commonest = None if self.counts is None else max(range(len(self.counts)), key=self.counts.__getitem__)
        majority = None if commonest is None else (label == commonest).double().mean().item()
        name = None if commonest is None else self.classes[commonest]
        return Accuracy(right, share_error(right, len(label)), majority, name, len(label))

    @property
    def sure(self) -> Tensor:
        """The probability of the most likely class of each row [N]; that of an even guess where there are none."""
        return self.probabilities.nan_to_num(1 / len(self.classes)).amax(1)

    def calibration(self, label: Tensor, bins: int = 10) -> Calibration:
        """Are the rows [N] whose most likely class has probability p right in a share p of them? See ``Calibration``.

        Rows without probabilities count as of an even guess that is wrong.
        """
        sure = self.sure
        right = (self.label.cpu() == label.cpu()).double()
        place = (sure * bins).long().clamp_max(bins - 1)
        rows = []
        for k in range(bins):
            of = place == k
            if n := int(of.sum()):
                rows.append(Reliability(n, float(sure[of].mean()), float(right[of].mean())))
        error = sum(r.n * abs(r.sure - r.right) for r in rows) / max(1, len(label))
        return Calibration(error, tuple(rows))

    def __repr__(self) -> str:
        found = torch.bincount(self.label[self.label >= 0], minlength=len(self.classes)).tolist()
        seen = ", ".join(f"{name}: {count:,}" for name, count in zip(self.classes, found, strict=True) if count)
        return f"{len(self.nats):,} row{'s' * (len(self.nats) != 1)}, by their most likely class: {seen or 'none'}"


@dataclass(frozen=True, repr=False)
class Accuracy:
    """The share of n rows of which the most likely class is the right one, and its standard error.

    ``majority`` is what always saying the commonest class of the training rows would reach on the same rows.
    """

    accuracy: float
    se: float
    majority: float | None
    commonest: str | None
    n: int

    @property
    def text(self) -> str:
        """Such as "96.7% ± 3.4% (always 'setosa': 33.3%)"."""
        beside = "" if self.majority is None else f" (always {self.commonest!r}: {self.majority:.1%})"
        return f"{self.accuracy:.1%} ± {self.se:.1%}{beside}"

    def __repr__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Reliability:
    """n rows of about the same probability of their most likely class: its mean, and the share that is right."""

    n: int
    sure: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from shares (Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural nets).

    Attributes:
        error: the expected calibration error, the mean of |sure - right| over bins, by their rows (their eq. 3).
        rows: the bins that have any rows, from the least sure one on: a reliability diagram.
    """

    error: float
    rows: tuple[Reliability, ...]


def predict(
    run: Run | Model,
    x: Any,
    *,
    counts: Sequence[float] | None = None,
    request: AnyRequest = None,
    generator: torch.Generator | None = None,
) -> Prediction:
    """p(y | x) of every class y: what a model of labels says, or what Bayes' rule makes of a model p(x | y).

    A model p(x | y) that is a classifier, too (``core.abilities.Classifies``), says them itself.

    Args:
        run: of a space or a context of labels. A generative model p(x | y) classifies by
            p(y | x) = p(x | y) p(y) / sum of the same over all y, with p(y) the frequencies of the training rows.
        x: what the label is told from, [N, *E]: an array, a tensor, a frame, whatever ``log_prob`` takes.
        counts: [K] how often each class is seen, in any unit (default: those of the run's training rows).
        request: how the likelihood is estimated.
        generator: gives the seed of Monte Carlo draws; the same draws for all classes.

    Raises Unsupported where the model knows of no label, or has no likelihood; UsageError where frequencies are needed
    and not known, and the errors of ``log_prob``.
    """
    model = run.model if isinstance(run, Run) else run
    x = x[:] if isinstance(x, UNREAD) else x
    if counts is None and isinstance(run, Run):
        counts = run.info["data"].get("counts")
    known = None if counts is None else tuple(map(float, counts))
    classes, itself = classes_of(model), can(model, Classifies)
    if known is not None and (len(known) != len(classes) or min(known) < 0 or sum(known) <= 0):
        raise UsageError(f"counts are {list(known)}; there are {len(classes)} classes.", "Give a count for each.")
    with torch.no_grad():
        if model.space.values:
            c = None if model.context is None else take(model.context, x)
            lik = model.given(c).classes(request=request, generator=generator)
        elif itself:
            lik = model.given(null=True).classify(x)
        else:
            if known is None:
                raise UsageError(
                    f"p(x | y) says nothing of y without the frequencies of its {len(classes)} classes.",
                    "Give counts, in Python; runs that are fitted from now on have them.",
                )
            seed, parts = generator or torch.Generator(model.device).manual_seed(0), []
            x, state = take(model.space, x), seed.get_state()
            for k in range(len(classes)):
                seed.set_state(state)
                parts.append(model.given(torch.tensor(k)).log_prob(x, request=request, generator=seed))
            lik = stack(parts)
    if isinstance(lik, Unavailable):
        raise Unsupported(f"{model.name} has no likelihood: {lik.reason}", "Fit a classifier: --target.")
    nats, evidence = lik.nats.double(), None
    if not (model.space.values or itself):
        assert known is not None
        nats = nats + torch.tensor(known, dtype=torch.float64, device=nats.device).div(sum(known)).log()
        evidence = _evidence(lik, nats)
    exact = isinstance(lik, Exact)
    bound = "a lower bound" if isinstance(lik, LowerBound) else "an upper bound"
    what = lik.caveat if isinstance(lik, Estimate) else f"made of {bound} for each class"
    kind = Exact if exact else Estimate
    return Prediction(classes, nats.log_softmax(1).cpu(), kind, "" if exact else what, known, evidence)


def _evidence(lik: Available, joint: Tensor) -> Available:
    """log p(x) [N] by log p(x, y) [N, K]: of exact numbers exact, of bounds a bound; of noisy ones an estimate.

    (The noise of a bound goes through the exponential, and so is no longer zero in the mean.) All classes have the same
    draws, so their errors add.
    """
    nats, share = joint.logsumexp(1), joint.softmax(1).nan_to_num()
    if isinstance(lik, Exact):
        return Exact(nats.cpu(), lik.measure)
    errors = (share * lik.mc_se.double().nan_to_num()).sum(1)
    shared = {name: (share * move.double()).sum(1).cpu() for name, move in lik.shared.items()}
    kind: Kind = type(lik) if not bool(errors.any()) else Estimate
    caveat = lik.caveat if isinstance(lik, Estimate) else f"log of a sum over classes of noisy {type(lik).__name__}s"
    return make(kind, nats.cpu(), lik.measure, errors.cpu(), lik.draws, caveat, shared)


def classes_of(model: Model) -> tuple[str, ...]:
    """The classes that a model tells apart. Raises Unsupported where it knows of none."""
    for space in (model.space, model.context):
        if space is not None and space.values:
            return space.values
    raise Unsupported(
        f"This {model.name} models {model.space} and knows of no classes.",
        "Fit a classifier (--target COLUMN), or a model given its classes (--given label).",
    )


def told_from(model: Model) -> Space | None:
    """What the classes are told from: the other one of space and context."""
    return model.context if model.space.values else model.space

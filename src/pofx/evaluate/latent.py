"""What do a model's latents know? A linear probe on the classes, and how many dimensions are used."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pofx.core.abilities import Encodes, why_not
from pofx.core.errors import EmptyData
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.data.parts import Part
from pofx.evaluate.latent_space import codes
from pofx.evaluate.ranking import share_error
from pofx.evaluate.two_sample import Features

TRAIN_ROWS, TEST_ROWS = 2000, 1000


@dataclass(frozen=True)
class Probe:
    """Held-out accuracy of logistic regression from latents to classes, beside two that need no model."""

    accuracy: float
    se: float  # binomial, over test rows
    raw_accuracy: float  # the same regression on raw features
    majority: float  # always guessing the commonest class
    dims: int  # of the latent
    classes: int
    n_train: int
    n_test: int
    features: str  # what the raw features are


def linear_probe(
    model: Model, train: Part, test: Part, raw: Features, *, max_rows: int = TRAIN_ROWS, seed: int = 0
) -> Probe | Unavailable:
    """Encode rows to the mean of q(z | x), fit logistic regression on training rows, test on held-out ones.

    Args:
        model: any family; one without a latent, or one that is given the class, is Unavailable.
        train, test: rows with labels, of which at most ``max_rows`` and half as many are used, drawn by ``seed``.
        raw: the feature map of the baseline.

    Example:
        >>> import pofx
        >>> from pofx.evaluate.two_sample import Features
        >>> data = pofx.load("two-moons", max_rows=600)
        >>> model = pofx.fit(data, "gmm", steps=20, options={"components": 8}).model
        >>> found = linear_probe(model, data.train, data.test, Features(data.space, data.train))
        >>> found.accuracy > 0.8, found.classes
        (True, 2)
    """
    if reason := why_not(type(model), Encodes, model.space):
        return Unavailable(reason)
    train, test = train.draw(max_rows, seed), test.draw(max_rows // 2, seed)
    y, y_test = train.label, test.label
    if y is None or y_test is None:
        return Unavailable("The data have no labels to probe for.")
    if model.context is not None and model.context.values:
        return Unavailable("The class is this model's context: its latents need not tell it.")
    if min(len(train), len(test)) < 2:
        raise EmptyData(f"{len(train)} training and {len(test)} test rows.", "A probe needs at least 2 of each.")
    z, z_test = codes(model, train), codes(model, test)
    accuracy = _accuracy(z, z_test, y, y_test)
    return Probe(
        accuracy=accuracy,
        se=share_error(accuracy, len(test)),
        raw_accuracy=_accuracy(raw(train.x, train.c), raw(test.x, test.c), y, y_test),
        majority=float((y_test == y.bincount().argmax()).double().mean()),
        dims=z.shape[1],
        classes=len(y.unique()),
        n_train=len(train),
        n_test=len(test),
        features=raw.description,
    )


def usage(model: Model, part: Part) -> dict[str, Any] | Unavailable:
    """How much of a variational latent is used: ``model.latent_report`` as plain data.

    active: dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al., 2016);
    kl: nats per dimension, near 0 where it collapsed onto the prior; rate: their sum, E[KL(q(z | x) || p(z))].
    """
    report = getattr(model, "latent_report", None)
    if report is None:
        return Unavailable(f"{model.name} has no approximate posterior that could collapse.")
    if len(part) < 2:
        raise EmptyData(f"{len(part)} test row{'s' * (len(part) != 1)}.", "How latents vary is told from 2 at least.")
    found = report(part.x, part.c)
    return {"active": found.active, "dims": len(found.kl), "kl": found.kl.tolist(), "rate": found.rate}


def _accuracy(x: Tensor, x_test: Tensor, y: Tensor, y_test: Tensor) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(y.unique()) == 1:
        return float((y_test == y[0]).double().mean())
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 iterations are the stated limit
        regression.fit(x.double().numpy(), y.numpy())
    return float(regression.score(x_test.double().numpy(), y_test.numpy()))

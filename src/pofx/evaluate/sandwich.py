"""A marginal likelihood between two bounds: annealing forward from below, back from above (Grosse et al. 2015).

On data the upper side needs draws of the posterior. A model that draws them exactly gives an upper bound; one whose
chains draw them an estimate, which says whether those have mixed. On data that the model simulates, x and z drawn
together, z is an exact draw of p(z | x), so both sides are bounds whatever the model: how far these lie apart there
says how much annealing of that length can be trusted (bidirectional Monte Carlo). Of an energy log Z is between them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch

from pofx.core.abilities import HasJoint, can
from pofx.core.errors import Unsupported
from pofx.core.likelihood import Number, Unavailable, mean, number, per_row
from pofx.core.model import Model
from pofx.core.requests import (
    Ais,
    Annealed,
    DequantisedPartitionAis,
    DequantisedReversePartitionAis,
    PartitionAis,
    ReverseAis,
    ReverseAisOfChains,
    ReversePartitionAis,
)
from pofx.data.parts import Part
from pofx.evaluate.likelihood import Mean, encode, summarise

SIMULATED = 100  # rows, unless told
SIDES: tuple[tuple[type[Annealed], type[Annealed]], ...] = (
    (Ais, ReverseAis),
    (Ais, ReverseAisOfChains),
    (ReversePartitionAis, PartitionAis),
    (DequantisedReversePartitionAis, DequantisedPartitionAis),
)
"""Estimators from below and from above, of which a model may have both."""


def sides_of(model: Model) -> tuple[type[Annealed], type[Annealed]]:
    """The estimators of a model from below and from above. Raises Unsupported where it has not both."""
    own = model.own_estimators
    for both in SIDES:
        if all(side in own for side in both):
            return both
    raise Unsupported(
        f"{model.name} over {model.space} has no two sides: it answers {', '.join(k.name for k in own)}.",
        "Its own estimators are what there is; see 'pofx families' for those with latents and energies.",
    )


@dataclass(frozen=True)
class Sandwich:
    """Both sides of log p(x) of the same rows.

    Attributes:
        lower, upper: means over the rows, in nats per datum; each says what it is.
        gap: the mean of upper minus lower, row by row; at least how far log p(x) may be from either.
        simulated: the same of rows that the model drew, of which both sides are bounds; None where it is that.
    """

    lower: Mean
    upper: Mean
    gap: Number[float]
    simulated: Sandwich | None = None

    @property
    def text(self) -> str:
        """Both sides in a line."""
        return f"{self.lower.text} and {self.upper.text}, {self.gap.told()} apart"

    def __repr__(self) -> str:
        return self.text

    def to_json(self, *, rows: bool = True) -> dict[str, Any]:
        """Plain data; ``rows`` adds both sides row by row."""
        gap = {k: encode(getattr(self.gap, k)) for k in ("nats", "se", "mc_se")} | {"kind": self.gap.kind.__name__}
        found = {"lower": self.lower.to_json(rows=rows), "upper": self.upper.to_json(rows=rows), "gap": gap}
        return found if self.simulated is None else found | {"simulated": self.simulated.to_json(rows=False)}


def sandwich(
    model: Model, part: Part, *, request: Annealed | None = None, simulate: int = SIMULATED, seed: int = 0
) -> Sandwich:
    """Both sides of the log-likelihood of the rows of ``part``, and of rows that the model simulates.

    Args:
        model: one that answers an estimator by annealing and its reverse, from exact draws or from chains.
        part: rows x [N, *E].
        request: any of ``Annealed``, whose numbers both sides take [default: those of the lower side].
        simulate: how many rows a model with latents draws, given the contexts of as many rows; 0 for none.
        seed: of all that is drawn. Rows have the same number in any batch.

    Raises Unsupported where the model has no two sides, or where the chains of an energy have not mixed; EmptyData
    where there are no rows.

    Example:
        >>> import pofx
        >>> from pofx.core.requests import Ais
        >>> data = pofx.load("two-moons", max_rows=200)
        >>> model = pofx.fit(data, "ppca", options={"latent": 1}).model
        >>> both = sandwich(model, data.test, request=Ais(temperatures=50), simulate=20)
        >>> exact = model.log_prob(data.test.x).nats.mean()
        >>> bool(both.lower.nats - 0.1 < exact < both.upper.nats + 0.1), both.upper.kind.__name__
        (True, 'UpperBound')
    """
    numbers = {} if request is None else vars(request)

    def side(kind: type[Annealed]) -> Annealed:
        taken = {f.name: numbers[f.name] for f in fields(kind) if f.name in numbers}
        return replace(cast(Annealed, model.default_request(kind)), **taken)

    lower, upper = map(side, sides_of(model))

    rows = part.read()

    def asked(request: Annealed) -> Mean:  # of all rows in one call, so that the worst verdict is that of all chains
        lik = model.given(rows.c).log_prob(rows.x, request=request, generator=torch.Generator().manual_seed(seed))
        if isinstance(lik, Unavailable):
            raise Unsupported(f"There is no number from {'below' if request is lower else 'above'}: {lik.reason}")
        lik = per_row(lambda t: t.cpu(), lik)
        return summarise(lik, model.space, model.space.units(rows.x), rows.weight, rows.groups)

    found = _between(asked(lower), asked(upper), rows.weight, rows.groups)
    if not simulate or not can(model, HasJoint):
        return found
    return replace(found, simulated=_simulated(model, part, lower, simulate, seed))


def _simulated(model: Model, part: Part, request: Annealed, n: int, seed: int) -> Sandwich:
    """Both bounds on rows that the model drew together with their latents."""
    generator = torch.Generator(model.device).manual_seed(seed)
    c = None if part.c is None else part.draw(n, seed).read().c
    given = model.given(c)
    x, z = given.sample_joint(n if c is None else 1, generator=generator)
    lower = given.log_prob(x, request=request, generator=generator)
    upper = given.reverse_ais(x, z, request=ReverseAis(**vars(request)), generator=generator)
    flat = x.reshape(-1, *model.space.event_shape)
    sides = [
        summarise(per_row(lambda t: t.cpu().flatten(), lik), model.space, model.space.units(flat.cpu()))
        for lik in (lower, upper)
        if not isinstance(lik, Unavailable)
    ]
    return _between(*sides)


def _between(lower: Mean, upper: Mean, weight: Any = None, group: Any = None) -> Sandwich:
    assert lower.rows is not None
    assert upper.rows is not None
    return Sandwich(lower, upper, mean(number(upper.rows) - number(lower.rows), weight, group=group))

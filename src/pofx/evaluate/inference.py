"""What an encoder costs: the gap between log p(x) and the ELBO, in two parts (Cremer et al. 2018, eq. 3).

    log p(x) - ELBO(q) = [ log p(x) - ELBO(q*) ] + [ ELBO(q*) - ELBO(q) ]

q* is the best of q's family for each datum by itself. The first part, of approximation, is what the family cannot say
of the posterior; the second, of amortisation, is what one encoder for all data loses against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pofx.core.errors import Unsupported
from pofx.core.likelihood import Number, Unavailable, mean, number
from pofx.core.model import Model
from pofx.core.requests import Ais, Elbo, ExactLikelihood, PerDatum, Request
from pofx.data.parts import Part
from pofx.evaluate.likelihood import encode


@dataclass(frozen=True)
class InferenceGap:
    """Means over rows, in nats per datum.

    Attributes:
        elbo: by the encoder's q.
        fitted: the ELBO by q*, fitted to each row from the encoder's q.
        log_p: log p(x): exact where the model knows it, else by annealing, a lower bound.
        approximation, amortisation: the two parts of the gap, paired by row. As log p is at least what annealing says,
            and the best q at least as good as the one that was found, the first is at least log_p - ELBO(q*) up to
            what the fit of q* missed, and the second at least what is told.
    """

    elbo: Number[float]
    fitted: Number[float]
    log_p: Number[float]
    approximation: Number[float]
    amortisation: Number[float]

    @property
    def text(self) -> str:
        """The gap and its parts in a line."""
        return (
            f"ELBO {self.elbo.told()}, of a q for each datum {self.fitted.told()}, log p(x) {self.log_p.told()}: "
            f"approximation {self.approximation.told()}, amortisation {self.amortisation.told()}"
        )

    def __repr__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Plain data: of each number its kind, nats and errors."""
        return {
            name: {"kind": n.kind.__name__, "nats": encode(n.nats), "se": encode(n.se), "mc_se": encode(n.mc_se)}
            for name, n in vars(self).items()
        } | {"rows": self.elbo.n}


def inference_gap(
    model: Model, part: Part, *, fits: int = 200, draws: int = 64, truth: Request | None = None, seed: int = 0
) -> InferenceGap:
    """The gap of an amortised posterior on the rows of ``part``, split in two.

    Args:
        model: one that answers ``Elbo`` and ``PerDatum``.
        part: rows x [N, *E]; both parts take passes by the row, so some hundred rows do.
        fits: steps by which q is fitted to each row.
        draws: of both ELBOs.
        truth: what stands for log p(x) [default: the exact one, else ``Ais``].
        seed: of all that is drawn.

    Raises Unsupported where the model has no encoder whose q could be fitted, EmptyData where there are no rows.
    """
    own = model.own_estimators
    if Elbo not in own or PerDatum not in own:
        raise Unsupported(
            f"{model.name} over {model.space} has no q(z | x) that could be fitted.",
            "See 'pofx families' for those with latents.",
        )
    truth = truth or (model.default_request(ExactLikelihood) if ExactLikelihood in own else Ais())
    rows = part.read()

    def asked(request: Request) -> Number[Any]:
        generator = torch.Generator().manual_seed(seed)
        lik = model.given(rows.c).log_prob(rows.x, request=request, generator=generator)
        assert not isinstance(lik, Unavailable)
        return number(lik)

    elbo, fitted, log_p = asked(Elbo(draws)), asked(PerDatum(draws, fits)), asked(truth)
    found = (elbo, fitted, log_p, log_p - fitted, fitted - elbo)
    return InferenceGap(*(mean(n, rows.weight) for n in found))

"""The check of bounds by importance weights."""

from __future__ import annotations

import torch

from pofx.core.likelihood import LowerBound
from pofx.core.requests import Iwae
from pofx.testing.subject import NotApplicable, Subject, check, generator

ROWS, SEEDS, MANY = 400, 8, 16
NOTICED = 0.1  # nats that two draws gain on one, from which on the gain of many is far beyond its error


@check
def more_draws_are_tighter(s: Subject) -> None:
    """The IWAE bound of many draws is above that of two (Burda et al. 2016, theorem 1), where their weights differ.

    The bound of two draws is above that of one by log cosh of half the difference of their log-weights, which is the
    error that it states: so weights differ where that is much. How much more many draws gain has no bound from below,
    as two may say nearly all, so that they gain anything beyond error is asked.
    """
    if Iwae not in s.model.own_estimators:
        raise NotApplicable
    part, gains, first = s.test[:ROWS], [], []
    for seed in range(SEEDS):
        few, many = (s.given(part).log_prob(part.x, request=Iwae(k), generator=generator(seed)) for k in (2, MANY))
        assert isinstance(few, LowerBound)
        assert isinstance(many, LowerBound)
        gains.append(many.nats - few.nats)
        first.append(few.mc_se.double().cosh().log())
    gain, expected = torch.stack(gains).double(), float(torch.stack(first).mean())
    error = float(gain.std()) / gain.numel() ** 0.5
    if expected < NOTICED:
        raise NotApplicable
    assert float(gain.mean()) > 4 * error, (
        f"{MANY} draws gain {gain.mean():.3g} ± {error:.2g} nats on 2, which gain {expected:.3g} on 1"
    )

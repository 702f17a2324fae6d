"""What Markov chains say of the draws that they gave: have they mixed?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RHAT, ESS = 1.01, 400.0  # the limits that Vehtari et al. 2021 recommend (section 4)


class NotMixed(UserWarning):
    """Draws of chains that have not mixed have left."""


@dataclass(frozen=True)
class Verdict:
    """Of chains: how far they agree, and how many independent draws theirs are worth (Vehtari et al. 2021).

    The worst of all that was watched stands for it: coordinates (or projections) of the state and its log-density.

    Attributes:
        rhat: the largest rank-normalised split R-hat; 1 where the chains agree.
        ess_bulk, ess_tail: the smallest effective sample sizes, of the middle and of the 5% and 95% quantiles.
        acceptance: mean share of proposals that were accepted; None where the kernel rejects none by design.
        chains, draws: how many chains, and states of each that were watched, after the warm-up.
        divergent: trajectories whose energy ran away.

    Example:
        >>> Verdict(rhat=1.2, ess_bulk=35.0, ess_tail=60.0, acceptance=0.9, chains=4, draws=500)
        not mixed: R-hat 1.200 (limit 1.01), effective draws 35 (bulk) and 60 (tail) of 2,000 (limit 400), 90% accepted
    """

    rhat: float
    ess_bulk: float
    ess_tail: float
    acceptance: float | None
    chains: int
    draws: int
    divergent: int = 0

    @property
    def mixed(self) -> bool:
        """Are all figures within their limits? One that is no number is not.

        No share of trajectories may diverge: they end where chains seldom come, and cannot enter, so that the fewest
        of them tell of a part that all draws lack, of which the other figures know nothing (Betancourt 2017, section
        6.2).
        """
        return self.rhat <= RHAT and self.ess_bulk >= ESS and self.ess_tail >= ESS and not self.divergent

    @property
    def text(self) -> str:
        """The verdict in a line."""
        said = [
            f"R-hat {self.rhat:.3f} (limit {RHAT:g})",
            f"effective draws {self.ess_bulk:,.0f} (bulk) and {self.ess_tail:,.0f} (tail) of "
            f"{self.chains * self.draws:,} (limit {ESS:g})",
        ]
        said += [] if self.acceptance is None else [f"{self.acceptance:.0%} accepted"]
        said += [f"{self.divergent:,} divergent"] if self.divergent else []
        return f"{'mixed' if self.mixed else 'not mixed'}: {', '.join(said)}"

    def __repr__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Plain values, what is no number as None; ``mixed``, and ``text`` that says all of it."""
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in dataclasses.asdict(self).items()
        }
        return plain | {"mixed": self.mixed, "text": self.text}


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of chains that were run one group after the other: the worst of each figure."""

    def least(values: list[float]) -> float:
        return min(values, key=lambda v: -math.inf if math.isnan(v) else v)

    accepted = [v.acceptance for v in verdicts if v.acceptance is not None]
    return Verdict(
        -least([-v.rhat for v in verdicts]),
        least([v.ess_bulk for v in verdicts]),
        least([v.ess_tail for v in verdicts]),
        sum(accepted) / len(accepted) if accepted else None,
        min(v.chains for v in verdicts),
        min(v.draws for v in verdicts),
        sum(v.divergent for v in verdicts),
    )

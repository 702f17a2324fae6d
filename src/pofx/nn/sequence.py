"""What nets over sequences have in common: one pass over all steps, and the same one step at a time.

    y_i = f(x_0, ..., x_i)

A net is causal: output i depends on inputs 0 .. i. Its cache holds what later steps need of earlier ones, so
that a step costs no more than the net's own arithmetic for it, and gives the same numbers as the whole pass.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Cache(Protocol):
    """A net in the middle of a batch of n sequences."""

    def step(self, x: Tensor) -> Tensor:
        """Take the next input [n, width] of every sequence; the output [n, width] there."""
        ...

    def extend(self, x: Tensor) -> Tensor:
        """Take the next k inputs [n, k, width] at once; the outputs [n, k, width]."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Sequence ``rows[i]`` becomes sequence i: rows may repeat, and be more or fewer."""
        ...

    def rewind(self, k: int) -> None:
        """Forget the last k inputs. Raises Unsupported where the net keeps nothing to go back to."""
        ...


class SequenceNet(nn.Module):
    """Inputs [N, L, width] -> outputs [N, L, width], causal in L.

    Attributes:
        width: of inputs and outputs.
        reach: the most inputs that an output may depend on; None where there is no limit.
        longest: the longest input of one pass, or of one cache; None where there is no limit.
    """

    width: int
    reach: int | None
    longest: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def matrices(self) -> list[Tensor]:
        """The weights between hidden layers: what Muon is for."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Linear)]

    def cache(self, n: int, length: int) -> Cache:
        """The beginning of n sequences of at most ``length`` steps."""
        raise NotImplementedError

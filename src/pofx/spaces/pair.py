"""Two spaces as one, for joint models: each datum holds one of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pofx.core.errors import BadValue
from pofx.core.measure import Measure
from pofx.core.space import Space, check_shape, filled_up
from pofx.spaces.table import Column


@dataclass(frozen=True)
class Pair(Space):
    """A datum of each of two spaces; one event is float64 [a.dims + b.dims]: a flattened, then b flattened.

    A part of free length takes as many numbers as its space's ``length`` asks for, which is the most that it may have
    in a pair, and is filled up after its end. The measure is the product of both.

    Example:
        >>> import torch
        >>> from pofx.spaces import Label, Reals
        >>> both = Pair(Label(("cat", "dog")), Reals((2,)))
        >>> x = both.join(torch.tensor([1]), torch.tensor([[0.5, -1.0]], dtype=torch.float64))
        >>> x.tolist(), both.split(x)[0].tolist(), str(both.measure)
        ([[1.0, 0.5, -1.0]], [1], 'counting × lebesgue^2')
    """

    a: Space
    b: Space

    name: ClassVar[str] = "pair"
    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def parts(self) -> tuple[Space, Space]:  # type: ignore[override]
        return self.a, self.b

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.a.dims + self.b.dims,)

    @cached_property
    def measure(self) -> Measure:
        return Measure.of([name for s in (self.a, self.b) for name, count in s.measure.parts for _ in range(count)])

    @cached_property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        """Those of both, where both have some; "a." and "b." tell them apart."""
        if not (self.a.columns and self.b.columns):
            return ()
        return tuple(replace(c, name=f"{k}.{c.name}") for k, s in (("a", self.a), ("b", self.b)) for c in s.columns)

    def __str__(self) -> str:
        return f"pairs of {self.a} and {self.b}"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [*S, D] as data of a and of b."""
        k = self.a.dims
        return _shaped(self.a, x[..., :k]), _shaped(self.b, x[..., k:])

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """Data of a [*S, *Ea] and of b [*S, *Eb] as x [*S, D].

        Raises WrongShape for a datum of free length that is longer than its space's ``length``.
        """
        return torch.cat([_flat(s, v).to(self.dtype) for s, v in ((self.a, a), (self.b, b))], -1)

    def check(self, x: Tensor) -> None:
        check_shape(self, x)
        a, b = self.split(x)
        # codes and levels stand as float64: what is no whole number, or too large for them, is none of them
        whole = (self.join(a, b) == x) | x.isnan()
        if not whole.all():
            raise BadValue(f"A pair holds {x[~whole][0].item():g}, which is no whole number there.", "Round it.")
        self.a.check(a)
        self.b.check(b)

    def check_draws(self, x: Tensor) -> str | None:
        found = (s.check_draws(v) for s, v in zip((self.a, self.b), self.split(x), strict=True))
        return next(filter(None, found), None)

    def spell(self, x: Tensor) -> str:
        return "; ".join(s.spell(v) for s, v in zip((self.a, self.b), self.split(x), strict=True))


def _flat(space: Space, v: Tensor) -> Tensor:
    """[*S, *E] -> [*S, D], where what is of free length is filled up to the space's."""
    rows = v.ndim - len(space.event_shape)
    return filled_up(space, v).reshape(*v.shape[:rows], space.dims)


def _shaped(space: Space, flat: Tensor) -> Tensor:
    """The inverse, of the space's dtype."""
    event = (space.length if size < 0 else size for size in space.event_shape)
    return flat.to(space.dtype).reshape((*flat.shape[:-1], *event))

"""The checks of contexts: what is beside one in a batch is no part of it, and none is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pofx.core.errors import Unsupported
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.space import join
from pofx.data.parts import Part
from pofx.testing.subject import NotApplicable, Subject, check, generator, precise


def outcome(model: Model, x: Tensor, e: Any) -> Tensor:
    """The nats of rows x given encoded contexts; of a family without a likelihood, a draw of each [N, K]."""
    with torch.no_grad():
        lik = model.eval().rows_log_prob(x, e, model.default_request(), RowNoise.by_place(len(x), generator(1)))
        if not isinstance(lik, Unavailable):
            return lik.nats.double()[:, None]
        drawn = model.rows_sample(len(x), e, model.default_sampler(), generator(1))
        return drawn.double().nan_to_num(nan=-1e3).flatten(1)


def some(s: Subject) -> Part:
    if s.case.context is None:
        raise NotApplicable
    return s.test[:24].read()


def gap(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / (1 + a.abs())).max())


@check
def contexts_do_not_leak(s: Subject) -> None:
    """A context of free length is worth the same alone, beside longer ones, and with any amount of fill after it."""
    part, space = some(s), s.case.context
    if space is None or space.fill is None:
        raise NotApplicable
    assert part.c is not None
    wide = join(space, [part.c, part.c.new_full((1, part.c.shape[1] + 7, *part.c.shape[2:]), space.fill)])[:-1]
    with precise(s.model, s.model.default_request()) as model:
        whole = outcome(model, part.x, model.encode_context(part.c))
        off = gap(whole, outcome(model, part.x, model.encode_context(wide)))
        assert off < 1e-4, f"fill after contexts changes numbers by {off:.3g} of their size"
        for size in space.lengths(part.c).unique().tolist():
            row = int((space.lengths(part.c) == size).nonzero()[0, 0])
            alone = model.encode_context(part.c[row : row + 1, :size])[torch.zeros(len(part), dtype=torch.int64)]
            off = gap(outcome(model, part.x, alone)[row], whole[row])
            assert off < 1e-4, f"beside longer ones, contexts of {size} steps change numbers by {off:.3g} of their size"


@check
def no_context_is_null(s: Subject) -> None:
    """What stands for no context is one thing: the same in the place of any context that training leaves out."""
    part = some(s)
    assert part.c is not None
    every, odd = torch.ones(len(part), dtype=torch.bool), torch.arange(len(part)) % 2 == 1
    with precise(s.model, s.model.default_request()) as model:
        try:
            none = outcome(model, part.x, model.null_context(len(part)))
        except Unsupported:
            raise NotApplicable from None
        for c in (part.c, part.c.roll(1, 0)):
            off = gap(none, outcome(model, part.x, model.encode_context(c, every)))
            assert off < 1e-4, f"a context that is left out changes numbers by {off:.3g} of their size"
        told = outcome(model, part.x, model.encode_context(part.c))
        both = outcome(model, part.x, model.encode_context(part.c, odd))
        off = gap(torch.where(odd[:, None], none, told), both)
        assert off < 1e-4, f"contexts beside one that is left out change by {off:.3g} of their size"
    drawn = s.model.given(null=True).sample(5, generator=generator(0))
    assert len(drawn) == 5, f"5 draws without a context are {len(drawn)}"
    s.case.space.check(drawn)

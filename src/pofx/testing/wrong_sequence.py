"""Deliberately wrong models of texts, and the small right one that they start from (see ``testing.wrong``)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pofx.core.abilities import Continues
from pofx.core.likelihood import Exact, Likelihood
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import Request, StepByStep
from pofx.core.space import Space
from pofx.testing.wrong import Small, answer, mistake


class Bigrams(Small, Continues):
    """Each symbol by the one before, by smoothed counts, one table per class where there is a label."""

    name = "right bigrams"
    samplers = (StepByStep,)
    table: Tensor  # [class, symbol before or the beginning, symbol or the end], log-probabilities

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        right = space.alphabet is not None and (context is None or context.values)
        return None if right else "it takes texts only."

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.has_eos, self.end = space.has_eos, space.symbols or 0  # which is the beginning's number, too
        size = (self.tables(context), self.end + 1, self.end + 1)
        self.register_buffer("table", torch.full(size, -math.log(self.end + 1)))

    def tables(self, context: Space | None) -> int:
        return len(context.values) if context is not None and context.values else 1

    def learn(self, x: Tensor, c: Tensor | None) -> None:
        before, after = self.line(x, None)
        k = self.classes(c, len(x))[:, None].expand_as(before)
        here = torch.arange(before.shape[1]) < (x >= 0).sum(1, keepdim=True) + int(self.has_eos)
        counts = torch.full(self.table.shape, 0.5)
        counts.index_put_((k[here], before[here], after[here]), torch.ones(int(here.sum())), accumulate=True)
        if not self.has_eos:
            counts[:, :, self.end] = 0.0
        self.table.copy_((counts / counts.sum(-1, keepdim=True)).log())

    def classes(self, c: Tensor | None, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.int64) if c is None else c

    def line(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each symbol and the end follow [N, L + 1], and they themselves."""
        after = torch.cat([x, x.new_full((len(x), 1), -1)], 1)
        first = torch.full((len(x),), -1) if before is None else self.last(before)
        line = torch.cat([first[:, None], x], 1)
        return line.where(line >= 0, self.end), after.where(after >= 0, self.end)

    def last(self, before: Tensor) -> Tensor:
        """The last symbol of each beginning [N], -1 where there is none."""
        padded = torch.cat([before.new_full((len(before), 1), -1), before], 1)
        return padded.gather(1, (before >= 0).sum(1, keepdim=True))[:, 0]

    def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
        return Exact(self.rows_log_probs(x, c, None, request).double().sum(1), self.space.measure)

    def rows_log_probs(self, x: Tensor, c: Tensor | None, before: Tensor | None, request: Request) -> Tensor:
        conditions, after = self.line(x, before)
        each = self.table[self.classes(c, len(x))[:, None], conditions, after]
        beyond = torch.arange(each.shape[1]) >= (x >= 0).sum(1, keepdim=True) + int(self.has_eos)
        return each.masked_fill(beyond, 0.0)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Any, generator: torch.Generator) -> Tensor:
        return self.walk(torch.full((n,), self.end), c, sampler, generator)

    def rows_sample_after(self, before: Tensor, c: Tensor | None, sampler: Any, generator: torch.Generator) -> Tensor:
        last = self.last(before)
        return self.walk(last.where(last >= 0, self.end), c, sampler, generator)

    def walk(self, symbol: Tensor, c: Tensor | None, sampler: Any, generator: torch.Generator) -> Tensor:
        """One continuation of each symbol [N]."""
        k, over, out = self.classes(c, len(symbol)), torch.zeros(len(symbol), dtype=torch.bool), []
        for _ in range(sampler.length or self.space.dims):
            symbol = torch.multinomial(self.table[k, symbol].exp(), 1, generator=generator)[:, 0]
            over = over | (symbol == self.end)
            symbol = symbol.where(~over, self.end)
            out.append(symbol.where(~over, -1))
        return torch.stack(out, 1)


class Translator(Bigrams):
    """One table for contexts of low symbols, one for those of high ones, and one for none."""

    name = "right translator"

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        right = context is not None and context.alphabet is not None and space.alphabet is not None
        return None if right else "it takes texts given texts only."

    def tables(self, context: Space | None) -> int:
        return 3

    def learn(self, x: Tensor, c: Tensor | None) -> None:
        assert c is not None
        super().learn(torch.cat([x, x]), torch.cat([self.guess(c), self.null_context(len(x))]))

    def guess(self, c: Tensor) -> Tensor:
        inside = c >= 0
        return ((c * inside).sum(1) > inside.sum(1)).long()

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Tensor:
        guess = self.guess(c)
        return guess if dropped is None else guess.masked_fill(dropped, 2)

    def null_context(self, n: int) -> Tensor:
        return torch.full((n,), 2)


# -- the mistakes ---------------------------------------------------------------------------------

mistake(  # the mean symbol of a context is taken over its fill as well
    Translator, "a context's padding leaks", "contexts do not leak",
    guess=lambda self, c: (c.double().mean(1) > 0.5).long(),
)  # fmt: skip
mistake(  # one that is left out in training is told all the same
    Translator, "a null context that is not null", "no context is null",
    encode_context=lambda self, c, dropped=None: self.guess(c),
)  # fmt: skip

Lines = tuple[Tensor, Tensor]


def sees_itself(self: Bigrams, x: Tensor, before: Tensor | None) -> Lines:
    """Inputs that are shifted one step too few: each symbol is predicted from itself."""
    _, after = Bigrams.line(self, x, before)
    return after, after


def looks_ahead(self: Bigrams, x: Tensor, before: Tensor | None) -> Lines:
    """A symbol is predicted from the one after it, as a mask on the wrong side would have it."""
    _, after = Bigrams.line(self, x, before)
    return torch.cat([after[:, 1:], torch.full_like(after[:, :1], self.end)], 1), after


mistake(Bigrams, "off-by-one shift", "every step sums to one", "strings sum to one", line=sees_itself)
mistake(Bigrams, "looks ahead", "later steps are not seen", line=looks_ahead)
mistake(  # what comes before is taken, and log p is as if it had not been
    Bigrams, "forgets what comes before", "what comes before splits the sum", "continuations follow what is before",
    line=lambda self, x, before: Bigrams.line(self, x, None),
)  # fmt: skip


def without_end(self: Bigrams, x: Tensor, *how: Any) -> Tensor:
    """The probability of a text, without that of its end."""
    each = Bigrams.rows_log_probs(self, x, *how)
    return each.masked_fill(torch.arange(each.shape[1]) >= (x >= 0).sum(1, keepdim=True), 0.0)


def by_fill(self: Bigrams, x: Tensor, *how: Any) -> Tensor:
    """A row's numbers grow with the share of fill in it."""
    return Bigrams.rows_log_probs(self, x, *how) * (1 + 0.01 * (x < 0).double().mean(1, keepdim=True))


def per_symbol(self: Bigrams, x: Tensor, *how: Any) -> Likelihood:
    """While log_probs sum to the datum's."""
    nats = answer(Bigrams, self, x, *how).nats
    return Exact(nats / (x >= 0).sum(1).clamp(min=1), self.space.measure)


mistake(Bigrams, "the end is left out", "ends count", "strings sum to one", rows_log_probs=without_end)
mistake(Bigrams, "padding leaks", "padding does not leak", rows_log_probs=by_fill)
mistake(Bigrams, "nats per symbol", "log probs sum to log prob", rows_log_prob=per_symbol)


def narrow(self: Bigrams, *how: Any) -> Tensor:
    """Draws at a temperature of 0.7 what is stated at 1."""
    stated = self.table.clone()
    self.table.copy_((stated / 0.7).log_softmax(-1))
    out = Bigrams.walk(self, *how)
    self.table.copy_(stated)
    return out


def longer(self: Bigrams, symbol: Tensor, c: Tensor | None, sampler: Any, generator: torch.Generator) -> Tensor:
    """One symbol more than was asked for."""
    return Bigrams.walk(self, symbol, c, StepByStep((sampler.length or self.space.dims) + 1), generator)


mistake(Bigrams, "texts drawn at a low temperature", "strings are drawn as stated", walk=narrow)
mistake(Bigrams, "lengths that were not asked for", "lengths are kept", walk=longer)

Gpt: Any = family("gpt")  # by the registry: nothing outside of families imports one


class OnStrings(Gpt):  # type: ignore[misc]
    """A gpt that is trained on one case only, to save time."""

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not (space.alphabet is not None and space.has_eos and context is None):
            return "it takes documents only."
        return super().refuses(space, context, config)


class Forgetful:
    """A transformer's cache whose second layer loses the keys and values of the last input."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def extend(self, x: Tensor) -> Tensor:
        out = self.cache.extend(x)
        for kept in self.cache.kept[1]:
            kept[:, :, self.cache.size - 1] = 0.0
        return out


def with_forgetful(self: Any, config: Any) -> Any:
    """What is sampled, through such a cache, is not what log p is of."""
    net = OnStrings.build(self, config)
    right = net.cache
    net.cache = lambda *sizes: Forgetful(right(*sizes))
    return net


def called_exact(self: Any) -> Any:
    """The likelihood of one spelling in subwords, called that of the string."""
    codec = OnStrings.make_codec(self)
    codec.kind = Exact
    return codec


mistake(OnStrings, "a cache that forgets", "caches change no sample", build=with_forgetful)
mistake(
    OnStrings, "one spelling called exact", "strings sum to one", make_codec=called_exact,
    tiny=classmethod(lambda cls, space: cls.Config(width=32, layers=1, n_heads=2, block=32, vocabulary=264)),
)  # fmt: skip

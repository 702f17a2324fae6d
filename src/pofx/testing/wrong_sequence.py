"""Deliberately wrong models of texts, and the small right one that they start from (see ``testing.wrong``)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pofx.core.likelihood import Exact, Likelihood
from pofx.core.model import Budget, Model, Sampler
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.space import Space
from pofx.spaces import Label, Text
from pofx.testing.wrong import Small


class Bigrams(Small):
    """Each symbol by the one before, by smoothed counts, one table per class where there is a label."""

    name = "right bigrams"
    continues = True
    table: Tensor  # [class, symbol before or the beginning, symbol or the end], log-probabilities

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        right = isinstance(space, Text) and (context is None or isinstance(context, Label))
        return None if right else "it takes texts only."

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        assert isinstance(space, Text)
        self.has_eos, self.end = space.has_eos, space.symbols  # which is the beginning's number, too
        self.register_buffer(
            "table", torch.full((self.tables(context), self.end + 1, self.end + 1), -math.log(self.end + 1))
        )

    def tables(self, context: Space | None) -> int:
        return len(context.values) if isinstance(context, Label) else 1

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

    def rows_log_prob(self, x: Tensor, c: Tensor | None, budget: Budget, noise: RowNoise) -> Likelihood:
        return Exact(self.rows_log_probs(x, c, None, budget).double().sum(1), self.space.measure)

    def rows_log_probs(self, x: Tensor, c: Tensor | None, before: Tensor | None, budget: Budget) -> Tensor:
        conditions, after = self.line(x, before)
        each = self.table[self.classes(c, len(x))[:, None], conditions, after]
        beyond = torch.arange(each.shape[1]) >= (x >= 0).sum(1, keepdim=True) + int(self.has_eos)
        return each.masked_fill(beyond, 0.0)

    def rows_sample(self, n: int, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self.walk(torch.full((n,), self.end), c, sampler, generator)

    def rows_sample_after(
        self, before: Tensor, c: Tensor | None, sampler: Sampler, generator: torch.Generator
    ) -> Tensor:
        last = self.last(before)
        return self.walk(last.where(last >= 0, self.end), c, sampler, generator)

    def walk(self, symbol: Tensor, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
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
        return None if isinstance(space, Text) and isinstance(context, Text) else "it takes texts given texts only."

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


class ContextLeaks(Translator):
    """The mean symbol of a context is taken over its fill as well."""

    name = "wrong: a context's padding leaks"

    def guess(self, c: Tensor) -> Tensor:
        return (c.double().mean(1) > 0.5).long()


class NullTells(Translator):
    """A context that is left out in training is told all the same."""

    name = "wrong: a null context that is not null"

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Tensor:
        return self.guess(c)


class SeesItself(Bigrams):
    """Inputs that are shifted one step too few: each symbol is predicted from itself."""

    name = "wrong: off-by-one shift"

    def line(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        _, after = super().line(x, before)
        return after, after


class LooksAhead(Bigrams):
    """A symbol is predicted from the one after it, as a mask on the wrong side would have it."""

    name = "wrong: looks ahead"

    def line(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        _, after = super().line(x, before)
        return torch.cat([after[:, 1:], torch.full_like(after[:, :1], self.end)], 1), after


class EndNotScored(Bigrams):
    """The probability of a text, without that of its end."""

    name = "wrong: the end is not scored"

    def rows_log_probs(self, x: Tensor, c: Tensor | None, before: Tensor | None, budget: Budget) -> Tensor:
        each = super().rows_log_probs(x, c, before, budget)
        return each.masked_fill(torch.arange(each.shape[1]) >= (x >= 0).sum(1, keepdim=True), 0.0)


class PaddingLeaks(Bigrams):
    """A row's numbers grow with the share of fill in it."""

    name = "wrong: padding leaks"

    def rows_log_probs(self, x: Tensor, c: Tensor | None, before: Tensor | None, budget: Budget) -> Tensor:
        each = super().rows_log_probs(x, c, before, budget)
        return each * (1 + 0.01 * (x < 0).double().mean(1, keepdim=True))


class ForgetsBeginnings(Bigrams):
    """What comes before is taken, and scores as if it had not been."""

    name = "wrong: forgets what comes before"

    def line(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().line(x, None)


class SumsElsewhere(Bigrams):
    """log_prob is per symbol, while log_probs sum to the datum's."""

    name = "wrong: nats per symbol"

    def rows_log_prob(self, x: Tensor, c: Tensor | None, budget: Budget, noise: RowNoise) -> Likelihood:
        lik = super().rows_log_prob(x, c, budget, noise)
        assert isinstance(lik, Exact)
        return Exact(lik.nats / (x >= 0).sum(1).clamp(min=1), lik.measure)


class NarrowStrings(Bigrams):
    """Draws at a temperature of 0.7 what is stated at 1."""

    name = "wrong: texts drawn at a low temperature"

    def walk(self, symbol: Tensor, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        stated = self.table.clone()
        self.table.copy_((stated / 0.7).log_softmax(-1))
        out = super().walk(symbol, c, sampler, generator)
        self.table.copy_(stated)
        return out


class AnyLength(Bigrams):
    """Draws one symbol more than was asked for."""

    name = "wrong: lengths that were not asked for"

    def walk(self, symbol: Tensor, c: Tensor | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        longer = Sampler(length=(sampler.length or self.space.dims) + 1)
        return super().walk(symbol, c, longer, generator)


Gpt: Any = family("gpt")  # by the registry: nothing outside of families imports one


class OnStrings(Gpt):  # type: ignore[misc]
    """A gpt that is trained on one case only, to save time."""

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not (isinstance(space, Text) and space.has_eos and context is None):
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


class CacheForgets(OnStrings):
    """What is sampled, through such a cache, is not what is scored."""

    name = "wrong: a cache that forgets"

    def build(self, config: Any) -> Any:
        net = super().build(config)
        right = net.cache
        net.cache = lambda *sizes: Forgetful(right(*sizes))
        return net


class SubwordsCalledExact(OnStrings):
    """The likelihood of one spelling in subwords, called that of the string."""

    name = "wrong: one spelling called exact"

    def make_codec(self) -> Any:
        codec = super().make_codec()
        codec.kind = Exact
        return codec

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return cls.Config(width=32, layers=1, n_heads=2, block=32, vocabulary=264)


WRONG_SEQUENCE: dict[type[Model], set[str]] = {
    SeesItself: {"every step sums to one", "strings sum to one"},
    LooksAhead: {"later steps are not seen"},
    EndNotScored: {"ends are scored", "strings sum to one"},
    PaddingLeaks: {"padding does not leak"},
    ForgetsBeginnings: {"what comes before splits the sum", "continuations follow what is before"},
    SumsElsewhere: {"log probs sum to log prob"},
    NarrowStrings: {"strings are drawn as stated"},
    AnyLength: {"lengths are kept"},
    CacheForgets: {"caches change no sample"},
    SubwordsCalledExact: {"strings sum to one"},
    ContextLeaks: {"contexts do not leak"},
    NullTells: {"no context is null"},
}
"""Each mistake and the checks that must notice it (others may, too)."""

"""Connectionist temporal classification (Graves et al. 2006): a text given a longer sequence that has it in order.

A net that sees the whole context gives a distribution over symbols and a blank for each of T frames, all independent
given the context. A path pi is one of these for each frame; B(pi) is its text, without repeats and then without blanks:

    p(y | c) = sum over pi with B(pi) = y of prod_t p(pi_t | c)                                       (eq. 3)

which the forward algorithm sums in T (2 L + 1) terms. It adds up to 1 over all texts, the empty one among them, since
each path is of one text. A text of L symbols, R of them like the one before, needs L + R frames: those that need more
than there are have probability 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.abilities import Searches
from pofx.core.errors import BadValue, UsageError
from pofx.core.learner import Batch, GradientLearner, Recipe
from pofx.core.likelihood import Exact, Likelihood
from pofx.core.noise import RowNoise
from pofx.core.options import BELOW_ONE
from pofx.core.requests import Direct, ExactLikelihood, PathSearch, Request, Sampler
from pofx.core.space import Space, join
from pofx.decode.paths import collapsed, prefix_search
from pofx.decode.strategies import proper
from pofx.families.conditioned import Conditioned, ContextOptions, idle_of_contexts
from pofx.nn.encoders import Encoded, no_encoder
from pofx.nn.heads import pick
from pofx.nn.mlp import zeroed
from pofx.spaces.text import filled_up


@dataclass(frozen=True)
class CtcConfig(ContextOptions):
    """Options of ``ctc``.

    Attributes:
        width: of the tokens that the encoder makes of a context.
        dropout: of the tokens, while training.
        frames: of each token: as many symbols and blanks it may give.
    """

    width: int = 128
    dropout: float = 0.1
    frames: int = 1

    ranges = {"dropout": BELOW_ONE}


class Ctc(Conditioned, Searches):
    """Encoder -> a softmax over blank (0) and symbols (1 ..) for each frame, ``frames`` of them for each token."""

    name = "ctc"
    summary = "a net gives each frame of a context a symbol or a blank; all ways to a text are summed"
    taxonomy = "conditional / discriminative / sequence"
    paper = "Graves, Fernandez, Gomez & Schmidhuber 2006, Connectionist temporal classification"
    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood,)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (Direct, PathSearch)
    Config = CtcConfig
    config: CtcConfig

    def __init__(self, config: CtcConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context, width=config.width)
        assert space.symbols is not None
        self.out = zeroed(nn.Linear(self.memory, config.frames * (1 + space.symbols)))

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if space.alphabet is None:
            return f"it models texts, and {space} are none. Fit another family."
        if context is None:
            return "it models texts given a sound, a sequence or another text. Load with --given, or fit gpt."
        if not space.has_eos:
            return "it models whole texts, and these are excerpts. Fit gpt."
        if context.fill is None:
            return f"its contexts have an order that a text follows, and {context} has none. Fit gpt."
        return no_encoder(context)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        # no context has no frames; tokens have the family's own width
        yield from {"context_dropout", "context_width", *idle_of_contexts(context)}

    @classmethod
    def tiny(cls, space: Space) -> CtcConfig:
        return CtcConfig(width=32, frames=6)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=4e-3, warmup=100, weight_decay=0.01, clip=1.0, ema=0.99, epochs=50)

    @property
    def attends(self) -> bool:
        return True

    def log_probs(self, e: Encoded) -> tuple[Tensor, Tensor]:
        """log p of a blank and of each symbol in each frame [N, T, 1 + symbols]; how many frames each row has [N]."""
        assert e.tokens is not None
        assert e.mask is not None
        longest = int(e.mask.sum(1).max())
        y = self.out(F.dropout(e.tokens[:, :longest], self.config.dropout, self.training)).double()
        y = y.unflatten(2, (self.config.frames, -1)).flatten(1, 2)
        return y.log_softmax(2), e.mask.sum(1) * self.config.frames

    def nats(self, x: Tensor, e: Encoded) -> Tensor:
        """log p(x | c) [N] of texts x [N, L]; -inf where there are too few frames."""
        (log_p, frames), lengths = self.log_probs(e), self.space.lengths(x)
        if not x.shape[1]:
            x = x.new_full((len(x), 1), -1)
        loss = F.ctc_loss(
            log_p.transpose(0, 1), x.clamp(min=0) + 1, frames, lengths, reduction="none", zero_infinity=True
        )
        return torch.where(needed(x) <= frames, -loss, -math.inf)

    def learner(self, recipe: Recipe) -> GradientLearner:
        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            e = self.batch_context(batch, generator)
            assert e is not None
            nats = self.nats(batch.x, e)
            if (short := nats == -math.inf).any():  # as it is, not as it was changed, a context has to be long enough
                plain = self.nats(batch.x[short], self.encode_context(batch.c[short]))
                if (never := plain == -math.inf).any():
                    self._too_long(batch.x[short][never][0])
                nats = nats.masked_scatter(short, plain)
            return {"loss": -nats / self.space.length}

        return GradientLearner(self, recipe, objective)

    def _too_long(self, x: Tensor) -> None:
        text, most = self.space.spell(x), self.config.frames
        raise BadValue(
            f"The text {text!r} needs {int(needed(x[None]))} frames (one for each symbol, and one between equal ones), "
            "and its context has fewer.",
            f"Give each token more frames (--options.frames {2 * most}), or leave such pairs out.",
        )

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        assert c is not None
        return Exact(self.nats(x, c), self.space.measure)

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        assert c is not None
        log_p, frames = self.log_probs(c)
        proper(log_p)
        if isinstance(sampler, PathSearch):
            path = log_p.argmax(2)
        else:
            path = pick(log_p, generator)
        return collapsed(path, frames)

    def rows_best(self, n: int, before: Tensor, c: Encoded | None, sampler: Any) -> Tensor:
        assert c is not None
        if n > sampler.width:
            raise UsageError(f"{sampler.width} beams have no {n} best texts.", f"Search with {n} beams or more.")
        every = [self._searched(n, c[i : i + 1], sampler.width) for i in range(len(before))]
        return join(self.space, every).unflatten(0, (-1, n))

    def _searched(self, n: int, c: Encoded, width: int) -> Tensor:
        """The n best texts [n, L] of one context, best first."""
        log_p, frames = self.log_probs(c)
        proper(log_p)
        found = filled_up(prefix_search(log_p[0, : int(frames)], width)).to(log_p.device)
        if len(found) < n:
            raise UsageError(f"This context has {len(found)} possible texts, not {n}.", "Ask for fewer.")
        nats = self.nats(found, c[torch.zeros(len(found), dtype=torch.int64)])
        return found[nats.argsort(descending=True, stable=True)[:n]]

    def rows_per_pass(self) -> int:
        return 256


def needed(x: Tensor) -> Tensor:
    """The fewest frames [N] that have a path to each text of x [N, L]: one more between two equal symbols."""
    inside = x >= 0
    return inside.sum(1) + ((x[:, 1:] == x[:, :-1]) & inside[:, 1:]).sum(1)

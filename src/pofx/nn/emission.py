"""Both ends of a net over sequences: how a step enters it, and the distribution of a step that it emits.

    TokenHead   a step is one of V symbols: a softmax, with one more symbol for the end where data have ends
    StepHead     a step is several values (a row of a table, a patch of an image) or one number: the end by one
              logit, then value after value, each given those before it in the step (a masked MLP, as in MADE)

``u`` are steps [N, L] or [N, L, d]; ``fill`` stands for the beginning among inputs and for the end among targets,
``pad`` for nothing: it makes training pieces equally long.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.causal import MaskedMlp
from pofx.nn.heads import Categorical, LevelLogistics, pick, uniform
from pofx.nn.mlp import zeroed
from pofx.nn.sites import Heads

Given: TypeAlias = tuple[Tensor, Tensor]  # values of a step, and which of them are known
START = 0.02  # standard deviation of learned positions and of small embeddings before training (Radford et al. 2019)


class Emission(nn.Module):
    """What ``TokenHead`` and ``StepHead`` share.

    Attributes:
        fill: the value that stands for the beginning and the end.
        pad: the value of what only fills up, which counts as ``filled``, too.
        has_eos: the end has a probability.
    """

    fill: float
    pad: float
    has_eos: bool

    def embed(self, u: Tensor) -> Tensor:
        """Steps [N, L, ...] -> net inputs [N, L, width]."""
        raise NotImplementedError

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        """log p in nats [N, L] of steps u [N, L, ...], or of the end where u is fill, given outputs y [N, L, width]."""
        raise NotImplementedError

    def sample(self, y: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """A step [N, ...] given y [N, width]; fill where it ends. Raises as ``Head.tempered``."""
        return self.complete(y, None, generator, temperature)

    def complete(self, y: Tensor, given: Given | None, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """The same, with the values (and booleans where they are known, each [N, ...]) that are given."""
        raise NotImplementedError

    def prepare(self, u: Tensor, ends: int) -> None:
        """Start near the marginal of training steps u [M, ...] among which there were so many ends."""

    def filled(self, u: Tensor) -> Tensor:
        """Which steps are fill [N, L]."""
        raise NotImplementedError

    @property
    def kept(self) -> torch.dtype:
        """What holds any step in the fewest bytes."""
        raise NotImplementedError

    def padded(self, u: Tensor) -> Tensor:
        """Which steps only fill up [N, L]."""
        return (u if u.ndim == 2 else u[..., 0]) == self.pad

    def beginning(self, n: int) -> Tensor:
        """One fill for each of n sequences [n, 1, ...]."""
        raise NotImplementedError


class TokenHead(Emission):
    """A softmax over V symbols and the end.

    Args:
        size: V, the end included where it is one of the symbols (of a foreign vocabulary).
        width: of the net.
        end: the number of the symbol that ends; V for one of its own.
        begin: the number of the symbol that begins; ``end`` unless said.
        has_eos: whether the end may follow; else its probability is zero.
        tied: one matrix embeds symbols and reads them out (Press & Wolf 2017).
        marginal: start at the frequencies of training symbols (in ``base``); else at equal ones.
        small: embeddings start as small as learned positions (where tied, they always do), else at unit variance.
    """

    base: Tensor

    fill, pad = -1, -2

    def __init__(
        self,
        size: int,
        width: int,
        *,
        end: int | None = None,
        begin: int | None = None,
        has_eos: bool = True,
        tied: bool = False,
        marginal: bool = True,
        small: bool = False,
    ) -> None:
        super().__init__()
        self.end, self.has_eos, self.marginal = size if end is None else end, has_eos, marginal
        self.begin = self.end if begin is None else begin
        own = end is None
        self.table = nn.Embedding(size + own, width)
        self.out = None if tied else zeroed(nn.Linear(width, size + own, bias=False))
        if tied or small:
            nn.init.normal_(self.table.weight, std=START)
        self.register_buffer("base", torch.zeros(size + own))
        if not has_eos:
            self.forbid_end()

    @property
    def kept(self) -> torch.dtype:
        return torch.int16 if len(self.base) <= 2**15 else torch.int32

    def forbid_end(self) -> None:
        """The end may not follow: its probability is zero."""
        self.has_eos = False
        self.base[self.end] = -math.inf

    def embed(self, u: Tensor) -> Tensor:
        return F.embedding(u.masked_fill(u < 0, self.begin), self.table.weight)

    def logits(self, y: Tensor) -> Tensor:
        """[..., V] of the next symbol."""
        return F.linear(y, (self.out or self.table).weight) + self.base

    def log_prob(self, y: Tensor, u: Tensor, smoothing: float = 0.0) -> Tensor:
        """With ``smoothing`` a loss: the mean of log p under a target that has this share spread over all symbols."""
        target = torch.where(u < 0, self.end, u)
        if not self.has_eos:  # the end is no target: where it stands, the caller does not look
            target = torch.where(u < 0, 0, u)
        logits = self.logits(y).flatten(0, -2)
        loss = F.cross_entropy(logits, target.flatten(), reduction="none", label_smoothing=smoothing)
        return -loss.view(u.shape)

    def complete(self, y: Tensor, given: Given | None, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        drawn = pick(self.logits(y) / temperature, generator)
        drawn = drawn.masked_fill(drawn == self.end, -1) if self.has_eos else drawn
        return drawn if given is None else torch.where(given[1], given[0], drawn)

    def prepare(self, u: Tensor, ends: int) -> None:
        if not self.marginal:
            return
        count = torch.bincount(u, minlength=len(self.base)).to(self.base)
        count[self.end] += ends
        share = (count + 0.5) / (count + 0.5).sum()
        self.base.copy_(torch.where(self.base.isinf(), self.base, share.log()))

    def filled(self, u: Tensor) -> Tensor:
        return u < 0

    def beginning(self, n: int) -> Tensor:
        return torch.full((n, 1), -1, device=self.base.device)


class StepHead(Emission):
    """A step of d sites, each with its head; d > 1 are drawn one after the other.

    Args:
        heads: of the sites; their own marginals are the start.
        width: of the net; hidden, layers: of the masked MLP inside a step (d > 1).
        has_eos: whether a sequence may end.
    """

    base: Tensor

    fill, pad = math.inf, -math.inf

    def __init__(self, heads: Heads, width: int, *, hidden: int = 128, layers: int = 2, has_eos: bool = True) -> None:
        super().__init__()
        self.heads, self.has_eos = heads, has_eos
        self.enter = nn.Linear(sum(heads.features), width)
        self.begin = nn.Parameter(torch.randn(width))
        features, params = heads.features, heads.params
        self.inner: MaskedMlp | None = None
        if heads.sites > 1:
            self.inner = MaskedMlp(features, params, (hidden,) * layers, context=width, residual=True)
        else:
            self.out = zeroed(nn.Linear(width, params[0]))
        self.stop = zeroed(nn.Linear(width, 1)) if has_eos else None
        self.register_buffer("base", torch.zeros(()))  # log-odds of the end

    @property
    def kept(self) -> torch.dtype:
        levels = self.heads.sites == 1 and isinstance(self.heads.site(0), Categorical | LevelLogistics)
        return torch.float32 if levels else torch.float64  # which holds whole levels exactly

    def embed(self, u: Tensor) -> Tensor:
        filled = self.filled(u)[..., None]
        values = self.heads.embed(self._allowed(u))
        return torch.where(filled, self.begin, self.enter(values.to(self.begin.dtype)))

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        values = self._allowed(u)
        params = self._params(y.flatten(0, -2), values.flatten(0, -2)).view(*u.shape[:-1], -1)
        log_p = self.heads.log_prob(params, values).sum(-1)
        if self.stop is None:
            return log_p
        logit = self.stop(y)[..., 0] + self.base
        return torch.where(self.filled(u), F.logsigmoid(logit), log_p + F.logsigmoid(-logit))

    def complete(self, y: Tensor, given: Given | None, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        empty = y.new_empty(len(y), self.heads.sites, dtype=torch.float64)
        values, known = (empty, None) if given is None else given
        if self.inner is not None:
            values = self.heads.visit(self.inner.walk(len(y), y), values, generator, known, temperature)
        else:
            head, params = self.heads.site(0), self.out(y)
            params = params if temperature == 1 else head.tempered(params, temperature)
            drawn = head.sample(params, generator)[:, None].double()
            values = drawn if known is None else torch.where(known, values, drawn)
        if self.stop is not None:
            p = (self.stop(y)[:, 0] + self.base).sigmoid()
            values[uniform(p, generator) < p] = self.fill
        return values

    def prepare(self, u: Tensor, ends: int) -> None:
        self.heads.prepare(u)
        self.base.fill_(math.log((ends + 0.5) / (len(u) + 0.5)))

    def filled(self, u: Tensor) -> Tensor:
        return u[..., 0].isinf()

    def beginning(self, n: int) -> Tensor:
        return self.base.new_full((n, 1, self.heads.sites), self.fill, dtype=torch.float64)

    def _allowed(self, u: Tensor) -> Tensor:
        """Any value in the place of fill: as an input it is replaced, as a target not looked at."""
        return torch.where(self.filled(u)[..., None], 0.0, u)

    def _params(self, y: Tensor, values: Tensor) -> Tensor:
        """y [M, width] and the step's own values [M, d] -> parameters [M, sum(params)]."""
        if self.inner is None:
            return self.out(y)
        return self.inner(self.heads.embed(values).to(y.dtype), y)

"""Nets over the sites of a datum of which some are hidden: a distribution for every site at once.

    Strings   symbols of a text: a transformer that looks both ways
    Fields    columns of a table, levels of an image, codes: a head for each (``nn.sites``), that transformer or an MLP

Both take ``values`` [N, L] and which of them are ``seen`` [N, L], and are told a vector h [N, told] and tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pofx.nn.emission import START, TokenHead
from pofx.nn.mlp import Mlp, zeroed
from pofx.nn.sites import Heads, side_by_side
from pofx.nn.transformer import Memory, Shape, Transformer


class Masked(nn.Module):
    """What both are.

    Attributes:
        size: how many values each site may have, 0, 1, ...; None where they are others.
    """

    size: int | None

    def forward(self, values: Tensor, seen: Tensor, h: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """What the distributions of all sites take."""
        raise NotImplementedError

    def log_prob(self, y: Tensor, values: Tensor) -> Tensor:
        """log p [N, L] of each site's value."""
        raise NotImplementedError

    def logits(self, y: Tensor) -> Tensor:
        """log p of all values of each site [N, L, size], up to a constant."""
        raise NotImplementedError

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Values [N, L], each site's for itself."""
        raise NotImplementedError

    def prepare(self, values: Tensor, weight: Tensor | None) -> None:
        """Start at the marginals of training values [N, L]."""
        raise NotImplementedError


class Strings(Masked):
    """Symbols [N, L] of strings, -1 after the end, in pieces of at most ``shape.block``.

    Args:
        size: of the alphabet.
        told: width of the vector, 0 for none.
        memory: width of a context's tokens, 0 for none.
    """

    size: int

    def __init__(self, size: int, shape: Shape, told: int, memory: int) -> None:
        super().__init__()
        self.size = size
        # the symbol of the end, which may not follow, stands where a site is hidden
        self.ends = TokenHead(size, shape.width, has_eos=False)
        self.net = Transformer(shape, memory=memory)
        self.told = nn.Linear(told, shape.width, bias=False) if told else None

    def forward(self, values: Tensor, seen: Tensor, h: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """[N, L, width]"""
        x = self.ends.embed(torch.where(seen, values, -1))
        x = x if self.told is None else x + self.told(h)[:, None]
        return self.net(x, memory, values >= 0)

    def log_prob(self, y: Tensor, values: Tensor) -> Tensor:
        return self.ends.log_prob(y, values)

    def logits(self, y: Tensor) -> Tensor:
        return self.ends.logits(y)[..., : self.size]

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.ends.complete(y, None, generator)

    def prepare(self, values: Tensor, weight: Tensor | None) -> None:
        self.ends.prepare(values[values >= 0], ends=0)


class Fields(Masked):
    """Sites [N, L] with a head each.

    Args:
        heads: of all sites of a space.
        size: of their values, where all are of one alphabet.
        shape: of the transformer, in which a site is a token; None for an MLP over all of them at once.
        told, memory: as in ``Strings``; the MLP takes no tokens.
        hidden, blocks: of the MLP.
    """

    of: Tensor  # the site of each feature
    own: Tensor
    out: Tensor

    def __init__(
        self, heads: Heads, size: int | None, shape: Shape | None, told: int, memory: int, hidden: int, blocks: int
    ) -> None:
        super().__init__()
        self.size, sites, features, params = size, heads.sites, heads.features, heads.params
        self.heads = Heads(side_by_side(sites), [*heads.groups], heads.places)  # type: ignore[arg-type]
        self.register_buffer("of", torch.arange(sites).repeat_interleave(torch.tensor(features)), persistent=False)
        self.net: Mlp | Transformer
        if shape is None:
            self.net = Mlp(sum(features) + sites, sum(params), hidden=hidden, blocks=blocks, context=told)
            return
        width, most = shape.width, max(params)
        self.net = Transformer(dataclasses.replace(shape, positions="learned"), sites, memory)
        self.told = nn.Linear(told, width, bias=False) if told else None
        self.register_buffer("own", _padded(features), persistent=False)
        out = torch.cat([torch.arange(p) + i * most for i, p in enumerate(params)])
        self.register_buffer("out", out, persistent=False)
        self.enter = nn.Parameter(torch.randn(sites, max(features), width) * max(features) ** -0.5)
        self.hidden = nn.Parameter(START * torch.randn(sites, width))
        self.leave = nn.Parameter(torch.zeros(sites, width, most))

    def forward(self, values: Tensor, seen: Tensor, h: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """[N, sum(params)]"""
        f = self.heads.embed(values)
        f = torch.where(seen[:, self.of], f, 0.0)
        if isinstance(self.net, Mlp):
            return self.net(torch.cat([f, seen.to(f)], 1), h)
        each = nn.functional.pad(f, (0, 1))[:, self.own]  # [N, L, most features]
        x = torch.einsum("nlf,lfw->nlw", each, self.enter) + self.hidden * ~seen[..., None]
        x = x if self.told is None else x + self.told(h)[:, None]
        y = self.net(x, memory, torch.ones_like(seen[:1]))
        return torch.einsum("nlw,lwp->nlp", y, self.leave).flatten(1)[:, self.out]

    def log_prob(self, y: Tensor, values: Tensor) -> Tensor:
        return self.heads.log_prob(y, values)

    def logits(self, y: Tensor) -> Tensor:
        assert self.size is not None
        every = torch.arange(self.size, device=y.device)[None, :, None].expand(len(y), -1, self.heads.sites)
        return self.heads.log_prob(y[:, None], every).transpose(1, 2)

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.heads.sample(y, generator)

    def prepare(self, values: Tensor, weight: Tensor | None) -> None:
        self.heads.prepare(values, weight)


class Lengths(nn.Module):
    """A distribution of how long a string is: one number for each length up to the block, and a tail.

    Beyond the block each further symbol has the probability block / (block + 1).

    Args:
        told: width of a context's vector, 0 for none.
    """

    base: Tensor

    def __init__(self, block: int, told: int) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("base", torch.zeros(block + 2))  # the last is of all that are longer
        self.shift = zeroed(nn.Linear(told, block + 2, bias=False)) if told else None

    def forward(self, lengths: Tensor, h: Tensor | None = None) -> Tensor:
        """log P [N] of lengths [N]."""
        found = self.log_p(len(lengths), h).gather(1, lengths.clamp(max=self.block + 1)[:, None])[:, 0]
        on, beyond = math.log(self.block / (self.block + 1)), (lengths - self.block - 1).clamp(min=0)
        return found + torch.where(lengths > self.block, on * beyond - math.log(self.block + 1), 0.0)

    def log_p(self, n: int, h: Tensor | None) -> Tensor:
        """log P of lengths 0 .. block, and of all that are longer [n, block + 2]."""
        logits = self.base if self.shift is None or h is None else self.base + self.shift(h)
        return logits.log_softmax(-1).expand(n, -1)

    def prepare(self, lengths: Tensor) -> None:
        """Start at the shares of training lengths, one more row being spread over all."""
        count = torch.bincount(lengths.clamp(max=self.block + 1), minlength=len(self.base)) + 1 / len(self.base)
        self.base.copy_((count / count.sum()).log())


def _padded(features: Sequence[int]) -> Tensor:
    """Which of all features are each site's own [L, most]; the one after the last where there is none."""
    size, j = torch.tensor(features)[:, None], torch.arange(max(features))
    return torch.where(j < size, size.cumsum(0) - size + j, sum(features))

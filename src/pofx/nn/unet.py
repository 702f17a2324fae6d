"""A small U-Net on images [C, H, W] of any size, told the log SNR and a context.

Ho et al. 2020 (appendix B) with three changes that pay on a CPU: pixels are folded into ``patch`` x
``patch`` blocks first (no convolution runs at full resolution), activations lie channels last, and
the embedding modulates the second norm of a block (Dhariwal & Nichol 2021, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.encoders import Encoded, beside, told
from pofx.nn.mlp import zeroed
from pofx.nn.transformer import CrossAttention, Memory


class UNet(nn.Module):
    """Predicts an image-shaped field at one noise level; its last layer starts at zero.

    Where all rows share a noise level and no context tells them apart, as in every pass of a sampler, the embedding is
    made once for all, and the modulated norms are plain ones: at one image it is the number of calls that takes time.

    Args:
        channels: C of the images.
        hidden: features at the finest level; each coarser level has twice as many, at most 4 ``hidden``.
        levels: resolutions, each half of the one before (rounded up).
        blocks: residual blocks per level, on the way down and on the way up.
        patch: side of the pixel blocks folded into features at the start and unfolded at the end.
        context: width of the context's vector, which modulates blocks; 0 takes none.
        memory: width of its tokens, which every attention attends to, too; 0 takes none.
        attend: in how many levels, the coarsest first, every block has an attention. One is in the middle anyway.
        shown: channels of the context's map beside the image (``encoders.beside``); 0 takes none.
    """

    def __init__(
        self, channels: int, hidden: int = 64, levels: int = 2, blocks: int = 2, patch: int = 1, context: int = 0,
        memory: int = 0, attend: int = 0, shown: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.patch, self.shown = channels, patch, shown
        widths = [hidden * min(2**i, 4) for i in range(levels)]
        emb = 4 * hidden
        self.noise = nn.Sequential(LogSnrFeatures(hidden), nn.Linear(hidden, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.context = nn.Linear(context, emb) if context else None
        folded = channels * patch**2
        self.first = nn.Conv2d(folded + shown * patch**2, hidden, 3, padding=1)
        # features of every map kept for the way up, last in first out
        kept, now = [hidden], hidden
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            attends = i >= levels - attend
            if i:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                kept.append(now)
            for _ in range(blocks):
                self.down.append(Block(now, width, attends, memory))
                kept.append(now := width)
        self.middle = nn.ModuleList([Block(now, now, True, memory), Block(now, now)])
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Block(now + kept.pop(), width, i >= levels - attend, memory))
                now = width
            if i:
                self.up.append(nn.Conv2d(now, now, 3, padding=1))
        self.last = nn.Sequential(_norm(now), nn.SiLU(), zeroed(nn.Conv2d(now, folded, 3, padding=1)))
        # gains, which start about 1, and shifts of all blocks, from one matrix
        self.sizes = [block.norm2.num_channels for block in self._blocks()]
        self.film = nn.Linear(emb, 2 * sum(self.sizes))
        self.film.bias.data = torch.cat([torch.ones(sum(self.sizes)), torch.zeros(sum(self.sizes))])
        channels_last(self)

    def _blocks(self) -> list[Block]:
        """In the order of a pass."""
        return [layer for part in (self.down, self.middle, self.up) for layer in part if isinstance(layer, Block)]

    def forward(self, x: Tensor, log_snr: Tensor, h: Encoded | None = None) -> Tensor:
        """x [N, C, H, W], log_snr [N] or [1], h with a vector [N, context] -> [N, C, H, W]"""
        height, width = x.shape[2:]
        films, memory = self.films(log_snr, h), told(h)

        def run(layer: nn.Module, x: Tensor) -> Tensor:
            out: Tensor = layer(x, *next(films), *memory) if isinstance(layer, Block) else layer(x)
            return out

        x = fold(with_map(x, h) if self.shown else x, self.patch)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        kept = [x]
        for layer in self.down:
            kept.append(x := run(layer, x))
        for layer in self.middle:
            x = run(layer, x)
        for layer in self.up:
            if isinstance(layer, Block):
                x = run(layer, torch.cat([x, kept.pop()], 1))
            else:
                x = layer(F.interpolate(x, size=kept[-1].shape[2:], mode="nearest"))
        return unfold(self.last(x), self.patch, height, width)

    def films(self, log_snr: Tensor, h: Encoded | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Gain and shift [N or 1, features] of each block's second norm."""
        emb = self.noise(log_snr)
        if self.context is not None and h is not None:
            emb = emb + self.context(h.vector)
        gains, shifts = self.film(F.silu(emb)).chunk(2, 1)
        return zip(gains.split(self.sizes, 1), shifts.split(self.sizes, 1), strict=True)


class Block(nn.Module):
    """x + conv(modulated norm(conv(norm(x)))), starting as the identity on equal widths, and an attention if asked."""

    def __init__(self, inputs: int, outputs: int, attend: bool = False, memory: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs, affine=False)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else None
        self.attention = Attention(outputs, memory) if attend else None

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor, memory: Memory | None = None) -> Tensor:
        """x [N, inputs, H, W]; gain and shift of the second norm [N or 1, outputs] -> [N, outputs, H, W]"""
        y = self.conv1(F.silu(self.norm1(x)))
        if len(gain) == 1:
            y = F.group_norm(y, self.norm2.num_groups, gain[0], shift[0], self.norm2.eps)
        else:
            y = torch.addcmul(shift[..., None, None], self.norm2(y), gain[..., None, None])
        y = self.conv2(F.silu(y))
        # a 1x1 convolution is a matrix product where features lie last
        y = y + (x if self.skip is None else self.skip(x.movedim(1, -1)).movedim(-1, 1))
        return y if self.attention is None else self.attention(y, memory)


class Attention(nn.Module):
    """Self-attention over the positions of a small map, then attention to a context's tokens, both added to it.

    What a position asks of the tokens depends on where it is: words tell of places.
    """

    def __init__(self, width: int, memory: int = 0) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm, self.qkv, self.out = _norm(width), nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))
        self.cross = CrossAttention(width, memory, self.heads, width // self.heads) if memory else None

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        n, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).mT  # [N, HW, C]
        q, k, v = self.qkv(tokens).reshape(n, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        y = self.out(y)
        if self.cross is not None and memory is not None:
            at = places(height, width, c).to(x)
            y = y + self.cross(x.flatten(2).mT + y + at, self.cross.remember(memory))
        return x + y.mT.reshape(x.shape)


class LogSnrFeatures(nn.Module):
    """Sines and cosines of the log SNR [N] -> [N, width], wavelengths from 4 to 100 nats of log SNR."""

    rate: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        waves = torch.logspace(math.log10(100.0), math.log10(4.0), width // 2)
        self.register_buffer("rate", 2 * math.pi / waves, persistent=False)

    def forward(self, log_snr: Tensor) -> Tensor:
        angle = log_snr[:, None] * self.rate
        return torch.cat([angle.sin(), angle.cos()], 1)


N = TypeVar("N", bound=nn.Module)


def channels_last(net: N) -> N:
    """The net, its convolutions' weights laid as its maps are: else each pass turns them."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def fold(x: Tensor, patch: int) -> Tensor:
    """Images [N, C, H, W] as maps of their pixel blocks, those at the far sides filled up with zeros."""
    height, width = x.shape[2:]
    if height % patch or width % patch:
        x = F.pad(x, (0, -width % patch, 0, -height % patch))
    return F.pixel_unshuffle(x, patch) if patch > 1 else x


@cache
def places(height: int, width: int, features: int) -> Tensor:
    """Sines and cosines of rows, then of columns [height width, features], wavelengths from 2 pi to 20,000 pi."""
    each = -(-features // 4)
    frequency = 10000.0 ** (-torch.arange(each, dtype=torch.float64) / each)
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] * frequency for n in (height, width))
    row = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)
    column = torch.cat([columns.sin(), columns.cos()], 1).expand(height, -1, -1)
    return torch.cat([row, column], 2)[..., :features].flatten(0, 1).float()


def with_map(x: Tensor, h: Encoded | None) -> Tensor:
    """Images x [N, C, H, W], and behind their channels those of the context's map."""
    assert h is not None
    assert h.map is not None
    return torch.cat([x, beside(h.map, x.shape[2:]).to(x.dtype)], 1)


def unfold(x: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of ``fold``, for images of these sides."""
    x = F.pixel_shuffle(x, patch) if patch > 1 else x
    return x[:, :, :height, :width].contiguous()


def _norm(width: int, affine: bool = True) -> nn.GroupNorm:
    """Groups of 8 features or more, at most 32 groups."""
    groups = math.gcd(width, max(1, min(32, width // 8)))
    return nn.GroupNorm(groups, width, affine=affine)

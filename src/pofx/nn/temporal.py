"""A U-Net along the steps of a chunk [k, A], told the log SNR and a context: the net of diffusion policies.

Convolutions over five steps, on the way down over half as many steps at twice the width, and up again with what was
kept on the way down (Janner et al. 2022, appendix C; Chi et al. 2023, section 3.1), where noise level and context scale
and shift the features of every block (Perez et al. 2018). Features lie last, and a convolution is one matrix product of
neighbouring steps side by side: over so few steps a CPU has that sooner than torch's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.encoders import Encoded
from pofx.nn.mlp import zeroed
from pofx.nn.unet import LogSnrFeatures

TAPS = 5  # steps that a convolution sees
SHORTEST = 4  # steps at the coarsest level
DEEPEST = 3  # levels


class TemporalUNet(nn.Module):
    """Predicts a field shaped as a chunk at one noise level; its last layer starts at zero.

    Args:
        shape: (k, A): steps, and numbers in each.
        channels: features at the finest level; each coarser level, of half the steps (rounded up), has twice as many.
        blocks: residual blocks per level, on the way down and on the way up.
        context: width of the context's vector; 0 takes none.
    """

    def __init__(self, shape: tuple[int, ...], channels: int = 64, blocks: int = 2, context: int = 0) -> None:
        super().__init__()
        steps, size = shape
        levels = max(1, min(DEEPEST, 1 + int(math.log2(steps / SHORTEST)))) if steps >= SHORTEST else 1
        widths, told = [channels * 2**i for i in range(levels)], 4 * channels
        self.noise = nn.Sequential(LogSnrFeatures(channels), nn.Linear(channels, told), nn.SiLU())
        self.noise.append(nn.Linear(told, told))
        self.context = nn.Linear(context, told) if context else None
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now = size
        for i, width in enumerate(widths):
            if i:
                self.down.append(Convolution(now, now, 3, stride=2))
            self.down.append(Blocks(now, width, blocks, told))
            now = width
        self.middle = Blocks(now, now, blocks, told)
        for i, width in reversed(list(enumerate(widths))):
            self.up.append(Blocks(now + width, width, blocks, told))
            now = width
            if i:
                self.up.append(Convolution(now, now, 3))
        self.last = nn.Sequential(nn.Linear(now, now), nn.SiLU(), zeroed(nn.Linear(now, size)))

    def forward(self, x: Tensor, log_snr: Tensor, h: Encoded | None = None) -> Tensor:
        """x [N, k, A], log_snr [N] or [1], h with a vector [N, context] -> [N, k, A]"""
        told = self.noise(log_snr)
        if self.context is not None and h is not None:
            told = told + self.context(h.vector)
        told, kept = F.silu(told), []
        for layer in self.down:
            if isinstance(layer, Blocks):
                kept.append(x := layer(x, told))
            else:
                x = layer(x)
        x = self.middle(x, told)
        for layer in self.up:
            if isinstance(layer, Blocks):
                x = layer(torch.cat([x, kept.pop()], 2), told)
            else:
                x = layer(x.repeat_interleave(2, 1)[:, : kept[-1].shape[1]])
        return self.last(x)  # type: ignore[no-any-return]


class Convolution(nn.Linear):
    """Over the steps of x [N, k, inputs], nothing before the first and after the last -> [N, k / stride, outputs]."""

    def __init__(self, inputs: int, outputs: int, taps: int = TAPS, stride: int = 1) -> None:
        super().__init__(inputs * taps, outputs)
        self.taps, self.stride = taps, stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.taps // 2
        return super().forward(F.pad(x, (0, 0, half, half)).unfold(1, self.taps, self.stride).flatten(2))


class Blocks(nn.Module):
    """Residual blocks of one width one after the other."""

    def __init__(self, inputs: int, outputs: int, count: int, told: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(Block(inputs if i == 0 else outputs, outputs, told) for i in range(count))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        for block in self.each:
            x = block(x, told)
        return x


class Block(nn.Module):
    """x + conv(silu(modulated norm(conv(silu(norm(x)))))), starting as the identity on equal widths.

    A norm is one of all steps and features of a row.
    """

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(inputs, outputs), zeroed(Convolution(outputs, outputs))
        self.film = zeroed(nn.Linear(told, 2 * outputs))
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else None

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """x [N, k, inputs], told [N or 1, told] -> [N, k, outputs]"""
        gain, shift = self.film(told)[:, None].chunk(2, 2)
        y = self.first(F.silu(_normed(x)))
        y = self.second(F.silu(torch.addcmul(shift, _normed(y), 1 + gain)))
        return y + (x if self.skip is None else self.skip(x))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])

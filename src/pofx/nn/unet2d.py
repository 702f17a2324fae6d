"""The U-Net of ``diffusers`` (its UNet2DModel), whose weights go by the same names.

Ho et al. 2020 (appendix B), as published: pixels at full resolution, an embedding of the step that is added between
two convolutions (or scales and shifts the second norm: Dhariwal & Nichol 2021, section 4), attention at chosen levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.encoders import Encoded
from pofx.nn.unet import channels_last

GROUPS = 8  # of the norms of a net that is not read from a file


@dataclass(frozen=True)
class UNet2dShape:
    """Sizes and variants of the net.

    Attributes:
        channels: of the images.
        widths: features of each level, the finest first; each is half the resolution of the one before.
        layers: residual blocks per level on the way down; one more on the way up.
        down, up: whether the blocks of each level have an attention, in the order of a pass.
        middle: is there a part between the ways down and up?
        middle_attends: has it an attention?
        head: features of each of an attention's heads; 0 for one head.
        groups: of all norms, but the middle attention's: ``middle_groups``, 0 for no norm.
        eps: what norms add to a variance.
        scale_shift: the embedding scales and shifts the second norm's result; else it is added before.
        sides: padding of the convolutions that halve a map: 1 on all sides, or 0 for one at the far sides.
        freq_shift, flip: of the sines and cosines of the step: the last wavelength, and whether cosines come first.
    """

    channels: int
    widths: tuple[int, ...]
    layers: int
    down: tuple[bool, ...]
    up: tuple[bool, ...]
    middle: bool = True
    middle_attends: bool = True
    head: int = 8
    groups: int = 32
    middle_groups: int = 32
    eps: float = 1e-5
    scale_shift: bool = False
    sides: int = 1
    freq_shift: float = 0.0
    flip: bool = True


def usual_shape(size: tuple[int, ...], width: int, layers: int, attend: int) -> UNet2dShape:
    """Of images (C, H, W): levels down to about 7 cells a side where sides can be halved, ``attend`` with attention."""
    channels, *sides = size
    levels = max(1, round(math.log2(min(sides) / 7)) + 1)
    while any(side % 2 ** (levels - 1) for side in sides):
        levels -= 1
    attends = tuple(i >= levels - attend for i in range(levels))
    widths = tuple(width * min(2**i, 4) for i in range(levels))
    return UNet2dShape(channels, widths, layers, attends, attends[::-1], groups=GROUPS, middle_groups=GROUPS)


class UNet2d(nn.Module):
    """Maps images at steps of a chain to images; sides are multiples of 2^(levels - 1)."""

    down_blocks: Any
    up_blocks: Any
    mid_block: Any

    def __init__(self, shape: UNet2dShape) -> None:
        super().__init__()
        self.shape, widths = shape, shape.widths
        emb = 4 * widths[0]
        self.conv_in = nn.Conv2d(shape.channels, widths[0], 3, padding=1)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(widths[0], emb), "linear_2": nn.Linear(emb, emb)})
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        kept, now = [widths[0]], widths[0]
        for i, (width, attends) in enumerate(zip(widths, shape.down, strict=True)):
            inputs = [now, *[width] * (shape.layers - 1)]
            coarser = i < len(widths) - 1
            self.down_blocks.append(_Level(shape, inputs, width, attends, down=coarser))
            kept += [width] * (shape.layers + coarser)
            now = width
        self.mid_block = _Level(shape, [now, now], now, shape.middle_attends, middle=True) if shape.middle else None
        for i, (width, attends) in enumerate(zip(reversed(widths), shape.up, strict=True)):
            inputs = [before + kept.pop() for before in (now, *[width] * shape.layers)]
            self.up_blocks.append(_Level(shape, inputs, width, attends, up=i < len(widths) - 1))
            now = width
        self.conv_norm_out = nn.GroupNorm(shape.groups, now, shape.eps)
        self.conv_out = nn.Conv2d(now, shape.channels, 3, padding=1)
        channels_last(self)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """x [N, C, H, W], step [N] or [1], counted from 0 -> [N, C, H, W]"""
        emb = self.time_embedding["linear_1"](self.waves(step))
        emb = F.silu(self.time_embedding["linear_2"](F.silu(emb)))
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        kept = [x]
        for level in self.down_blocks:
            for resnet, attention in level.pairs():
                kept.append(x := attention(resnet(x, emb)))
            if level.downsamplers is not None:
                kept.append(x := level.downsamplers[0](x))
        if self.mid_block is not None:
            x = self.mid_block.resnets[0](x, emb)
            x = self.mid_block.resnets[1](self.mid_block.pairs()[0][1](x), emb)
        for level in self.up_blocks:
            for resnet, attention in level.pairs():
                x = attention(resnet(torch.cat([x, kept.pop()], 1), emb))
            if level.upsamplers is not None:
                x = level.upsamplers[0](x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x))).contiguous()
        return out

    def waves(self, step: Tensor) -> Tensor:
        """Cosines and sines [N, widths[0]] of the steps [N], wavelengths from 2 pi to 20,000 pi."""
        half = self.shape.widths[0] // 2
        place = torch.arange(half, dtype=torch.float32, device=step.device)
        angle = step.float()[:, None] * torch.exp(-math.log(10000) * place / (half - self.shape.freq_shift))
        both = (angle.cos(), angle.sin()) if self.shape.flip else (angle.sin(), angle.cos())
        return F.pad(torch.cat(both, 1), (0, self.shape.widths[0] % 2)).to(self.conv_in.weight.dtype)


class _Level(nn.Module):
    """Blocks at one resolution, perhaps with attentions, and what leads to the next; None has no place in the names."""

    def __init__(
        self,
        shape: UNet2dShape,
        inputs: list[int],
        width: int,
        attends: bool,
        *,
        middle: bool = False,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(shape, i, width) for i in inputs)
        groups, count = (shape.middle_groups, 1) if middle else (shape.groups, len(inputs))
        self.attentions = nn.ModuleList(Attention(shape, width, groups) for _ in range(count)) if attends else None
        self.downsamplers = nn.ModuleList([Halved(width, shape.sides)]) if down else None
        self.upsamplers = nn.ModuleList([Doubled(width)]) if up else None

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each block and its attention, the identity where there is none."""
        attentions = self.attentions or [nn.Identity()] * len(self.resnets)
        return list(zip(self.resnets, attentions, strict=False))


class Resnet(nn.Module):
    """x + conv(norm(conv(norm(x)) + embedding))"""

    def __init__(self, shape: UNet2dShape, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale_shift = shape.scale_shift
        self.norm1 = nn.GroupNorm(shape.groups, inputs, shape.eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * shape.widths[0], (1 + shape.scale_shift) * outputs)
        self.norm2 = nn.GroupNorm(shape.groups, outputs, shape.eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, inputs, H, W], emb [N or 1, 4 widths[0]] -> [N, outputs, H, W]"""
        y = self.conv1(F.silu(self.norm1(x)))
        told = self.time_emb_proj(emb)[..., None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            y = torch.addcmul(shift, self.norm2(y), 1 + scale)
        else:
            y = self.norm2(y + told)
        y = self.conv2(F.silu(y))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class Attention(nn.Module):
    """x + attention of the positions of the normed map to one another."""

    def __init__(self, shape: UNet2dShape, width: int, groups: int) -> None:
        super().__init__()
        each = shape.head or width
        self.heads = width // each
        self.group_norm = nn.GroupNorm(groups, width, shape.eps) if groups else None
        inner = self.heads * each
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        """x [N, width, H, W]"""
        tokens = (x if self.group_norm is None else self.group_norm(x)).flatten(2).mT  # [N, HW, width]
        q, k, v = (f(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y.mT.reshape(x.shape)


class Halved(nn.Module):
    """A convolution to half the sides."""

    def __init__(self, width: int, sides: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=sides)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Doubled(nn.Module):
    """Each pixel twice in both directions, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet2dOnChain(nn.Module):
    """The net as paths call theirs: told the log SNR, of which ``step`` makes the chain's step."""

    def __init__(self, net: UNet2d, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: Tensor, log_snr: Tensor, h: Encoded | None = None) -> Tensor:
        """x [N, C, H, W], log_snr [N] or [1] -> [N, C, H, W]; contexts it takes none."""
        out: Tensor = self.net(x, self.step(log_snr.double()))
        return out

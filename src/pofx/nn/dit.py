"""The diffusion transformer (Peebles & Xie 2023): attention between the patches of an image, told the log SNR.

With s, b, g (scales, shifts, gates) made of the embedding of noise level and context, one layer is (section 3.2)

    x <- x + g1 Attention((1 + s1) norm(x) + b1);    x <- x + g2 MLP((1 + s2) norm(x) + b2)

and all gates start at zero ("adaLN-zero"): the stream passes through.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.encoders import Encoded, told
from pofx.nn.mlp import zeroed
from pofx.nn.transformer import CrossAttention, Memory
from pofx.nn.unet import LogSnrFeatures, fold, places, unfold, with_map


class Dit(nn.Module):
    """Predicts an image-shaped field at one noise level; its last layer starts at zero.

    Args:
        size: (C, H, W) of the images.
        width: of the stream.
        layers: of attention and MLP.
        patch: side of the pixel blocks that are one token each.
        context: width of the context's vector, which modulates layers; 0 takes none.
        memory: width of its tokens, which every layer attends to; 0 takes none.
        shown: channels of its map beside the image (``encoders.beside``); 0 takes none.
    """

    place: Tensor

    def __init__(
        self, size: tuple[int, ...], width: int = 256, layers: int = 4, patch: int = 2, context: int = 0,
        memory: int = 0, shown: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, self.sides = size[0] * patch**2, (-(-size[1] // patch), -(-size[2] // patch))
        self.patch, self.shown = patch, shown
        self.enter = nn.Linear(channels + shown * patch**2, width)
        self.register_buffer("place", places(*self.sides, width), persistent=False)
        self.noise = nn.Sequential(LogSnrFeatures(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.context = nn.Linear(context, width) if context else None
        self.layers = nn.ModuleList(DitLayer(width, memory) for _ in range(layers))
        self.norm, self.film = nn.LayerNorm(width, elementwise_affine=False), zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, channels))

    def forward(self, x: Tensor, log_snr: Tensor, h: Encoded | None = None) -> Tensor:
        """x [N, C, H, W], log_snr [N] or [1], h with a vector [N, context] -> [N, C, H, W]"""
        height, width = x.shape[2:]
        emb = self.noise(log_snr)
        if self.context is not None and h is not None:
            emb = emb + self.context(h.vector)
        emb = F.silu(emb)[:, None]
        x = fold(with_map(x, h) if self.shown else x, self.patch)
        x = self.enter(x.flatten(2).mT) + self.place
        for layer in self.layers:
            x = layer(x, emb, *told(h))
        x = self.last(modulated(self.norm(x), *self.film(emb).chunk(2, -1)))
        return unfold(x.mT.unflatten(2, self.sides), self.patch, height, width)


class DitLayer(nn.Module):
    """One layer; where there is a ``memory``, attention to a context's tokens comes between its two branches."""

    def __init__(self, width: int, memory: int = 0) -> None:
        super().__init__()
        self.heads = math.gcd(width, max(1, width // 64))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the embedding scales and shifts
        self.film = zeroed(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross = CrossAttention(width, memory, self.heads, width // self.heads) if memory else None
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, emb: Tensor, memory: Memory | None = None) -> Tensor:
        """x [N, L, width], emb [N or 1, 1, width] -> [N, L, width]"""
        s1, b1, g1, s2, b2, g2 = self.film(emb).chunk(6, -1)
        x = torch.addcmul(x, g1, self.attention(modulated(self.norm(x), s1, b1)))
        if self.cross is not None and memory is not None:
            x = x + self.cross(x, self.cross.remember(memory))
        y = F.gelu(self.up(modulated(self.norm(x), s2, b2)), approximate="tanh")
        return torch.addcmul(x, g2, self.down(y))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)

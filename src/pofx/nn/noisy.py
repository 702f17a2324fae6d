"""Nets told how noisy their input is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pofx.nn.encoders import Encoded
from pofx.nn.mlp import Mlp
from pofx.nn.unet import LogSnrFeatures


class NoisyMlp(nn.Module):
    """A residual MLP on y [N, dim] told the log SNR [N] or [1] and h, whose vector is [N, context]."""

    def __init__(self, dim: int, context: int, hidden: int, blocks: int, features: int = 64) -> None:
        super().__init__()
        self.noise = LogSnrFeatures(features)
        self.mlp = Mlp(dim, dim, hidden=hidden, blocks=blocks, context=features + context)

    def forward(self, y: Tensor, log_snr: Tensor, h: Encoded | None = None) -> Tensor:
        level = self.noise(log_snr).expand(len(y), -1)
        return self.mlp(y, level if h is None else torch.cat([level, h.vector], 1))

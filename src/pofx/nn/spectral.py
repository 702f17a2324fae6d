"""Spectral normalisation: every linear map of a net with a largest singular value of 1."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def spectral(net: nn.Module) -> None:
    """Divide the weights of all linear and convolutional layers by their largest singular value, which each forward
    pass in training estimates further by a step of power iteration (Miyato et al. 2018, eq. 8 and algorithm 1).

    A layer that starts as the zero map has none, so it starts anew.
    """
    for layer in [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]:
        if not layer.weight.any():
            layer.reset_parameters()
        spectral_norm(layer)

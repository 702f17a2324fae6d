"""Which net a path has (``PathConfig.net``)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from pofx.core.space import Space
from pofx.nn.dit import Dit
from pofx.nn.encoders import channels_beside
from pofx.nn.noisy import NoisyMlp
from pofx.nn.temporal import TemporalUNet
from pofx.nn.unet import UNet
from pofx.nn.unet2d import GROUPS, UNet2d, UNet2dOnChain, usual_shape
from pofx.paths.schedule import Chain, Schedule


def net_kind(config: Any, space: Space) -> str:
    """Its name."""
    if config.net != "auto":
        return str(config.net)
    if _steps(space):
        return "temporal"
    return "unet" if _side(space) >= (8 if space.pixels else 4) else "mlp"


def net_shape(config: Any, space: Space, dim: int) -> tuple[int, ...]:
    """How the net takes the ``dim`` numbers of a datum: an image as it is, a chunk as steps, else all in a row."""
    if (kind := net_kind(config, space)) == "mlp":
        return (dim,)
    if kind == "temporal":
        return space.event_shape if _steps(space) else (dim, 1)
    return space.event_shape


def net_of(
    config: Any,
    space: Space,
    shape: tuple[int, ...],
    width: int,
    memory: int,
    picture: tuple[int, int, int] | None,
    schedule: Schedule,
) -> nn.Module:
    """The net on z [N, *shape], told a context's vector of so many numbers and its tokens of ``memory`` (0: none), and
    its map (C, H, W), if any."""
    kind = net_kind(config, space)
    if kind == "mlp":
        return NoisyMlp(shape[0], width, config.hidden, config.blocks)
    if kind == "temporal":
        return TemporalUNet(shape, config.channels, config.blocks, width)
    shown = channels_beside(picture, shape[1:])
    if kind == "dit":  # of at most 16 patches a side
        patch = 2 ** max(0, math.ceil(math.log2(max(shape[1:]) / 16)))
        return Dit(shape, config.hidden, config.blocks, patch, width, memory, shown)
    if kind == "unet2d":
        assert isinstance(schedule, Chain)
        net = UNet2d(usual_shape(shape, config.channels, config.blocks, config.attend))
        return UNet2dOnChain(net, schedule.step)
    patch = 2 if _side(space) >= 16 else 1
    levels = max(1, round(math.log2(_side(space) / patch / 7)) + 1)  # down to about 7 cells a side
    return UNet(shape[0], config.channels, levels, config.blocks, patch, width, memory, config.attend, shown)


def net_refused(config: Any, space: Space, context: Space | None) -> str | None:
    """Why the net is none for these spaces and options, or None."""
    if config.net == "temporal":
        several = is_grid(space) or space.pixels
        return "net=temporal is for chunks of steps, [steps, numbers]. Leave net at auto." if several else None
    if config.net not in ("auto", "mlp") and not _side(space):
        return f"net={config.net} is for images. Leave net at auto."
    if config.net != "unet2d":
        return None
    if not space.pixels:
        return "net=unet2d is for images. Leave net at auto."
    if config.schedule != "ddpm":
        return "net=unet2d is told a step of the chain. Set schedule=ddpm, or net=unet."
    if context is not None:
        return "net=unet2d is told no context. Use net=unet."
    if config.logit:
        return "net=unet2d takes pixels as they are. Leave logit at 0."
    if config.channels % GROUPS:
        return f"net=unet2d has norms of {GROUPS} groups. Give a multiple of {GROUPS} as channels."
    return None


def is_grid(space: Space) -> bool:
    """Is a datum [C, H, W]: an image, or a grid of vectors?"""
    return len(space.event_shape) == 3


def _steps(space: Space) -> bool:
    """Is a datum a chunk of steps, [steps, numbers]?"""
    return len(space.event_shape) == 2


def _side(space: Space) -> int:
    """The shorter one of an image or a grid; none of anything else."""
    return min(space.event_shape[1:]) if is_grid(space) else 0

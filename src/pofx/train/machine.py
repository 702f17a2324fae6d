"""What a fit in one process runs on: lightning-fabric, or the processor alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pofx.core.learner import Local

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Alone(Local):
    """One process on the processor, in full precision, under lightning-fabric's names.

    There lightning-fabric has nothing to do, and importing it imports torch's compiler: more than a second.
    """

    device = torch.device("cpu")
    world_size = 1
    global_rank = 0
    is_global_zero = True

    def broadcast(self, value: Any) -> Any:
        return value

    def all_reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        return tensor


def one_process(device: str, precision: str) -> Fabric | Alone:
    """The machine of a fit in this process; ``device`` as ``train.device`` chose it."""
    if device == "cpu" and precision == "32-true":
        return Alone()
    from lightning_fabric import Fabric

    return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]

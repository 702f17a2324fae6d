"""Processes of one fit: those that ``torchrun`` has started, on one machine or several, or those that we start."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed

from pofx.core.errors import DataChanged, UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pofx.core.model import Model


@dataclass(frozen=True)
class Torchrun:
    """This process among those of ``torchrun``: its number, how many there are, here and in all, on how many nodes."""

    rank: int
    size: int
    here: int
    nodes: int


def torchrun() -> Torchrun | None:
    """What ``torchrun`` says of this process; None where it has not started it."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return None
    number = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")}
    return Torchrun(*number.values())


def is_first() -> bool:
    """Is this the process that writes and prints?"""
    world = torchrun()
    return world is None or world.rank == 0


def count(processes: int | None) -> int:
    """How many processes train. Raises UsageError where ``torchrun`` has started another number."""
    world = torchrun()
    if world is None:
        return 1 if processes is None else processes
    if processes not in (None, world.size):
        raise UsageError(
            f"torchrun has started {world.size} processes; {processes} were asked for.", "Leave out processes."
        )
    if world.here * world.nodes != world.size:
        raise UsageError(
            f"{world.size} processes are not {world.here} on each of {world.nodes} nodes.",
            "Let torchrun start the same number everywhere.",
        )
    return world.size


def on_this_machine(processes: int) -> int:
    """How many of them run here."""
    world = torchrun()
    return processes if world is None else world.here


def agree(fabric: Fabric, model: Model, digest: dict[str, str]) -> None:
    """All processes start from the first one's model, on the same data. Raises DataChanged for other data."""
    there, state = fabric.broadcast((digest, model.state_dict()))
    if there != digest:
        raise DataChanged(
            f"Process {fabric.global_rank}, on {platform.node()}, has read other data than the first one.",
            "Give every machine the same source.",
        )
    model.load_state_dict(state)


def leave() -> None:
    """Close the connections to the other processes: at exit, a thread that still holds one can abort this process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

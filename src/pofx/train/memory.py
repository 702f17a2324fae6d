"""Memory that there is not: told by name and number before it is asked for, where that can be known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pofx.core.errors import OutOfMemory
from pofx.core.learner import Recipe

NOTED = 2**28  # bytes of a tensor from which on it is checked
MOMENTS = {"adam": 2, "muon": 1, "sgd": 0}  # that an optimizer keeps of every weight
GROUPS = (  # of processes, which may have less than the machine: limit and use, in either version
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int:
    """Bytes of memory that a process may still take: of the machine and, in a container, of its share."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, KeyError):  # on another system than Linux
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    for most, used in GROUPS:
        with suppress(OSError, ValueError):  # no such group, or no limit ("max")
            found.append(int(Path(most).read_text()) - int(Path(used).read_text()))
    return min(found)


@contextmanager
def enough(what: str) -> Iterator[None]:
    """Raises OutOfMemory where memory runs out inside: of a tensor that is built, before it is."""
    try:
        yield
    except MemoryError as error:
        raise _too_much(what, str(error)) from error
    except RuntimeError as error:
        said = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said:
            raise
        raise _too_much(what, said[said.find("you tried") :].partition("\n")[0]) from error


@contextmanager
def building(what: str) -> Iterator[None]:
    """``enough`` for the tensors of a model that is built: each is checked before it is made."""
    with enough(what), _Checked(what):
        yield


class _Checked(TorchDispatchMode):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        if arguments and arguments[0].name == "size" and kwargs.get("device") in (None, torch.device("cpu")):
            size = math.prod(args[0]) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
            if size > NOTED and size > (free := available()):
                shape = " x ".join(map(str, args[0]))
                raise _too_much(self.what, f"one tensor of {shape} takes {gigabytes(size)} of {gigabytes(free)} free")
        return func(*args, **kwargs)


def check_training(model: nn.Module, recipe: Recipe, what: str) -> None:
    """Raises OutOfMemory where gradients, the optimizer's moments and a copy of the best weights have no place."""
    trained = [p for p in model.parameters() if p.requires_grad and p.device.type == "cpu"]
    weights = sum(p.numel() * p.element_size() for p in trained)
    size, free = weights * (2 + MOMENTS[recipe.optimizer]), available()
    if size > free:
        raise _too_much(what, f"training takes {gigabytes(size)} beside the weights, of {gigabytes(free)} free")


def gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _too_much(what: str, reason: str) -> OutOfMemory:
    return OutOfMemory(f"{what} needs more memory than there is: {reason}.", "Make it smaller, by its --options.")

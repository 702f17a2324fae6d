"""Memory that there is not: told by name and number before it is asked for, where that can be known."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pofx.core.errors import OutOfMemory
from pofx.core.learner import Recipe
from pofx.core.memory import available, enough, gigabytes, too_much

NOTED = 2**28  # bytes of new tensors between two looks at what is taken
COPIES = 4  # of a model: itself, its gradient or counts, the best weights, what is written
MOMENTS = {"adam": 2, "muon": 1, "sgd": 0}  # that an optimizer keeps of every weight


@contextmanager
def building(what: str) -> Iterator[None]:
    """``enough`` for the tensors of a model: a large one is checked before it is made."""
    with enough(what), _Checked(what):
        yield


class _Checked(TorchDispatchMode):
    """Looks at what makes tensors, and from time to time at what this process has taken since the start."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.free, self.before = what, available(), _resident()
        self.made, self.looked = 0, 0  # bytes made so far, and when we last looked

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled: without this torch imports its compiler, for a second, to keep it away."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        shape, usual = _made(func._schema, args)
        if shape and kwargs.get("device") in (None, torch.device("cpu")):
            size = math.prod(shape) * (kwargs.get("dtype") or usual).itemsize
            self.made += size
            if COPIES * size > self.free:
                raise self._too_much("one tensor of " + " x ".join(map(str, shape)), size)
            if self.made - self.looked > NOTED:
                self.looked, taken = self.made, _resident() - self.before
                if COPIES * taken > self.free:
                    raise self._too_much("what is built so far", taken)
        return func(*args, **kwargs)

    def _too_much(self, which: str, size: int) -> OutOfMemory:
        reason = f"{which} takes {gigabytes(size)}, and copies are made to train and save it; {gigabytes(self.free)}"
        return too_much(self.what, f"{reason} are free")


def _made(schema: Any, args: Any) -> tuple[Any, torch.dtype]:
    """Shape and usual type of the tensor that an operation makes out of nothing; [] for one that works on tensors."""
    if schema.name == "aten::arange":
        start, end, step = {1: (0, *args, 1), 2: (*args, 1), 3: args}[len(args)]
        return [math.ceil((end - start) / step)], torch.int64
    return args[0] if schema.arguments and schema.arguments[0].name == "size" else [], torch.get_default_dtype()


def _resident() -> int:
    """Bytes that this process holds in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not on Linux: the most that it has held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_training(model: nn.Module, recipe: Recipe, what: str) -> None:
    """Raises OutOfMemory where gradients, the optimizer's moments and a copy of the best weights have no place."""
    trained = [p for p in model.parameters() if p.requires_grad and p.device.type == "cpu"]
    weights = sum(p.numel() * p.element_size() for p in trained)
    size, free = weights * (2 + MOMENTS[recipe.optimizer]), available()
    if size > free:
        raise too_much(what, f"training takes {gigabytes(size)} beside the weights, of {gigabytes(free)} free")

"""Where a fit computes."""

from __future__ import annotations

from pofx.core.errors import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose(device: str, processes: int = 1) -> str:
    """The device that is meant on this machine; raises UsageError where there is none such.

    'auto' is cuda where torch sees one for each process, else cpu. Apple's mps has no float64, which mixtures, counts
    and the terms of discrete data need, so it is taken only where it is asked for.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.device_count() >= processes, "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return "cuda" if torch.cuda.is_available() and there["cuda"] else "cpu"
    if device not in there:
        raise UsageError(f"device={device!r} is not offered.", f"Give {', '.join(DEVICES[:-1])} or {DEVICES[-1]}.")
    if not there[device]:
        some = "" if processes == 1 else f" for each of {processes} processes"
        raise UsageError(f"device={device!r}, but torch finds none{some} here.", "Give auto or cpu.")
    return device

"""Memory: how much a process may still take, the error where it runs out, and amounts in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from pofx.core.errors import OutOfMemory, UsageError

GROUPS = (  # of processes, which may have less than the machine: limit, use and cached files of it, in either version
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def available() -> int:
    """Bytes that a process may still take: of the machine, of its container's share, and of its own limit."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, KeyError):  # on another system than Linux
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    for place, most, used, cached in GROUPS:
        with suppress(OSError, KeyError, ValueError):  # no such group, or no limit ("max")
            group = Path(place)
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free = int((group / most).read_text()) - int((group / used).read_text())
            found.append(free + int(counts[cached]))  # what is cached gives way
    with suppress(ImportError, OSError):  # neither is there on every system
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    return min(found)


@contextmanager
def enough(what: str, remedy: str = "Make it smaller, by its --options.") -> Iterator[None]:
    """Raises OutOfMemory where memory runs out inside: of a tensor that is built, before it is."""
    try:
        yield
    except MemoryError as error:
        raise too_much(what, str(error), remedy) from error
    except RuntimeError as error:
        said = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said:
            raise
        raise too_much(what, said[said.find("you tried") :].partition("\n")[0], remedy) from error


def too_much(what: str, reason: str, remedy: str = "Make it smaller, by its --options.") -> OutOfMemory:
    return OutOfMemory(f"{what} needs more memory than there is: {reason}.", remedy)


def gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def parse(text: str | int) -> int:
    """Bytes of "4GB", "500 MB", "1.5GiB" or a number of bytes. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(text).upper())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise UsageError(f"{text!r} is no amount of memory.", "Write 4GB, 500MB or a number of bytes.")
    return int(float(found[1]) * UNITS[found[2]])

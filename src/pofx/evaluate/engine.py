"""Where the families of a comparison run: one after the other in this process, or as tasks on a Ray cluster.

Both give the same results: every random choice follows from the seed, and a family has as many cores here as there.
No file system need be shared: a task works in a folder of its node, and hands the files of its run back.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TypeAlias

import torch

import pofx
from pofx.cluster import connected
from pofx.core import registry
from pofx.core.errors import PofxError, UsageError
from pofx.core.files import scratch, write_atomic
from pofx.core.model import Model
from pofx.evaluate.entrant import Entrant, Result, Tell
from pofx.evaluate.study import Study
from pofx.train.run import clear, read_run

RETRIES = 3  # of a task whose worker died
GRACE = 5.0  # seconds that a cancelled task has to tidy up

Place = Callable[[str], Path | None]
"""The folder of a family's run, or None where it is kept in memory."""

Running = Generator[tuple[str, Result], None, None]
"""Names of families and their results, in the order in which they end; to be closed."""


@contextmanager
def engine(cluster: str | None, cores: int | None, device: str) -> Iterator[Engine]:
    """This process, or the cluster at an address (see ``pofx.cluster.connected``).

    Args:
        cores: of each family; None for as many threads as torch has here, and for one on a cluster.
        device: of each family, as of ``fit``; on a cluster that has GPUs, "cuda" and "auto" ask for one each.
    """
    if cluster is None:
        yield Here(cores or torch.get_num_threads())
        return
    with connected(cluster) as ray:
        yield Cluster(ray, cores or 1, device)


class Here:
    """One family after the other."""

    workers = 1  # families that run at a time

    def __init__(self, cores: int) -> None:
        self.cores = cores

    def run(
        self, study: Study, entrants: Sequence[Entrant], place: Place, tell: Callable[[str], Tell], until: float
    ) -> Running:
        """Run each as ``Entrant.run`` does, on ``cores``."""
        for entrant in entrants:
            with limited(self.cores):
                result = entrant.run(study, place(entrant.name), tell(entrant.name), until)
            yield entrant.name, result


class Cluster:
    """A Ray task for each family; one whose worker died is tried again."""

    def __init__(self, ray: Any, cores: int, device: str) -> None:
        self.ray, self.cores = ray, cores
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most, gpus = (max(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        if cores > most:
            raise UsageError(
                f"A family is to have {cores} cores, and no node of the cluster has more than {most:g}.",
                f"Give at most cores={most:g}.",
            )
        if device.startswith(("cuda", "gpu")) and not gpus:
            raise UsageError(f"device={device!r}, and the cluster has no GPU.", "Give device='cpu'.")
        self.gpus = 1 if gpus and device.startswith(("cuda", "gpu", "auto")) else 0
        rooms = [(node.get("CPU", 0) // cores, node.get("GPU", 0)) for node in nodes]
        self.workers = int(sum(min(room) if self.gpus else room[0] for room in rooms))

    def run(
        self, study: Study, entrants: Sequence[Entrant], place: Place, tell: Callable[[str], Tell], until: float
    ) -> Running:
        ray = self.ray
        submit = ray.remote(num_cpus=self.cores, num_gpus=self.gpus, max_retries=RETRIES)(_task).remote
        common = ray.put((study, _registered(ray, [e.name for e in entrants])))
        rest = (until, self.cores, pofx.__version__)
        pending = {submit(common, e, read_files(place(e.name)), *rest): e for e in entrants}
        try:
            while pending:
                for done in ray.wait(list(pending), timeout=1.0)[0]:  # with Ctrl-C between
                    entrant = pending.pop(done)
                    yield entrant.name, self._received(done, entrant, place(entrant.name))
        finally:
            # Never by force: Ray aborts this process where that meets a task that is just ending (2.56.1).
            for task in pending:
                ray.cancel(task)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=GRACE)

    def _received(self, task: Any, entrant: Entrant, place: Path | None) -> Result:
        from ray.exceptions import RayError, RayTaskError

        try:
            result, files = self.ray.get(task)
        except RayTaskError as error:  # what a family does wrong is a result: this is the node's own trouble
            if isinstance(error.cause, PofxError):
                raise error.cause from error
            raise UsageError(
                f"A node of the cluster cannot run {entrant.name}: {type(error.cause).__name__}: {error.cause}.",
                "Install the same pofx on all of its nodes, and the packages of your own families.",
            ) from error
        except RayError as error:
            reason = f"its worker died, {RETRIES + 1} times in all: {str(error).splitlines()[0]}"
            return Result({**entrant.row, "status": "failed", "reason": reason})
        if place is not None:
            write_files(place, files)
            run = read_run(place) if result.row["status"] == "ok" else None
            return dataclasses.replace(result, run=run)
        return result


Engine: TypeAlias = Here | Cluster


def _task(
    common: tuple[Study, bytes], entrant: Entrant, files: Mapping[str, bytes], until: float, cores: int, version: str
) -> tuple[Result, dict[str, bytes]]:
    """What a worker does: the result without the run, and the files of the run."""
    from ray import cloudpickle

    if pofx.__version__ != version:
        raise UsageError(f"A node of the cluster has pofx {pofx.__version__}, this is {version}.", "Use one version.")
    study, own = common
    for cls in cloudpickle.loads(own):
        registry.register(cls)
    with scratch(Path(gettempdir()), f"pofx-{entrant.name}-") as folder, limited(cores):
        place = folder / entrant.name
        write_files(place, files)
        result = entrant.run(study, place, lambda *_: None, until)
        return dataclasses.replace(result, run=None), read_files(place)


def _registered(ray: Any, names: Sequence[str]) -> bytes:
    """The classes of those families that this process alone knows, with all that their modules define."""
    own = [cls for name, cls in registry.registered().items() if name in names]
    bases = {base.__module__ for cls in own for base in cls.__mro__ if issubclass(base, Model)}
    modules = [sys.modules[name] for name in bases if name != "__main__" and not name.startswith("pofx.")]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(ray.cloudpickle.dumps(own))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UsageError(
            f"A family of this process cannot be sent to a cluster: {error}.",
            "Install it as a package, with an entry point, on all nodes.",
        ) from error
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def limited(cores: int) -> Iterator[None]:
    """Inside, torch and the libraries of linear algebra have so many threads."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(cores):
        torch.set_num_threads(cores)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def read_files(place: Path | None) -> dict[str, bytes]:
    """All files of a run by their names in its folder; none where it holds no run."""
    if place is None or not (place / "config.json").exists():
        return {}
    files = (file for file in place.rglob("*") if file.is_file())
    names = {file: file.relative_to(place) for file in files}
    return {str(name): file.read_bytes() for file, name in names.items() if not str(name).startswith(".")}


def write_files(place: Path, files: Mapping[str, bytes]) -> None:
    """The inverse, in place of the run that was there: config.json comes last, and without it the others count for
    nothing. Raises CannotSave."""
    if files:
        clear(place)
        for name in sorted(files, key=lambda name: name == "config.json"):
            write_atomic(place / name, files[name])

"""``fit`` and ``resume``: what a user calls. The work is in ``loop``."""

from __future__ import annotations

import atexit
import copy
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from pofx.core.abilities import InBlocks
from pofx.core.errors import EmptyData, Stopped, UsageError
from pofx.core.family import replace_config
from pofx.core.memory import enough
from pofx.core.model import Model
from pofx.core.nested import configured
from pofx.core.options import Range, at_least, check
from pofx.core.registry import family as find_family
from pofx.data.parts import Data, Part, class_counts
from pofx.train import run as folder
from pofx.train.checkpoint import write_sealed
from pofx.train.device import choose
from pofx.train.loop import Job, Loop, Progress, seeded
from pofx.train.machine import one_process
from pofx.train.memory import building
from pofx.train.processes import agree, count, is_first, leave, on_this_machine, torchrun
from pofx.train.run import Run
from pofx.train.signals import Watch
from pofx.train.stages import Limit, check_stages

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOOK = 2**25  # numbers of a sample that stands for rows beyond memory before training: 256 MiB
PRECISIONS = ("32-true", "bf16-mixed")
COMPILE = ("never", "auto")
RANGES = {"seed": at_least(0, 2**63 - 1), "until": Range(0, 1, above=True)}


def fit(
    data: Data | Any,
    family: str | type[Model],
    *,
    seconds: float | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    target: Model | None = None,
    target_weight: float = 0.0,
    checks: int = 20,
    patience: int | None = None,
    valid_rows: int = 2000,
    save_every: float = 60.0,
    device: str = "auto",
    processes: int | None = None,
    precision: str = "32-true",
    compile: str = "never",
    until: float = 1.0,
    progress: Progress | None = None,
) -> Run:
    """Fit one family to data.

    Args:
        data: a ``Data``, or anything that ``pofx.load`` takes.
        family: a registered name, or a Model class.
        seconds, steps, epochs: the budget, in one unit (default: the recipe's epochs). Steps and epochs
            reproduce bit for bit on one CPU thread; seconds depend on the machine's speed, and may be spent on fewer
            threads than torch has, where that is faster.
        out: the run folder; None keeps the run in memory only.
        overwrite: replace the run that ``out`` holds.
        seed: of initial weights, shuffles and noise.
        options: of the family's Config; recipe: of its Recipe.
        target, target_weight: add target_weight * KL(p* || p_theta) to the loss, for a model p* of the
            same space.
        checks: how many validations the budget holds.
        patience: stop after this many validations without improvement (None: use the whole budget).
        valid_rows: validation uses so many rows of the validation part, drawn by ``seed``, the same ones each time;
            fewer where a budget in seconds has no time for them.
        save_every: seconds between checkpoints.
        device: "auto" (cuda where there is one, else cpu), "cpu", "cuda", or "mps", which lacks the float64 that some
            families need. The run records what was asked for and what it was.
        processes: of data-parallel training; any number computes the same steps within rounding. Unless said, 1, or all
            that torchrun has started, each with the same call: they may be on several machines, which read the same
            source; the first one alone writes.
        precision: "32-true" or "bf16-mixed" (the nets' passes in bfloat16; weights, updates and likelihoods are not).
        compile: "auto" times some steps as they are and some under ``torch.compile`` (which takes a minute or more,
            so it is tried only where four are left), keeps the faster ones, and logs which these are. Results then
            agree within rounding, not bit for bit, with those of "never".
        until: stop at this share of the budget; ``resume`` goes on in the run folder, as if nothing had been.

    Returns:
        The Run, its model carrying the best validated weights, or the last, as its recipe says.

    Raises:
        UsageError, DataError, Unsupported, RunExists, RunBusy, CannotSave; Diverged, when the loss or its
        gradient is no longer finite (the last good weights are kept); Stopped (a KeyboardInterrupt), when Ctrl-C,
        SIGTERM or SIGHUP ends a fit that has a run folder: the step in progress is finished and saved first.

    Example:
        >>> import pofx
        >>> data = pofx.load("two-moons", max_rows=600)
        >>> run = pofx.fit(data, "gmm", steps=20, options={"components": 4})
        >>> run.status, run.model.sample(5).shape
        ('finished', torch.Size([5, 2]))
    """
    if not isinstance(data, Data):
        from pofx.data.load import load

        data = load(data)
    cls = find_family(family) if isinstance(family, str) else family
    if len(data.train) == 0:
        raise EmptyData("The training part has no rows.", "Give more data or another split.")
    config = configured(cls, data.space, data.context, options or {})
    rec = replace_config(cls.recipe(data.space), recipe or {})
    limit = Limit(seconds, steps, rec.epochs if seconds is None and steps is None and epochs is None else epochs)
    for name, value, known in (("precision", precision, PRECISIONS), ("compile", compile, COMPILE)):
        if value not in known:
            raise UsageError(f"{name}={value!r} is not offered.", f"Give {' or '.join(map(repr, known))}.")
    training: dict[str, Any] = {
        "checks": checks, "patience": patience, "valid_rows": valid_rows, "save_every": save_every,
        "processes": processes, "target_weight": target_weight,
    }  # fmt: skip
    hints = get_type_hints(fit)
    for argument, given in {"seed": seed, **training, "until": until}.items():
        check(argument, given, hints[argument], RANGES.get(argument))
    processes = count(processes)
    place = choose(device, on_this_machine(processes))
    training |= {"device": device, "processes": processes, "precision": precision, "compile": compile}
    if until < 1 and (out is None or processes > 1):
        raise UsageError(f"until={until}: only one process with a run folder can go on.", "Give out=FOLDER.")
    if target is not None and target.space != data.space:
        raise UsageError(f"The target models {target.space}, the data are {data.space}.", "Use one space.")
    if target is not None and (target.context is not None or data.context is not None):
        raise UsageError("A target distribution goes with models of p(x) only.", "Drop the context.")

    if processes > 1 and data.train.beyond_memory:
        raise UsageError(
            f"The data do not fit into memory; they are read in blocks by one process, not by {processes}.",
            "Leave processes at 1.",
        )
    with seeded(seed), building(cls.name):
        model = cls(config, data.space, data.context)
    check_stages(model, model.stages(rec), limit, target)
    about = folder.about(data) | {"counts": class_counts(data)}
    info = folder.describe(model, rec, seed, dataclasses.asdict(limit), about, training) | {"device": place}
    path = None if out is None else Path(out)
    with _folder(path) as watch, enough(cls.name):
        if path is not None and is_first():
            folder.create(path, info, overwrite)
        _prepare(model, data.train, seed)
        if model.remarks:
            about["notes"] += model.remarks
            if path is not None and is_first():
                write_sealed(path / "config.json", info)
        return _launch(Job(model, info, data, path, target), progress, watch, until)


def resume(
    path: str | Path,
    *,
    data: Data | None = None,
    device: str | None = None,
    until: float = 1.0,
    progress: Progress | None = None,
) -> Run:
    """Continue a fit that was killed, from its last checkpoint, as if nothing had happened.

    Args:
        path: the run folder.
        data: needed where the run was fitted on data in memory; else the source is read again.
        device: where to go on; None as it was asked for at first, which "auto" chooses anew on another machine.
        until: as of ``fit``.

    Raises NoRun, UsageError, RunBusy, CorruptCheckpoint, OlderFormat, NewerFormat, DataChanged, CannotSave, the
    source's own errors, or Stopped.

    Example:
        >>> import pofx, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = pofx.load("two-moons", max_rows=300)
        ...     done = pofx.fit(data, "gmm", steps=5, out=f"{folder}/run")
        ...     resume(f"{folder}/run", data=data).steps  # nothing is left to do
        5
    """
    path = Path(path)
    info = folder.read_info(path)
    if info["training"]["target_weight"]:
        raise UsageError("A fit with a target distribution cannot be resumed.", "Fit again.")
    training = info["training"]
    if torchrun() is not None:
        training["processes"] = count(None)
    info["device"] = choose(training["device"] if device is None else device, on_this_machine(training["processes"]))
    data = folder.read_data(info, str(path), data)
    with seeded(info["seed"]):
        model = folder.build(info)
    if model.space != data.space or model.context != data.context:
        raise UsageError(f"The data ({data.space}) are not those of the run ({model.space}).", "Give the same source.")
    with _folder(path) as watch, enough(model.name):
        if is_first():
            write_sealed(path / "config.json", info)  # a folder that cannot be written is found before training
        _prepare(model, data.train, info["seed"])
        return _launch(Job(model, info, data, path), progress, watch, until)


def _prepare(model: Model, train: Part, seed: int) -> None:
    """Let the model look at the training rows; of more than memory holds, at a sample, where it needs them at once."""
    n = len(train)
    if sampled := train.beyond_memory and not isinstance(model, InBlocks):
        train = train.draw(LOOK // max(1, model.space.dims), seed).in_memory()
    model.prepare(train.x, train.c, train.weight, torch.Generator().manual_seed(seed))
    if sampled:
        words = f"{model.name} took its scales and start from {len(train):,} of the {n:,} training rows, drawn by seed"
        model.remarks = [*model.remarks, f"{words} {seed}: all do not fit into memory."]


@contextmanager
def _folder(path: Path | None) -> Iterator[Watch]:
    """Inside, the run folder is this process's own, and signals are watched."""
    claimed = nullcontext() if path is None or not is_first() else folder.claimed(path)
    with claimed, Watch(path).installed() as watch:
        yield watch


def _launch(job: Job, progress: Progress | None, watch: Watch, until: float) -> Run:
    """Run the loop in as many processes as asked; each reads the same data and owns a share of every batch."""
    info, training, world = job.info, job.info["training"], torchrun()
    n = training["processes"]
    if world is not None:
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # each process would say that it has started
        fabric = Fabric(
            accelerator=info["device"], devices=world.here, num_nodes=world.nodes, strategy="ddp",
            precision=training["precision"],
        )  # fmt: skip
        fabric.launch()
        atexit.register(leave)  # lightning-fabric does so for NCCL alone
        agree(fabric, job.model, job.data.digest)
        return Loop(fabric, job, progress if world.rank == 0 else None, watch).run(until)
    if n == 1:
        alone = one_process(info["device"], training["precision"])
        threads = torch.get_num_threads()
        try:
            return Loop(alone, job, progress, watch).run(until)
        finally:
            torch.set_num_threads(threads)
    from lightning_fabric import Fabric

    with tempfile.TemporaryDirectory() as temporary:
        # Processes hand their result over in a run folder.
        place = job.path or Path(temporary)
        if job.path is None:
            folder.create(place, info, overwrite=False)
        fabric = Fabric(accelerator=info["device"], devices=n, strategy="ddp_spawn", precision=training["precision"])
        watch.patient = watch.processes = True
        fabric.launch(partial(_in_process, dataclasses.replace(job, path=place), torch.get_num_threads()))
        if watch.asked is not None:
            raise watch.stopped("after a step of all processes, which is saved")
        run = folder.read_run(place)
        run.path = job.path
        return run


def _in_process(job: Job, threads: int, fabric: Fabric) -> None:
    torch.set_num_threads(max(1, threads // fabric.world_size))
    # Tensors reach a process as shared memory: each trains a copy, and all read the same data.
    with Watch(job.path, child=True).installed() as watch, suppress(Stopped):  # the first process tells the caller
        Loop(fabric, dataclasses.replace(job, model=copy.deepcopy(job.model)), None, watch).run()
    leave()  # after an error not: the others would lose the connection, and tell of that in its place

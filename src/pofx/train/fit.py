"""One training loop for every learner: gradients, alternation, EM and counting differ only in ``step``.

What the loop owes the user: a budget in seconds, steps or epochs; the best validated weights; no silent
NaN; checkpoints that a kill cannot break; a resume that continues exactly. For that, every random
choice of step t is a function of (seed, t) alone and every shuffle one of (seed, epoch), so there is no
generator state to lose, and validation cannot disturb training.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pofx.core.errors import Diverged, EmptyData, NotANumber, Unsupported, UsageError
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, steppers
from pofx.core.likelihood import SYMBOL, Likelihood, Unavailable
from pofx.core.model import Model, idle, replace_config
from pofx.core.options import POSITIVE, Options, at_least, check
from pofx.core.registry import family as find_family
from pofx.data.base import Data, Part
from pofx.train import run as folder
from pofx.train.checkpoint import load_into, load_tree, put, save_tree, write_json
from pofx.train.compiling import Trial
from pofx.train.run import Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PROBE = 32  # rows of the first, timed validation
PRECISIONS = ("32-true", "bf16-mixed")
COMPILE = ("never", "auto")
SEEDS = at_least(0, 2**63 - 1)

Progress = Callable[[dict[str, Any]], None]
"""Called with each new log entry, and a few times a second between them."""


@dataclass(frozen=True)
class Limit(Options):
    """The budget of a fit, in exactly one unit."""

    seconds: float | None = None
    steps: int | None = None
    epochs: int | None = None

    ranges = {"seconds": POSITIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise UsageError(f"A budget has one unit; given: {given or 'none'}.", "Give seconds, steps or epochs.")

    def progress(self, state: State, per_epoch: int) -> float:
        """How much of the budget is used, from 0 to 1 (or beyond)."""
        if self.seconds is not None:
            return state.seconds / self.seconds
        return state.step / self._steps(per_epoch)

    def left(self, state: State, per_epoch: int, each: float) -> float:
        """How many seconds are left, at ``each`` seconds per step."""
        if self.seconds is not None:
            return self.seconds - state.seconds
        return each * (self._steps(per_epoch) - state.step)

    def _steps(self, per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * per_epoch


@dataclass
class State:
    """The counters of training; with weights and learner state, all that a resume needs."""

    step: int = 0
    seconds: float = 0.0
    checks: int = 0  # validations done
    best: float | None = None  # best validation number so far, nats
    best_step: int = 0
    stale: int = 0  # validations since it improved
    valid_rows: int = 0  # of every validation; 0 until the first


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
    device: str = "cpu",
    processes: int = 1,
    precision: str = "32-true",
    compile: str = "never",
    progress: Progress | None = None,
) -> Run:
    """Fit one family to data.

    Args:
        data: a ``Data``, or anything that ``pofx.load`` takes.
        family: a registered name, or a Model class.
        seconds, steps, epochs: the budget, in one unit (default: the recipe's epochs). Steps and epochs
            reproduce bit for bit on one CPU thread; seconds depend on the machine's speed.
        out: the run folder; None keeps the run in memory only.
        overwrite: replace the run that ``out`` holds.
        seed: of initial weights, shuffles and noise.
        options: of the family's Config; recipe: of its Recipe.
        target, target_weight: add target_weight * KL(p* || p_theta) to the loss, for a model p* of the
            same space.
        checks: how many validations the budget holds.
        patience: stop after this many validations without improvement (None: use the whole budget).
        valid_rows: validation uses the first so many rows of the validation part; fewer where a budget in
            seconds has no time for them.
        save_every: seconds between checkpoints.
        device: "cpu", "cuda", ... (lightning-fabric's accelerator names).
        processes: of data-parallel training; any number computes the same steps within rounding.
        precision: "32-true" or "bf16-mixed" (the nets' passes in bfloat16; weights, updates and scores are not).
        compile: "auto" times some steps as they are and some under ``torch.compile`` (which takes a minute or more,
            so it is tried only where four are left), keeps the faster ones, and logs which these are. Results then
            agree within rounding, not bit for bit, with those of "never".

    Returns:
        The Run, its model carrying the best validated weights.

    Raises:
        UsageError, DataError, Unsupported, RunExists, CannotSave; Diverged, when the loss or its
        gradient is no longer finite (the last good weights are kept).
    """
    if not isinstance(data, Data):
        from pofx.data.base import load

        data = load(data)
    cls = find_family(family) if isinstance(family, str) else family
    if len(data.train) == 0:
        raise EmptyData("The training part has no rows.", "Give more data or another split.")
    config = replace_config(cls.Config(), options or {})
    if reason := cls.refuses(data.space, data.context, config):
        raise Unsupported(f"{cls.name} does not serve {data.space}: {reason}", "See 'pofx families'.")
    if unused := idle(cls, data.space, data.context, config):
        raise Unsupported(
            f"{', '.join(f'{k}={getattr(config, k)!r}' for k in unused)} changes nothing in a {cls.name} of this "
            f"{data.space}.",
            f"Leave out {' and '.join(unused)}.",
        )
    rec = replace_config(cls.recipe(data.space), recipe or {})
    limit = Limit(seconds, steps, rec.epochs if seconds is None and steps is None and epochs is None else epochs)
    for name, value, known in (("precision", precision, PRECISIONS), ("compile", compile, COMPILE)):
        if value not in known:
            raise UsageError(f"{name}={value!r} is not offered.", f"Give {' or '.join(map(repr, known))}.")
    for argument, given, kind, limits in (
        ("seed", seed, int, SEEDS),
        ("checks", checks, int, None),
        ("patience", patience, int | None, None),
        ("valid_rows", valid_rows, int, None),
        ("save_every", save_every, float, None),
        ("processes", processes, int, None),
        ("target_weight", target_weight, float, None),
    ):
        check(argument, given, kind, limits)
    training = {
        "checks": checks, "patience": patience, "valid_rows": valid_rows, "save_every": save_every,
        "device": device, "processes": processes, "precision": precision, "target_weight": target_weight,
        "compile": compile,
    }  # fmt: skip
    if target is not None and target.space != data.space:
        raise UsageError(f"The target models {target.space}, the data are {data.space}.", "Use one space.")
    if target is not None and (target.context is not None or data.context is not None):
        raise UsageError("A target distribution goes with models of p(x) only.", "Drop the context.")

    with seeded(seed):
        model = cls(config, data.space, data.context)
    about: dict[str, Any] = {
        "name": data.name, "source": data.source, "options": data.options, "split": data.split, "seed": data.seed,
        "notes": list(data.notes), "labels": None if data.labels is None else list(data.labels),
        "rows": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
    }  # fmt: skip
    info = folder.describe(model, rec, seed, dataclasses.asdict(limit), about, training)
    path = None if out is None else Path(out)
    if path is not None:
        folder.create(path, info, overwrite)
    model.prepare(data.train.x, data.train.c, data.train.weight, torch.Generator().manual_seed(seed))
    if model.remarks:
        about["notes"] += model.remarks
        if path is not None:
            write_json(path / "config.json", info)
    return _launch(model, info, data, path, target, progress)


def resume(path: str | Path, *, data: Data | None = None, progress: Progress | None = None) -> Run:
    """Continue a fit that was killed, from its last checkpoint, as if nothing had happened.

    Args:
        path: the run folder.
        data: needed where the run was fitted on data in memory; else the source is read again.

    Raises NoRun, CorruptCheckpoint, OlderFormat, NewerFormat, or the source's own errors.
    """
    path = Path(path)
    info = folder.read_info(path)
    if info["training"]["target_weight"]:
        raise UsageError("A fit with a target distribution cannot be resumed.", "Fit again.")
    if data is None:
        from pofx.data.base import load

        data = load(info["data"]["source"], **info["data"]["options"])
    with seeded(info["seed"]):
        model = folder.build(info)
    if model.space != data.space or model.context != data.context:
        raise UsageError(f"The data ({data.space}) are not those of the run ({model.space}).", "Give the same source.")
    model.prepare(data.train.x, data.train.c, data.train.weight, torch.Generator().manual_seed(info["seed"]))
    return _launch(model, info, data, path, None, progress)


def _launch(
    model: Model, info: dict[str, Any], data: Data, path: Path | None, target: Model | None, progress: Progress | None
) -> Run:
    """Run the loop in as many processes as asked; each reads the same data and owns a share of every batch."""
    from lightning_fabric import Fabric

    training = info["training"]
    n = training["processes"]
    if n == 1:
        fabric = Fabric(accelerator=training["device"], devices=1, precision=training["precision"])
        return _Loop(fabric, model, info, data, path, target, progress).run()
    with tempfile.TemporaryDirectory() as temporary:
        # Processes hand their result over in a run folder.
        place = path or Path(temporary)
        if path is None:
            folder.create(place, info, overwrite=False)
        fabric = Fabric(
            accelerator=training["device"], devices=n, strategy="ddp_spawn", precision=training["precision"]
        )
        fabric.launch(partial(_in_process, model, info, data, place, target, torch.get_num_threads()))
        run = folder.read_run(place)
        run.path = path
        return run


def _in_process(
    model: Model, info: dict[str, Any], data: Data, path: Path, target: Model | None, threads: int, fabric: Fabric
) -> None:
    torch.set_num_threads(max(1, threads // fabric.world_size))
    # Tensors reach a process as shared memory: each trains a copy, and all read the same data.
    _Loop(fabric, copy.deepcopy(model), info, data, path, target, None).run()


class _Loop:
    """The state of one fit and the steps that change it."""

    def __init__(
        self,
        fabric: Fabric,
        model: Model,
        info: dict[str, Any],
        data: Data,
        path: Path | None,
        target: Model | None,
        progress: Progress | None,
    ) -> None:
        self.fabric, self.info, self.data, self.path, self.progress = fabric, info, data, path, progress
        self.model = model.to(fabric.device)
        self.recipe: Recipe = folder.recipe_of(info)
        self.training, self.limit, self.seed = info["training"], Limit(**info["budget"]), info["seed"]
        self.learner: Learner = self.model.learner(self.recipe)
        self.learner.runtime = _FabricRuntime(fabric)
        for stepper in steppers(self.learner):
            stepper.rows = len(data.train)
        if target is not None:
            if not isinstance(self.learner, GradientLearner):
                raise Unsupported(f"{model.name} is not trained by gradients.", "Leave out the target distribution.")
            self.learner.target = _drawn_from(target)
            self.learner.target_weight = self.training["target_weight"]
        compiling = self.training.get("compile", "never") == "auto"  # an older run does not say
        self.trial = Trial(self.learner, fabric.world_size) if compiling else None
        self.material = self.model.material(data.train.x)
        rows = len(self.material)
        self.batch = rows if self.learner.sweep == "dataset" else min(self.recipe.batch, rows)
        if self.batch < fabric.world_size:
            raise UsageError(f"{self.batch} rows cannot be shared by {fabric.world_size} processes.", "Use fewer.")
        self.per_epoch = rows // self.batch  # a last, smaller batch is left to the next shuffle
        self.state = State()
        self.log: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.average = _Average(self.model, self.recipe.ema) if self.recipe.ema is not None else None
        self.noise = torch.Generator(fabric.device)
        self.epoch, self.order = -1, torch.empty(0)
        self.valid_cost = 0.0  # seconds of the last validation
        self.sums: dict[str, Tensor] = {}  # of step figures since the last log entry
        self.summed = 0
        if path is not None and (path / "resume.safetensors").exists():
            self._restore(load_tree(path / "resume.safetensors"), path)

    # -- the loop ---------------------------------------------------------------------------------------

    @torch.enable_grad()  # also where the caller has switched gradients off
    def run(self) -> Run:
        state, started = self.state, time.perf_counter() - self.state.seconds
        saved = shown = time.perf_counter()
        self.model.train()
        status = "finished"
        while True:
            state.seconds = time.perf_counter() - started
            done = self._agree(self.limit.progress(state, self.per_epoch))
            if done >= 1 or (self.learner.finished and state.step > 0):
                break
            if state.step > 0 and self._check_due(done):
                self._check()
                patience = self.training["patience"]
                if patience is not None and state.stale >= patience:
                    status = "stopped early"
                    break
            batch = self._batch(done)
            self.noise.manual_seed(_mix(self.seed, state.step))
            if self.trial is None:
                terms = self.learner.step(batch, self.noise)
            else:
                terms = self.trial.step(batch, self.noise, partial(self.limit.left, state, self.per_epoch))
            self._guard(terms)
            if self.average is not None:
                self.average.update(state.step)
            state.step += 1
            now = time.perf_counter()
            if self.progress is not None and now - shown > 0.2:
                shown = now
                self.progress(
                    {"step": state.step, "seconds": now - started, "progress": done, "loss": terms["loss"].item()}
                )
            if self.path is not None and now - saved > self.training["save_every"]:
                self._save()
                saved = time.perf_counter()
        state.seconds = time.perf_counter() - started
        self._check(status)
        return self._finish()

    def _agree(self, done: float) -> float:
        """Clocks differ between processes: all follow the first one's."""
        if self.fabric.world_size == 1 or self.limit.seconds is None:
            return done
        return float(self.fabric.broadcast(done))

    def _batch(self, done: float) -> Batch:
        train, state, world, rank = self.data.train, self.state, self.fabric.world_size, self.fabric.global_rank
        start, end = rank * self.batch // world, (rank + 1) * self.batch // world
        if self.learner.sweep == "dataset":
            part = (train if world == 1 else train[slice(start, end)]).read()
        else:
            epoch, place = divmod(state.step, self.per_epoch)
            if epoch != self.epoch:
                shuffle = torch.Generator().manual_seed(_mix(self.seed, -1 - epoch))
                self.epoch, self.order = epoch, torch.randperm(len(self.material), generator=shuffle)
                self.material.turn(_mix(self.seed, -1 - epoch))
            offset = place * self.batch
            index = self.order[offset + start : offset + end]
            owner = self.material.owner(index)
            given = (None if t is None else t[owner] for t in (train.c, None, train.weight))
            part = Part(self.material[index], *given)
        device = self.fabric.device
        x, c, weight = (None if t is None else t.to(device) for t in (part.x, part.c, part.weight))
        assert x is not None
        return Batch(x, c, weight, start, self.batch, done, state.step)

    def _guard(self, terms: dict[str, Tensor]) -> None:
        """No silent NaN: name the step, keep the last good weights, stop."""
        bad = [k for k in ("loss", "grad_norm") if k in terms and not math.isfinite(terms[k].item())]
        if bad:
            self._keep_last_good()
            raise Diverged(
                f"{self.model.name} diverged at step {self.state.step}: {bad[0]} is {terms[bad[0]].item()}.",
                "The last good weights are kept. Lower --recipe.lr or --recipe.clip, or look for extreme values.",
            )
        for key, value in terms.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
        self.summed += 1

    # -- validation ---------------------------------------------------------------------------------------

    def _check_due(self, done: float) -> bool:
        """Validations are spread evenly over the budget; on a clock they may take a tenth of it at most."""
        if done * self.training["checks"] < self.state.checks + 1:
            return False
        if self.limit.seconds is None:
            return True
        since = self.state.seconds - (self.log[-1]["seconds"] if self.log else 0.0)
        if since >= 9 * self.valid_cost:
            return True
        self.state.checks += 1  # this one is skipped
        return False

    def _check(self, status: str | None = None) -> None:
        """Validate with the averaged weights where there are any, log, and keep the best weights."""
        state, started = self.state, time.perf_counter()
        state.checks += 1
        entry: dict[str, Any] = {"step": state.step, "seconds": round(state.seconds, 3)}
        entry |= {k: float(v / self.summed) for k, v in self.sums.items()}
        self.sums, self.summed = {}, 0
        if self.trial is not None:
            entry |= self.trial.news(over=status is not None)
        with self.average.swapped() if self.average is not None else nullcontext():
            number = self._validate(entry)
            if self.training["target_weight"]:
                number = None  # the best fit to the data alone is not what was asked for
            if number is None or state.best is None or number > state.best:
                self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
                state.best, state.best_step, state.stale = number, state.step, 0
            else:
                state.stale += 1
        if status is not None:
            entry["status"] = status
        self.valid_cost = time.perf_counter() - started
        self.log.append(entry)
        if self.progress is not None:
            self.progress(entry)

    def _validate(self, entry: dict[str, Any]) -> float | None:
        """Mean nats per datum of the first validation rows, the same ones each time; None without a likelihood."""
        if len(self.data.valid) == 0:
            return None
        if not self.state.valid_rows:
            self.state.valid_rows = self._affordable()
        lik = self._score(self.state.valid_rows)
        if isinstance(lik, Unavailable):
            return None
        number = float(lik.nats.double().mean())
        # minus infinity is an honest number (a datum that the model holds impossible) but not JSON
        entry["valid"] = number if math.isfinite(number) else None
        entry["kind"] = type(lik).__name__
        entry["symbol"] = SYMBOL[type(lik)]
        return number

    def _score(self, rows: int) -> Likelihood:
        part = self.data.valid[:rows].read()
        c = None if part.c is None else part.c.to(self.fabric.device)
        generator = torch.Generator(self.fabric.device).manual_seed(self.seed)
        given = self.model.given(c, before=part.before)
        try:
            with torch.no_grad():
                return given.log_prob(part.x, budget=self.model.quick_budget(), generator=generator)
        except NotANumber as error:
            self._keep_last_good()
            raise Diverged(
                f"{self.model.name} diverged by step {self.state.step}: {error.problem}",
                "The last good weights are kept. Lower --recipe.lr, or look for extreme values.",
            ) from error

    def _affordable(self) -> int:
        """How many rows one validation scores: on a clock, as many as a twentieth of the budget has time for."""
        rows = min(self.training["valid_rows"], len(self.data.valid))
        if self.limit.seconds is None or rows <= PROBE:
            return rows
        started = time.perf_counter()
        self._score(PROBE)
        each = (time.perf_counter() - started) / PROBE
        affordable = max(PROBE, int(self.limit.seconds / 20 / each))
        return min(rows, affordable if self.fabric.world_size == 1 else int(self.fabric.broadcast(affordable)))

    # -- files ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.path is None or not self.fabric.is_global_zero:
            return
        state = dataclasses.asdict(self.state)
        if state["best"] is not None and not math.isfinite(state["best"]):
            state["best"] = None
        save_tree(
            self.path / "resume.safetensors",
            {
                "state": state,
                "weights": self.model.state_dict(),
                "learner": self.learner.state_dict(),
                "average": None if self.average is None else self.average.tensors,
                "best": self.best,
                "log": self.log,
                "sums": self.sums,
                "summed": self.summed,
            },
        )
        folder.write_log(self.path, self.log)
        if self.best is not None:
            folder.write_weights(self.path, self.best)

    def _restore(self, tree: dict[str, Any], path: Path) -> None:
        self.state = State(**tree["state"])
        load_into(self.model, tree["weights"], path / "resume.safetensors")
        self.learner.load_state_dict(tree["learner"])
        if self.average is not None:
            self.average.tensors = {k: v.to(self.fabric.device) for k, v in tree["average"].items()}
        self.best, self.log, self.sums, self.summed = tree["best"], tree["log"], tree["sums"], tree["summed"]

    def _keep_last_good(self) -> None:
        """After a divergence: the best validated weights if there are any, else those before the bad step."""
        if self.path is not None and self.fabric.is_global_zero:
            folder.write_weights(self.path, self.best or self.model.state_dict())
            folder.write_log(
                self.path, [*self.log, {"step": self.state.step, "seconds": self.state.seconds, "status": "diverged"}]
            )

    def _finish(self) -> Run:
        if self.best is not None:
            put(self.model, self.best)
        self.model.eval()
        self._save()
        return Run(self.model, self.info, self.log, self.path)


class _FabricRuntime:
    """What a learner's step may ask of the machine."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    def autocast(self) -> AbstractContextManager[None]:
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return tensor
        return self.fabric.all_reduce(tensor, reduce_op="sum")  # type: ignore[return-value]


class _Average:
    """Exponential moving average of the parameters, with a short memory at the start."""

    def __init__(self, model: Model, decay: float) -> None:
        self.model, self.decay = model, decay
        self.tensors = {k: p.detach().clone() for k, p in model.named_parameters()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.tensors.values()), [p.detach() for p in self.model.parameters()], 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averaged weights inside, the trained ones after."""
        own = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for k, p in self.model.named_parameters():
                p.copy_(tensors[k])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's initialisers draw from the global generator: seed it inside, give it back untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _drawn_from(target: Model) -> Callable[[Batch, torch.Generator], Batch]:
    def draw(batch: Batch, generator: torch.Generator) -> Batch:
        x = target.sample(batch.total, generator=generator)[batch.start : batch.start + len(batch.x)]
        return dataclasses.replace(batch, x=x.to(batch.x.device), weight=None)

    return draw


def _mix(seed: int, number: int) -> int:
    """One well-spread 63-bit seed per (seed, number): the finaliser of SplitMix64."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1

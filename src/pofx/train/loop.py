"""One training loop for every learner: gradients, alternation, EM and counting differ only in ``step``.

A fit goes through the model's stages, most often a single one: each has its own learner, training set and share of
the budget (see ``stages``), and sets out from the best weights of the one before.

What the loop owes the user: a budget in seconds, steps or epochs; the best validated weights; no silent
NaN; checkpoints that a kill cannot break; a resume that continues exactly. For that, every random
choice of step t is a function of (seed, t) alone and every shuffle one of (seed, epoch), so there is no
generator state to lose, and validation cannot disturb training.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pofx.core.abilities import InBlocks, beginnings
from pofx.core.errors import CannotSave, Diverged, NotANumber, Stopped, Unsupported, UsageError
from pofx.core.learner import Batch, GradientLearner, Recipe, steppers
from pofx.core.likelihood import SYMBOL, Likelihood, Unavailable
from pofx.core.model import Model
from pofx.data.parts import Data, Part
from pofx.train import run as folder
from pofx.train.average import Average
from pofx.train.checkpoint import load_into, load_tree, put, save_tree, write_lines
from pofx.train.compiling import Trial
from pofx.train.machine import Alone
from pofx.train.memory import check_training
from pofx.train.run import Run
from pofx.train.signals import Watch
from pofx.train.stages import Limit, State, overall
from pofx.train.threads import Threads

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PROBE = 32  # rows of the first, timed validation
VALIDATED = -(2**40)  # the number of the draw of validation rows: steps are counted from 0 up, epochs from -1 down

Progress = Callable[[dict[str, Any]], None]
"""Called with each new log entry, and a few times a second between them."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be fitted to what, as config.json tells, in which folder; ``target``: see ``fit``."""

    model: Model
    info: dict[str, Any]
    data: Data
    path: Path | None
    target: Model | None = None


class Loop:
    """The state of one fit and the steps that change it."""

    def __init__(self, fabric: Fabric | Alone, job: Job, progress: Progress | None, watch: Watch) -> None:
        self.fabric, self.progress, self.watch = fabric, progress, watch
        info, data, path = self.info, self.data, self.path = job.info, job.data, job.path
        model, self.target = job.model, job.target
        self.model = model.to(fabric.device)
        recipe = Recipe(**folder.tuples(info["recipe"]))
        self.training, self.limit, self.seed = info["training"], Limit(**info["budget"]), info["seed"]
        check_training(self.model, recipe, model.name)
        self.stages = self.model.stages(recipe)
        # the part may be sorted, and a head of it would hold a few classes
        self.validated = data.valid.draw(self.training["valid_rows"], mix(self.seed, VALIDATED))
        self.state = State()
        self.log: list[dict[str, Any]] = []
        self.noise = torch.Generator(fabric.device)
        self.valid_cost = 0.0  # seconds of the last validation
        self.sums: dict[str, Tensor] = {}  # of step figures since the last log entry
        self.summed = 0
        kept = None if path is None or not fabric.is_global_zero else path / "resume.safetensors"
        # of a folder that may be on the first process's machine alone
        tree = fabric.broadcast(load_tree(kept) if kept is not None and kept.exists() else None)
        if tree is not None and path is not None:
            self._restore(tree, path)
        else:
            self._begin()

    def _begin(self) -> None:
        """Make what the present stage is made of."""
        self.stage, fabric, train = self.stages[self.state.stage], self.fabric, self.data.train
        if self.stage.training_set is None:
            self.training_set = self.model.training_set(train.x)
        else:
            self.training_set = self.stage.training_set(train.x, train.c, torch.Generator().manual_seed(self.seed))
            if fabric.world_size > 1:  # what was prepared with it may differ between machines in the last bit
                put(self.model, fabric.broadcast(self.model.state_dict()))
        self.told = {"stage": self.stage.name} if len(self.stages) > 1 else {}
        self.recipe, self.learner = self.stage.recipe, self.stage.learner()
        self.learner.runtime = FabricRuntime(fabric)
        for stepper in steppers(self.learner):
            stepper.rows = len(train)
        if self.target is not None:
            if not isinstance(self.learner, GradientLearner):
                raise Unsupported(
                    f"{self.model.name} is not trained by gradients.", "Leave out the target distribution."
                )
            self.learner.target = drawn_from(self.target)
            self.learner.target_weight = self.training["target_weight"]
        self.trial = Trial(self.learner, fabric.world_size) if self.training["compile"] == "auto" else None
        several = fabric.device.type == "cpu" and fabric.world_size == 1 and torch.get_num_threads() > 1
        timed = self.limit.seconds is not None and self.learner.sweep == "minibatch" and self.trial is None
        self.threads = Threads(torch.get_num_threads()) if several and timed else None
        rows = len(self.training_set)
        self.batch = rows if self.learner.sweep == "dataset" else min(self.recipe.batch, rows)
        if self.batch < fabric.world_size:
            raise UsageError(f"{self.batch} rows cannot be shared by {fabric.world_size} processes.", "Use fewer.")
        self.per_epoch = rows // self.batch  # a last, smaller batch is left to the next shuffle
        self.epoch, self.order = -1, torch.empty(0)
        self.best: dict[str, Tensor] | None = None
        self.average = Average(self.model, self.recipe.ema) if self.recipe.ema is not None else None

    # -- the loop ---------------------------------------------------------------------------------------

    @torch.enable_grad()  # also where the caller has switched gradients off
    def run(self, until: float = 1.0) -> Run:
        if folder.status(self.log) in folder.ENDS:
            return self._finish()
        started = time.perf_counter() - self.state.seconds
        saved = shown = time.perf_counter()
        self.model.train()
        self.watch.patient = True
        patience = self.training["patience"]
        while True:
            state = self.state
            state.seconds = time.perf_counter() - started
            done = self.limit.progress(state, self.stages, self.per_epoch)
            if self.limit.seconds is not None:  # clocks differ between processes: all follow the first one's
                done = self.fabric.broadcast(done)
            reached, begun = overall(state, self.stages, done), state.step > state.begun
            over = "finished" if begun and (done >= 1 or self.learner.finished) else None
            if over is None:
                if self._asked_to_stop():
                    self._save()
                    raise self.watch.stopped(f"after step {state.step}, which is saved")
                if begun and self._check_due(reached):
                    self._check()
                if reached >= until and self.path is not None:
                    self._save()
                    return folder.read_run(self.path)
                if patience is not None and state.stale >= patience:
                    over = "stopped early"
            if over is not None and self.stage is self.stages[-1]:
                break
            if over is not None:
                self._check()
                self._take_best()
                self.state = state.next_stage()
                self._begin()
                continue
            batch = self._batch(done)
            self.noise.manual_seed(mix(self.seed, state.step))
            if self.trial is not None:
                left = partial(self.limit.left, state, self.stages, self.per_epoch)
                terms = self.trial.step(batch, self.noise, left)
            elif self.threads is not None:
                terms = self.threads.run(partial(self.learner.step, batch, self.noise))
            else:
                terms = self.learner.step(batch, self.noise)
            self._guard(terms)
            if self.average is not None:
                self.average.update(batch.step)
            state.step += 1
            now = time.perf_counter()
            if self.progress is not None and now - shown > 0.2:
                shown = now
                figures = {"seconds": now - started, "progress": reached, "loss": terms["loss"].item()}
                self.progress({"step": state.step} | figures | self.told)
            if self.path is not None and now - saved > self.training["save_every"]:
                try:
                    self._save()
                except CannotSave as error:  # what is trained is worth more: the next save may succeed
                    if self.progress is not None:
                        self.progress({"note": str(error)})
                saved = time.perf_counter()
        state.seconds = time.perf_counter() - started
        if self.stage.validate is not None:  # the last number is the whole model's, to be compared with others
            self._check()
            self._take_best()
            if self.recipe.ema is not None:
                self.average = Average(self.model, self.recipe.ema)
            state.best, self.stage = None, dataclasses.replace(self.stage, validate=None)
        self._check(over)
        return self._finish()

    def _asked_to_stop(self) -> bool:
        """All processes stop after the same step."""
        asked = self.watch.asked is not None
        if self.fabric.world_size == 1:
            return asked
        votes = torch.tensor(float(asked), device=self.fabric.device)
        return bool(self.fabric.all_reduce(votes, reduce_op="sum") > 0)  # type: ignore[operator]

    def _batch(self, done: float) -> Batch:
        train, world, rank = self.data.train, self.fabric.world_size, self.fabric.global_rank
        step = self.state.step - self.state.begun
        start, end = rank * self.batch // world, (rank + 1) * self.batch // world
        if self.learner.sweep == "dataset" and self.stage.training_set is None:
            part = train if world == 1 else train[slice(start, end)]
            part = part if isinstance(self.model, InBlocks) and part.beyond_memory else part.read()
        else:
            epoch, place = divmod(step, self.per_epoch)
            if self.learner.sweep == "dataset":
                index = torch.arange(start, end)
            else:
                if epoch != self.epoch:
                    shuffle = torch.Generator().manual_seed(mix(self.seed, -1 - epoch))
                    self.epoch, self.order = epoch, self.training_set.order(self.batch, shuffle)
                    self.training_set.set_epoch(mix(self.seed, -1 - epoch))
                index = self.order[place * self.batch + start : place * self.batch + end]
            owner = self.training_set.owner(index)
            c = train.c if self.stage.given else None
            given = (None if t is None else t[owner] for t in (c, None, train.weight))
            part = Part(self.training_set[index], *given)
        device = self.fabric.device
        x, c, weight = (t.to(device) if isinstance(t, Tensor) else t for t in (part.x, part.c, part.weight))
        return Batch(x, c, weight, start, self.batch, done, step)

    def _guard(self, terms: dict[str, Tensor]) -> None:
        """No silent NaN: name the step, keep the last good weights, stop."""
        bad = [k for k in ("loss", "grad_norm") if k in terms and not math.isfinite(terms[k].item())]
        if bad:
            self._keep_last_good()
            raise Diverged(
                f"{self.model.name} diverged at step {self._place()}: {bad[0]} is {terms[bad[0]].item()}.",
                self._remedy(),
            )
        for key, value in terms.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
        self.summed += 1

    def _place(self) -> str:
        return f"{self.state.step} (stage {self.stage.name})" if self.told else f"{self.state.step}"

    def _remedy(self) -> str:
        """Against divergence: what is not trained by gradients has no learning rate to lower."""
        options = ["--recipe.lr"] + ["--recipe.clip"] * (self.recipe.clip is not None)
        lower = f"Lower {' or '.join(options)}, or look" if any(steppers(self.learner)) else "Look"
        return f"The last good weights are kept. {lower} for extreme values in the data."

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
        """Validate with the averaged weights where there are any, log, and keep the best weights, or the last."""
        state, started = self.state, time.perf_counter()
        entry: dict[str, Any] = {"step": state.step, "seconds": round(state.seconds, 3)} | self.told
        entry |= {k: float(v / self.summed) for k, v in self.sums.items()}
        if self.trial is not None:
            entry |= self.trial.news(over=status is not None)
        try:
            with self._averaged():
                number = self._validate(entry)
                if self.training["target_weight"]:
                    number = None  # the best fit to the data alone is not what was asked for
                better = number is None or state.best is None or number > state.best
                if better or self.recipe.keep == "last":
                    self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        except Stopped as stopped:
            if self.watch.hasty:
                raise
            self._save()  # no validation has been: the state is that after the last step
            raise self.watch.stopped(f"while step {state.step} was validated, which is saved") from stopped
        if better:
            # where a row is held impossible, minus infinity ranks nothing: the next weights are as good
            state.best = number if number is not None and math.isfinite(number) else None
            state.best_step, state.stale = state.step, 0
        else:
            state.stale += 1
        state.checks += 1
        self.sums, self.summed = {}, 0
        if status is not None:
            entry["status"] = status
        self.valid_cost = time.perf_counter() - started
        self.log.append(entry)
        if self.progress is not None:
            self.progress(entry)

    def _validate(self, entry: dict[str, Any]) -> float | None:
        """Mean nats per datum of the drawn validation rows, the same ones each time; None without a likelihood.

        The log has it as "valid", or "stage_valid" where it is the number of a part of the model.
        """
        if len(self.data.valid) == 0:
            return None
        if not self.state.valid_rows:
            self.state.valid_rows = self._affordable()
        lik = self._log_prob(self.state.valid_rows)
        if isinstance(lik, Unavailable):
            return None
        number = float(lik.nats.double().mean())
        # minus infinity is an honest number (a datum that the model holds impossible) but not JSON
        key = "valid" if self.stage.validate is None else "stage_valid"
        entry[key] = number if math.isfinite(number) else None
        entry["kind"] = type(lik).__name__
        entry["symbol"] = SYMBOL[type(lik)]
        return number

    def _log_prob(self, rows: int) -> Likelihood:
        part = self.validated[:rows].read()
        c = None if part.c is None else part.c.to(self.fabric.device)
        generator = torch.Generator(self.fabric.device).manual_seed(self.seed)
        alone = self.fabric.world_size == 1  # other processes would wait for one that leaves
        try:
            with torch.no_grad(), self.watch.at_once() if alone else nullcontext():
                if self.stage.validate is not None:
                    return self.stage.validate(part.x, c, generator)
                given = self.model.given(c, before=beginnings(self.model, part.before))
                return given.log_prob(part.x, request=self.model.quick_request(), generator=generator)
        except NotANumber as error:
            self._keep_last_good()
            problem = f"{self.model.name} diverged by step {self._place()}: {error.problem}"
            raise Diverged(problem, self._remedy()) from error

    def _affordable(self) -> int:
        """How many rows one validation takes: on a clock, as many as a twentieth of the budget has time for."""
        rows = len(self.validated)
        if self.limit.seconds is None or rows <= PROBE:
            return rows
        started = time.perf_counter()
        self._log_prob(PROBE)
        each = (time.perf_counter() - started) / PROBE
        affordable = max(PROBE, int(self.limit.seconds / 20 / each))
        return min(rows, self.fabric.broadcast(affordable))

    # -- files ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """All that a resume needs, and weights to use: before the first validation, those of the last step."""
        if self.path is None or not self.fabric.is_global_zero:
            return
        folder.keep(self.path, self.info)
        save_tree(
            self.path / "resume.safetensors",
            {
                "state": dataclasses.asdict(self.state),
                "weights": self.model.state_dict(),
                "learner": self.learner.state_dict(),
                "average": None if self.average is None else self.average.tensors,
                "best": self.best,
                "log": self.log,
                "sums": self.sums,
                "summed": self.summed,
            },
        )
        ended = bool(self.log) and "status" in self.log[-1]
        write_lines(self.path / "log.jsonl", self.log if ended else [*self.log, self._so_far("unfinished")])
        with self._averaged():
            save_tree(self.path / "weights.safetensors", self.best or self.model.state_dict())

    def _restore(self, tree: dict[str, Any], path: Path) -> None:
        self.state = State(**tree["state"])
        if self.state.stage:  # its training set is made with what earlier stages trained
            load_into(self.model, tree["weights"], path / "resume.safetensors")
        self._begin()
        load_into(self.model, tree["weights"], path / "resume.safetensors")
        self.learner.load_state_dict(tree["learner"])
        if self.average is not None:
            self.average.tensors = {k: v.to(self.fabric.device) for k, v in tree["average"].items()}
        self.best, self.log, self.sums, self.summed = tree["best"], tree["log"], tree["sums"], tree["summed"]

    def _keep_last_good(self) -> None:
        """After a divergence: the best validated weights if there are any, else those before the bad step."""
        if self.path is not None and self.fabric.is_global_zero:
            folder.keep(self.path, self.info)
            save_tree(self.path / "weights.safetensors", self.best or self.model.state_dict())
            write_lines(self.path / "log.jsonl", [*self.log, self._so_far("diverged")])

    def _so_far(self, status: str) -> dict[str, Any]:
        return {"step": self.state.step, "seconds": round(self.state.seconds, 3), "status": status} | self.told

    def _averaged(self) -> AbstractContextManager[None]:
        """The model has the averaged weights inside, where there are any."""
        return nullcontext() if self.average is None else self.average.swapped()

    def _take_best(self) -> None:
        """The model takes the weights of the present stage that are kept: the best validated, or the last."""
        if self.best is not None:
            put(self.model, self.best)

    def _finish(self) -> Run:
        self._take_best()
        self.model.eval()
        self._save()
        return Run(self.model, self.info, self.log, self.path)


class FabricRuntime:
    """What a learner's step may ask of the machine."""

    def __init__(self, fabric: Fabric | Alone) -> None:
        self.fabric = fabric

    def autocast(self) -> AbstractContextManager[None]:
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return tensor
        return self.fabric.all_reduce(tensor, reduce_op="sum")  # type: ignore[return-value]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's initialisers draw from the global generator: seed it inside, give it back untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def drawn_from(target: Model) -> Callable[[Batch, torch.Generator], Batch]:
    def draw(batch: Batch, generator: torch.Generator) -> Batch:
        x = target.sample(batch.total, generator=generator)[batch.start : batch.start + len(batch.x)]
        return dataclasses.replace(batch, x=x.to(batch.x.device), weight=None)

    return draw


def mix(seed: int, number: int) -> int:
    """One well-spread 63-bit seed per (seed, number): the finaliser of SplitMix64."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1

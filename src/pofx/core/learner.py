"""Learners: everything that differs in training lives in ``step``, so there is one training loop.

A ``Loss`` (a dict of per-row tensors) is never a Likelihood: only ``Model.log_prob`` makes those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from pofx.core.errors import CorruptCheckpoint, OlderFormat, UsageError
from pofx.core.likelihood import Likelihood
from pofx.core.muon import Muon
from pofx.core.options import AMOUNT, BELOW_ONE, POSITIVE, Options, Range


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe(Options):
    """How to train by gradient: plain values, stored with the run.

    ``schedule`` runs over the *progress* of the budget (0 at the start, 1 at its end), whatever its unit.
    """

    batch: int = _option(256, "rows in one step")
    lr: float = _option(1e-3, "largest learning rate")
    optimizer: Literal["adam", "muon", "sgd"] = _option(
        "adam", "Adam with decoupled weight decay; Muon for the matrices inside a net, Adam for the rest; plain descent"
    )
    betas: tuple[float, float] = _option((0.9, 0.999), "Adam's decays of the first and second moment")
    weight_decay: float = _option(0.0, "decay of the weights per unit of learning rate")
    schedule: Literal["constant", "cosine", "linear", "wsd"] = _option(
        "cosine", "of the learning rate over the budget; wsd: warm-up, stable, then linear decay"
    )
    decay: float = _option(0.5, "share of the budget at its end over which wsd decays")
    warmup: int = _option(0, "steps of linear warm-up")
    clip: float | None = _option(10.0, "largest norm of the whole gradient")
    skip: float | None = _option(
        None, "a step whose gradient's norm is above so many times its running median is left out"
    )
    ema: float | None = _option(None, "decay of averaged weights, which then validate and are kept")
    keep: Literal["best", "last"] = _option("best", "the weights of the best validation, or those of the end")
    prior_scale: float | None = _option(None, "MAP: every parameter has the prior N(0, scale^2)")
    accumulate: int = _option(1, "parts of a batch that go through the net one after the other, to save memory")
    epochs: int = _option(100, "the budget where none is given")

    ranges = {
        "lr": POSITIVE,
        "betas": BELOW_ONE,
        "decay": Range(0, 1, above=True),
        "warmup": AMOUNT,
        "clip": POSITIVE,
        "skip": Range(1, above=True),
        "ema": BELOW_ONE,
        "prior_scale": POSITIVE,
    }


@dataclass(frozen=True)
class Batch:
    """All that one step sees. In several processes each holds rows start .. start+len(x) of ``total``.

    Noise comes from ``randn`` and ``rand``: they draw for all ``total`` rows and keep this process's
    own, so that any number of processes computes the same step.
    """

    x: Any  # [B, *E]: a tensor; in a sweep beyond memory Rows (core.abilities) where the family is InBlocks
    c: Any = None  # [B, *Ec]
    weight: Tensor | None = None  # [B]
    start: int = 0
    total: int = 0  # rows of the whole batch over all processes
    progress: float = 0.0  # of the budget, 0 to 1
    step: int = 0
    mass: Tensor | None = None  # the sum of the weights of all that this process holds, where x is a share of it

    def randn(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise [B, *shape] on the batch's device."""
        return self._own(torch.randn(self.total, *shape, generator=generator, device=generator.device))

    def rand(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Uniform [0, 1) noise [B, *shape]."""
        return self._own(torch.rand(self.total, *shape, generator=generator, device=generator.device))

    def _own(self, noise: Tensor) -> Tensor:
        return noise[self.start : self.start + len(self.x)].to(self.x.device)

    def shares(self, count: int) -> list[Batch]:
        """``count`` batches that are this one in pieces, each knowing its place in the whole."""
        if count == 1:
            return [self]
        size, mass = -(-len(self.x) // count), None if self.weight is None else self.weight.sum()
        rows = {k: v for k in ("x", "c", "weight") if (v := getattr(self, k)) is not None}
        return [
            replace(self, mass=mass, start=self.start + i, **{k: v[i : i + size] for k, v in rows.items()})
            for i in range(0, len(self.x), size)
        ]


class TrainingSet(Protocol):
    """What minibatches are drawn from: the training rows, or what a model makes of them (windows of long texts)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor) -> Tensor:
        """The pieces with these numbers [B] as one tensor [B, ...]: a batch's x."""
        ...

    def owner(self, index: Tensor) -> Tensor:
        """The row of the training data that each piece is of [B]: its context and weight are the row's."""
        return index

    def order(self, batch: int, shuffle: torch.Generator) -> Tensor:
        """The numbers of all pieces as a pass goes through them, so many in one step: shuffled."""
        return torch.randperm(len(self), generator=shuffle)

    def set_epoch(self, number: int) -> None:
        """A pass over all pieces begins: they may be cut anew."""
        return None


@dataclass(frozen=True)
class RowDataset(TrainingSet):
    """Rows x [N, *E] themselves."""

    x: Any

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Tensor:
        rows: Tensor = self.x[index]
        return rows


class Runtime(Protocol):
    """What a step may ask of the machine. ``train.fit`` implements it on lightning-fabric."""

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, nets compute in the precision of the fit; gradients and updates are computed outside."""
        ...

    def backward(self, loss: Tensor) -> None: ...
    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        ...


class Local:
    """One process, no accelerator: what a learner uses until a training loop gives it another."""

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


class Learner(Protocol):
    """One algorithm of learning."""

    runtime: Runtime

    @property
    def sweep(self) -> Literal["minibatch", "dataset"]:
        """Does step see one minibatch, or this process's whole share of the training set at once?

        EM and counting need whole sweeps.
        """
        ...

    @property
    def finished(self) -> bool:
        """Is nothing left to learn (counting is over, EM has converged)?"""
        ...

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Learn from one batch; return scalars to log, "loss" (to be lowered) among them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-for-bit resume needs beside the model's weights: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Objective = Callable[[Batch, torch.Generator], dict[str, Tensor]]
"""Per-row terms [B] of an objective; the entry "loss" is lowered, the others are logged."""


class Skipping:
    """Which steps are left out because of a huge gradient (Child 2021, section 4.1), without an end to it.

    The limit is ``factor`` times the median norm of the last ``WINDOW`` steps, those that were left out among them, so
    it follows where norms grow for good; and after ``PATIENCE`` steps in a row that were left out one is taken, its
    gradient cut to the limit.
    """

    WINDOW, SEEN, PATIENCE = 100, 20, 10  # none is left out before ``SEEN`` norms are known

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: list[float] = []
        self.row = 0  # left out, one after the other

    def limit(self, norm: float) -> float:
        """To what the gradient of this norm is cut: infinite where it stays as it is, 0 where the step is left out."""
        known = sorted(self.norms)
        self.norms = [*self.norms, norm][-self.WINDOW :]
        largest = self.factor * known[len(known) // 2] if len(known) >= self.SEEN else math.inf
        if norm <= largest:
            self.row = 0
            return math.inf
        self.row += 1
        if self.row <= self.PATIENCE:
            return 0.0
        self.row = 0
        return largest

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "row": self.row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms, self.row = list(state["norms"]), state["row"]


@dataclass
class Stepper:
    """The optimizers of some parameters; any number of processes takes the same step.

    ``matrices`` are those parameters that Muon, where the recipe names it, takes; Adam takes the others.
    """

    parameters: list[nn.Parameter]
    recipe: Recipe
    rows: int = 0  # training rows N, which scale the MAP prior; 0 while unknown
    matrices: list[Tensor] = field(default_factory=list)
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    skipping: Skipping | None = field(init=False)

    def __post_init__(self) -> None:
        r, rest = self.recipe, self.parameters
        self.optimizers = []
        self.skipping = None if r.skip is None else Skipping(r.skip)
        if r.optimizer == "muon":
            if not self.matrices:
                raise UsageError("This family names no matrices for Muon.", "Use adam.")
            own = {id(p) for p in self.matrices}
            rest = [p for p in rest if id(p) not in own]
            self.optimizers.append(Muon(self.matrices, r.lr, weight_decay=r.weight_decay))
        if r.optimizer == "sgd":
            self.optimizers.append(torch.optim.SGD(rest, r.lr, weight_decay=r.weight_decay))
        else:
            # the fused kernel of Adam: one pass over memory instead of a dozen
            self.optimizers.append(torch.optim.AdamW(rest, r.lr, r.betas, weight_decay=r.weight_decay, fused=True))

    def update(self, terms: dict[str, Tensor], batch: Batch, runtime: Runtime) -> dict[str, Tensor]:
        """One step down the weighted mean of ``terms["loss"]`` [B]; returns the mean of every term.

        The gradient's norm is returned as "grad_norm"; a step whose norm is not finite is not taken.
        """
        self.begin()
        return self.finish(self.add(terms, batch, runtime), batch, runtime)

    def begin(self) -> None:
        """No gradient yet."""
        for p in self.parameters:
            p.grad = None

    def add(self, terms: dict[str, Tensor], batch: Batch, runtime: Runtime) -> dict[str, Tensor]:
        """Add the gradient of this share's loss; its share of the means of all terms."""
        means = {k: weighted_mean(v, batch, runtime) for k, v in terms.items()}
        loss = means["loss"]
        if self.recipe.prior_scale is not None:
            if not self.rows:
                raise UsageError("A MAP prior needs the number of training rows.", "Train with pofx.fit.")
            # -log N(theta; 0, s^2) / N per datum; its gradient is weight decay of 1 / (s^2 N)
            square = torch.stack([p.square().sum() for p in self.parameters]).sum()
            loss = loss + square / (2 * self.recipe.prior_scale**2 * self.rows) / world(batch)
        runtime.backward(loss)
        return {k: v.detach() for k, v in means.items()}

    def finish(self, means: dict[str, Tensor], batch: Batch, runtime: Runtime) -> dict[str, Tensor]:
        """Take the step; the means over all shares, and the gradient's norm."""
        out = {k: runtime.sum(v) for k, v in means.items()}
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if world(batch) > 1:
            flat = runtime.sum(torch.cat([g.flatten() for g in grads]))
            for g, total in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
                g.copy_(total.view_as(g))
        norm = torch.nn.utils.get_total_norm(grads)
        out["grad_norm"] = norm
        size = norm.item()
        if not math.isfinite(size):
            return out  # the loop's guard names the step and stops; the weights are untouched
        largest = math.inf if self.recipe.clip is None else self.recipe.clip
        if self.skipping is not None:
            cut = self.skipping.limit(size)
            out["skipped"] = torch.tensor(float(cut == 0))  # its mean is logged: the share of steps
            if cut == 0:
                return out
            largest = min(largest, cut)
        if size > largest:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, largest, norm)
        lr = learning_rate(self.recipe, batch)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        return out

    def state_dict(self) -> list[dict[str, Any]]:
        own = [] if self.skipping is None else [self.skipping.state_dict()]
        return [optimizer.state_dict() for optimizer in self.optimizers] + own

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Raises OlderFormat and CorruptCheckpoint."""
        remedy = "Fit again; weights that were validated before can still be used (pofx log-prob, pofx sample)."
        if isinstance(states, dict):
            raise OlderFormat(
                f"An older pofx saved this training: it had one optimizer, this one keeps a list of "
                f"{len(self.optimizers)}. Its weights can be read, but it cannot go on.",
                remedy,
            )
        try:
            own: list[Any] = self.optimizers if self.skipping is None else [*self.optimizers, self.skipping]
            for part, state in zip(own, states, strict=True):
                part.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpoint(f"The saved optimizers do not fit the model: {error}.", remedy) from error


def world(batch: Batch) -> float:
    """Over how many shares the batch is split (exact where shares are equal, as a sum of terms needs)."""
    return max(batch.total, 1) / max(len(batch.x), 1)


def weighted_mean(term: Tensor, batch: Batch, runtime: Runtime) -> Tensor:
    """This process's share of the mean over the whole batch: shares add up to the mean."""
    if batch.weight is None:
        return term.sum() / max(batch.total, 1)
    mass = batch.weight.sum() if batch.mass is None else batch.mass
    return (term * batch.weight).sum() / runtime.sum(mass)


def learning_rate(recipe: Recipe, batch: Batch) -> float:
    """Linear warm-up over ``warmup`` steps times the schedule's factor at the budget's progress."""
    warm = min(1.0, (batch.step + 1) / recipe.warmup) if recipe.warmup else 1.0
    left = 1 - min(batch.progress, 1.0)
    factor = {
        "constant": 1.0,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
        "wsd": min(1.0, left / recipe.decay),
    }[recipe.schedule]
    return recipe.lr * warm * factor


class GradientLearner:
    """Minibatch descent on one objective, optionally joined with a target distribution.

    The combined loss is MLE + target_weight * KL(p* || p_theta): its gradient is that of the same
    objective on draws from p*, since E_p*[log p*] does not depend on theta.
    """

    sweep: ClassVar[Literal["minibatch"]] = "minibatch"
    finished: ClassVar[bool] = False

    def __init__(self, model: nn.Module, recipe: Recipe, objective: Objective, matrices: Iterable[Tensor] = ()) -> None:
        self.stepper = Stepper([p for p in model.parameters() if p.requires_grad], recipe, matrices=[*matrices])
        self.objective = objective
        self.runtime: Runtime = Local()
        self.target: Callable[[Batch, torch.Generator], Batch] | None = None
        self.target_weight = 0.0

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.stepper.begin()
        means: dict[str, Tensor] = {}
        noise = generator.get_state()
        for share in batch.shares(self.stepper.recipe.accumulate):
            generator.set_state(noise)  # each share draws the noise of all and keeps its own
            for k, v in self.stepper.add(self._terms(share, generator), share, self.runtime).items():
                means[k] = means[k] + v if k in means else v
        return self.stepper.finish(means, batch, self.runtime)

    def _terms(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        with self.runtime.autocast():
            terms = self.objective(batch, generator)
        if self.target is None:
            return terms
        own = self.target(batch, generator)
        with self.runtime.autocast():
            drawn = self.objective(own, generator)["loss"]
        return terms | {"loss": terms["loss"] + self.target_weight * drawn, "target_loss": drawn}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.stepper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stepper.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class Stage:
    """One stage of a fit: some of a model's weights are learned, the others stay as they are.

    What it is made of is asked for when it begins: the model then has the best weights of the stages before.

    Attributes:
        name: by which the log tells of it.
        recipe: how it is trained.
        learner: makes what takes its steps.
        share: of the fit's one budget; those of all stages add up to 1.
        training_set: makes what it learns from, such as codes of a trained encoder, of the training rows x, their
            contexts c and a generator; it may prepare a part of the model for it. None: ``Model.training_set``.
        validate: the likelihood that tells its best weights, of validation rows x given c; what it draws comes from the
            generator. None: that of the whole model.
        given: its learner is told the contexts of its rows; False for that of a part which knows none.
    """

    name: str
    recipe: Recipe
    learner: Callable[[], Learner]
    share: float = 1.0
    training_set: Callable[[Any, Any, torch.Generator], TrainingSet] | None = None
    validate: Callable[[Tensor, Tensor | None, torch.Generator], Likelihood] | None = None
    given: bool = True


def steppers(learner: Learner) -> Iterable[Stepper]:
    """The optimizers of a learner (none for EM and counting)."""
    return [v for v in vars(learner).values() if isinstance(v, Stepper)]

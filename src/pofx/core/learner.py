"""Learners: everything that differs in training lives in ``step``, so there is one training loop.

A ``Loss`` (a dict of per-row tensors) is never a Likelihood: only ``Model.log_prob`` makes those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from pofx.core.errors import UsageError


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """How to train by gradient: plain values, stored with the run.

    ``schedule`` runs over the *progress* of the budget (0 at the start, 1 at its end), whatever its unit.
    """

    batch: int = _option(256, "rows in one step")
    lr: float = _option(1e-3, "largest learning rate")
    optimizer: Literal["adam", "sgd"] = _option("adam", "Adam with decoupled weight decay, or plain descent")
    betas: tuple[float, float] = _option((0.9, 0.999), "Adam's decays of the first and second moment")
    weight_decay: float = _option(0.0, "decay of the weights per unit of learning rate")
    schedule: Literal["constant", "cosine"] = _option("cosine", "of the learning rate over the budget")
    warmup: int = _option(0, "steps of linear warm-up")
    clip: float | None = _option(10.0, "largest norm of the whole gradient")
    ema: float | None = _option(None, "decay of averaged weights, which then validate and are kept")
    prior_scale: float | None = _option(None, "MAP: every parameter has the prior N(0, scale^2)")
    epochs: int = _option(100, "the budget where none is given")


@dataclass(frozen=True)
class Batch:
    """All that one step sees. In several processes each holds rows start .. start+len(x) of ``total``.

    Noise comes from ``randn`` and ``rand``: they draw for all ``total`` rows and keep this process's
    own, so that any number of processes computes the same step.
    """

    x: Tensor  # [B, *E]
    c: Tensor | None = None  # [B, *Ec]
    weight: Tensor | None = None  # [B]
    start: int = 0
    total: int = 0  # rows of the whole batch over all processes
    progress: float = 0.0  # of the budget, 0 to 1
    step: int = 0

    def randn(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise [B, *shape] on the batch's device."""
        noise = torch.randn(self.total, *shape, generator=generator, device=generator.device)
        return noise[self.start : self.start + len(self.x)].to(self.x.device)

    def rand(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Uniform [0, 1) noise [B, *shape]."""
        noise = torch.rand(self.total, *shape, generator=generator, device=generator.device)
        return noise[self.start : self.start + len(self.x)].to(self.x.device)


class Material(Protocol):
    """What minibatches are drawn from: the training rows, or what a model makes of them (windows of long texts)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor) -> Tensor:
        """The pieces with these numbers [B] as one tensor [B, ...]: a batch's x."""
        ...

    def owner(self, index: Tensor) -> Tensor:
        """The row of the training data that each piece is of [B]: its context and weight are the row's."""
        ...

    def turn(self, number: int) -> None:
        """A pass over all pieces begins: they may be cut anew."""
        ...


@dataclass(frozen=True)
class AsTheyAre:
    """Rows x [N, *E] themselves."""

    x: Any

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Tensor:
        rows: Tensor = self.x[index]
        return rows

    def owner(self, index: Tensor) -> Tensor:
        return index

    def turn(self, number: int) -> None:
        """Rows are always the same."""


class Runtime(Protocol):
    """What a step may ask of the machine. ``train.fit`` implements it on lightning-fabric."""

    def backward(self, loss: Tensor) -> None: ...
    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        ...


class Local:
    """One process, no accelerator: what a learner uses until a training loop gives it another."""

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


@dataclass
class Stepper:
    """One optimizer over some parameters; any number of processes takes the same step."""

    parameters: list[nn.Parameter]
    recipe: Recipe
    rows: int = 0  # training rows N, which scale the MAP prior; 0 while unknown
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        r = self.recipe
        if r.optimizer == "adam":
            # the fused kernel of Adam: one pass over memory instead of a dozen
            self.optimizer = torch.optim.AdamW(self.parameters, r.lr, r.betas, weight_decay=r.weight_decay, fused=True)
        else:
            self.optimizer = torch.optim.SGD(self.parameters, r.lr, weight_decay=r.weight_decay)

    def update(self, terms: dict[str, Tensor], batch: Batch, runtime: Runtime) -> dict[str, Tensor]:
        """One step down the weighted mean of ``terms["loss"]`` [B]; returns the mean of every term.

        The gradient's norm is returned as "grad_norm"; a step whose norm is not finite is not taken.
        """
        means = {k: weighted_mean(v, batch, runtime) for k, v in terms.items()}
        loss = means["loss"]
        if self.recipe.prior_scale is not None:
            if not self.rows:
                raise UsageError("A MAP prior needs the number of training rows.", "Train with pofx.fit.")
            # -log N(theta; 0, s^2) / N per datum; its gradient is weight decay of 1 / (s^2 N)
            square = torch.stack([p.square().sum() for p in self.parameters]).sum()
            loss = loss + square / (2 * self.recipe.prior_scale**2 * self.rows) / world(batch)
        for p in self.parameters:
            p.grad = None
        runtime.backward(loss)
        out = {k: runtime.sum(v.detach()) for k, v in means.items()}
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
        if self.recipe.clip is not None and size > self.recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip, norm)
        lr = learning_rate(self.recipe, batch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return out


def world(batch: Batch) -> float:
    """Over how many shares the batch is split (exact where shares are equal, as a sum of terms needs)."""
    return max(batch.total, 1) / max(len(batch.x), 1)


def weighted_mean(term: Tensor, batch: Batch, runtime: Runtime) -> Tensor:
    """This process's share of the mean over the whole batch: shares add up to the mean."""
    if batch.weight is None:
        return term.sum() / max(batch.total, 1)
    return (term * batch.weight).sum() / runtime.sum(batch.weight.sum())


def learning_rate(recipe: Recipe, batch: Batch) -> float:
    """Linear warm-up over ``warmup`` steps times the schedule's factor at the budget's progress."""
    warm = min(1.0, (batch.step + 1) / recipe.warmup) if recipe.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(batch.progress, 1.0)))
    return recipe.lr * warm * (cosine if recipe.schedule == "cosine" else 1.0)


class GradientLearner:
    """Minibatch descent on one objective, optionally joined with a target distribution.

    The combined loss is MLE + target_weight * KL(p* || p_theta): its gradient is that of the same
    objective on draws from p*, since E_p*[log p*] does not depend on theta.
    """

    sweep: ClassVar[Literal["minibatch"]] = "minibatch"
    finished: ClassVar[bool] = False

    def __init__(self, model: nn.Module, recipe: Recipe, objective: Objective) -> None:
        self.stepper = Stepper([p for p in model.parameters() if p.requires_grad], recipe)
        self.objective = objective
        self.runtime: Runtime = Local()
        self.target: Callable[[Batch, torch.Generator], Batch] | None = None
        self.target_weight = 0.0

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        terms = self.objective(batch, generator)
        if self.target is not None:
            drawn = self.objective(self.target(batch, generator), generator)["loss"]
            terms = terms | {"loss": terms["loss"] + self.target_weight * drawn, "target_loss": drawn}
        return self.stepper.update(terms, batch, self.runtime)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.stepper.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stepper.optimizer.load_state_dict(state["optimizer"])


def steppers(learner: Learner) -> Iterable[Stepper]:
    """The optimizers of a learner (none for EM and counting)."""
    return [v for v in vars(learner).values() if isinstance(v, Stepper)]

"""A model of action chunks as a policy: what is seen goes in, an action comes out, for several episodes at once.

A chunk is drawn given the last observations, its first ``horizon`` actions are played, then the next one is drawn (the
receding horizon of Chi et al. 2023, section 2.3). Any model will do whose data are chunks and whose contexts are rows
of what is seen (``data.actions.action_chunks``): the whole chunk at once, or a sequence of steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pofx.core.errors import Unsupported, UsageError, WrongShape
from pofx.core.model import Model
from pofx.core.requests import AnySampler

TRIES = 100  # to draw a chunk that has an action


class Policy:
    """Plays what a model draws. ``reset`` before the first step of episodes, then ``act`` at each.

    Args:
        model: of p(chunk | the last observations): contexts are rows of the numbers of one observation, or of several,
            the latest first.
        horizon: actions of a chunk that are played before the next is drawn.
        sampler: how a chunk is drawn [default: the model's own].
        seed: what is drawn follows from it, from how many episodes run side by side, and from what is seen.

    Attributes:
        actions: numbers of an action.

    Raises UsageError for a horizon that is not within a chunk, Unsupported for a model of anything else.

    Example:
        >>> import pofx
        >>> from pofx.data.parts import Data, Part
        >>> from pofx.spaces import Real, Reals, Table
        >>> seen = torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> part = Part(seen[:, None].expand(-1, 4, -1) * torch.ones(4, 2), seen)
        >>> data = Data("go", "memory", Reals((4, 2)), part, part, part, Table((Real("place"),)))
        >>> policy = Policy(pofx.fit(data, "gaussian", steps=1).model, horizon=2)
        >>> policy.reset(episodes=3)
        >>> policy.act(torch.zeros(3, 1)).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Model, horizon: int = 8, sampler: AnySampler = None, seed: int = 0) -> None:
        steps, context = chunk_steps(model), model.context
        if context is None or not context.columns or len(context.event_shape) != 1:
            raise Unsupported(f"A policy is told rows of numbers, not {context}.", "Fit one by action_chunks.")
        if not 1 <= horizon <= steps:
            raise UsageError(f"A chunk of {steps} steps has no {horizon} to play.", f"Give a horizon of 1 to {steps}.")
        step = getattr(model.space, "step", None)  # of a sequence of actions
        self.actions = model.space.dims // steps if step is None else len(step.columns)
        self.model, self.horizon, self.sampler, self.seed = model, horizon, sampler, seed
        self.width = context.dims
        self.reset()

    def reset(self, episodes: int = 1) -> None:
        """So many episodes begin: nothing has been seen."""
        self.generator = torch.Generator(self.model.device).manual_seed(self.seed)
        self.episodes, self.seen, self.chunk, self.played = episodes, torch.empty(0), torch.empty(0), self.horizon

    def act(self, seen: Any) -> Tensor:
        """The next actions float64 [N, A], of N episodes that see this [N, D].

        Raises WrongShape for another number of episodes, and for numbers that the model's contexts are not made of.
        """
        now = torch.as_tensor(seen, dtype=torch.float64)
        if now.ndim != 2 or len(now) != self.episodes:
            raise WrongShape(f"{list(now.shape)} is seen in {self.episodes} episodes.", "Give a row for each: [N, D].")
        if not now.shape[1] or self.width % now.shape[1]:
            raise WrongShape(
                f"What is seen has {now.shape[1]} numbers, the contexts of this {self.model.name} {self.width}.",
                "Give the columns that it was fitted with, of one step, in their order.",
            )
        before = self.seen if len(self.seen) else now.repeat(1, self.width // now.shape[1])
        self.seen = torch.cat([now, before[:, : self.width - now.shape[1]]], 1)
        if self.played == self.horizon:
            self.chunk, self.played = self._drawn(), 0
        self.played += 1
        return self.chunk[:, self.played - 1]

    def _drawn(self) -> Tensor:
        """New chunks [N, k, A]: a sequence that ends early stays at its last action, one without any is drawn again."""
        told, space = self.model.given(self.seen.to(self.model.device)), self.model.space
        chunk, empty = torch.empty(0), torch.ones(self.episodes, dtype=torch.bool)
        for _ in range(TRIES):
            x = told.sample(1, generator=self.generator, sampler=self.sampler)[0].double().cpu()
            if space.fill is None:
                return x if x.ndim > 2 else x[..., None]
            lengths = space.lengths(x)
            last = torch.arange(self.horizon).minimum(lengths[:, None] - 1).clamp(min=0)
            x = x[torch.arange(len(x))[:, None], last]
            chunk = torch.where(empty[:, None, None], x, chunk) if len(chunk) else x
            empty &= lengths == 0
            if not empty.any():
                return chunk
        raise Unsupported(f"{self.model.name} draws chunks without any action.", "Fit it for longer.")


def chunk_steps(model: Model) -> int:
    """How many actions a chunk of this model has. Raises Unsupported where its data are no chunks of real numbers."""
    space = model.space
    step = getattr(space, "step", None)
    if space.fill is not None and step is not None:
        return space.length
    if space.fill is None and space.columns and space.dtype.is_floating_point and space.event_shape:
        return space.event_shape[0]
    raise Unsupported(f"{model.name} models {space}, no chunks of actions.", "Fit one to data by action_chunks.")

"""Contrastive divergence: learning log p(x) = f(x) - log Z from data and from states of Markov chains.

    d/dtheta E_data[ log p ] = E_data[ df/dtheta ] - E_p[ df/dtheta ]

The second mean is that of chains which move a few steps between two updates. They start at the data of the batch (CD-k,
Hinton 2002, section 2), or are kept in a buffer and go on where they stopped (PCD: Tieleman 2008), a few of them afresh
(Du & Mordatch 2019, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.learner import Batch, Local, Recipe, Runtime, Stepper
from pofx.core.noise import RowNoise, seed_of
from pofx.core.options import AMOUNT, SHARE, at_least
from pofx.core.space import Space, join
from pofx.families.conditioned import ContextOptions, as_told, dropped


@dataclass(frozen=True)
class ContrastiveOptions(ContextOptions):
    """Options of chains in training.

    Attributes:
        steps: of each chain between two updates.
        buffer: chains that are kept, as many as a batch has rows at least.
        restart: share of those moved that start afresh.
        temperatures: of an annealing for log Z, unless a request says otherwise.
        warmup: steps of chains that draw, before the first draw unless a sampler says otherwise.
    """

    steps: int = 20
    buffer: int = 1024
    restart: float = 0.05
    temperatures: int = 100
    warmup: int = 500

    ranges = {"restart": SHARE, "temperatures": at_least(2), "warmup": AMOUNT}


class Contrasted(Protocol):
    """What the learner asks of a model. States y of chains are [B, D], one for each row of a batch."""

    context: Space | None
    config: Any

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Any: ...

    def at_data(self, x: Tensor, noise: RowNoise) -> Tensor:
        """Rows x [B, *E] as states."""
        ...

    def afresh(self, noise: RowNoise) -> Tensor:
        """Chains that start far from the data."""
        ...

    def moved(self, y: Tensor, h: Any, noise: RowNoise) -> Tensor:
        """y some steps later, given h[i] each."""
        ...

    def contrast(self, data: Tensor, h: Any, y: Tensor, given: Any) -> dict[str, Tensor]:
        """ "loss": f(y_i) - f(data_i) [B] of data [B, D] given h and states y given ``given``; what else is logged."""
        ...


class ContrastiveLearner:
    """Each step moves as many chains as the batch has rows, then takes one step down their contrast.

    Any number of processes takes the same step: each moves the chains of its rows, and all keep all of them.

    Args:
        persistent: chains are kept; else they start at the data.

    Attributes:
        buffer: "y" [P, D] of the chains that are kept, and where there are any their contexts "c" [P, *Ec] and which of
            them are given none, "dropped" [P].
    """

    sweep: ClassVar[Literal["minibatch"]] = "minibatch"
    finished: ClassVar[bool] = False

    def __init__(self, model: Any, recipe: Recipe, persistent: bool) -> None:
        if recipe.accumulate > 1:
            raise UsageError("Chains are moved once for a whole batch.", "Leave out accumulate.")
        self.model: Contrasted = model
        self.persistent = persistent
        self.stepper = Stepper([p for p in model.parameters() if p.requires_grad], recipe)  # type: ignore[attr-defined]
        self.runtime: Runtime = Local()
        self.buffer: dict[str, Tensor] = {}

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        model, rows = self.model, torch.arange(batch.start, batch.start + len(batch.x), device=batch.x.device)
        noise = RowNoise(seed_of(generator), lambda: rows)
        batch = as_told(model.config, model.context, batch, generator)
        own = {} if batch.c is None else {"c": batch.c}
        if (drop := dropped(model.config, batch, generator)) is not None:
            own["dropped"] = drop
        given = own
        with torch.no_grad():
            data = model.at_data(batch.x, noise)
            if self.persistent:
                place = self._places(batch.total, generator)
                chains = self._start(own | {"y": model.afresh(noise)}, place, batch, generator)
                given = chains
            else:
                chains = {"y": data}
            y = model.moved(chains["y"], self._told(given), noise)
            if self.persistent:
                self._keep(chains | {"y": y}, place, batch)
        with self.runtime.autocast():
            terms = model.contrast(data, self._told(own), y, self._told(given))
        return self.stepper.update(terms, batch, self.runtime)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.stepper.state_dict(), "buffer": self.buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stepper.load_state_dict(state["optimizer"])
        self.buffer = state["buffer"]

    def _told(self, chains: dict[str, Tensor]) -> Any:
        return self.model.encode_context(chains["c"], chains.get("dropped")) if "c" in chains else None

    def _places(self, total: int, generator: torch.Generator) -> Tensor:
        """Where the chains of all rows of a batch are in the buffer [total]: behind its end until it is full."""
        kept = len(self.buffer["y"]) if self.buffer else 0
        if kept < max(self.model.config.buffer, total):
            return torch.arange(kept, kept + total)
        return torch.randperm(kept, generator=generator, device=generator.device)[:total].cpu()

    def _start(
        self, fresh: dict[str, Tensor], place: Tensor, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The chains of this process's rows: those at their places, but for a few that start afresh."""
        n, anew = len(batch.x), batch.rand(generator=generator) < self.model.config.restart
        if not self.buffer or int(place[-1]) >= len(self.buffer["y"]):
            return fresh
        kept = {k: v[place[batch.start : batch.start + n]].to(batch.x.device) for k, v in self.buffer.items()}
        return self._taken(kept, fresh, torch.arange(n, device=anew.device) + n * anew)

    def _keep(self, moved: dict[str, Tensor], place: Tensor, batch: Batch) -> None:
        every = {k: self._whole(v, batch) for k, v in moved.items()}
        if not self.buffer:
            self.buffer = every
            return
        kept = len(self.buffer["y"])
        index = torch.arange(max(kept, int(place.max()) + 1))
        index[place] = kept + torch.arange(len(place))
        self.buffer = self._taken(self.buffer, every, index.to(batch.x.device))

    def _taken(self, a: dict[str, Tensor], b: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The chains at ``index`` of those of a, then those of b."""
        context = self.model.context
        return {
            k: (join(context, [a[k], b[k]]) if k == "c" and context is not None else torch.cat([a[k], b[k]]))[index]
            for k in a
        }

    def _whole(self, own: Tensor, batch: Batch) -> Tensor:
        """The rows [total, ...] of all processes, of which this one has its ``own``."""
        if len(own) == batch.total:
            return own
        every = own.new_zeros(batch.total, *own.shape[1:], dtype=torch.float64)
        every[batch.start : batch.start + len(own)] = own
        return self.runtime.sum(every).to(own.dtype)

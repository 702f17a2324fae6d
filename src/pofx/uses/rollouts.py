"""Episodes that a policy plays in a gymnasium environment: how often it succeeds, with an interval, and how well.

Environments step one by one, while all episodes share each draw of the policy: that is what takes time. Success is what
the environment's own ``info`` says at any step of an episode: its vectors of environments report the last step's alone,
and each release of gymnasium in another place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import EmptyData, UsageError, WrongShape
from pofx.core.spelling import meant
from pofx.evaluate.pairs import share_interval
from pofx.uses.policy import Policy

EXTRA = "pip install 'pofx[pusht]'."
OWN = {"gym_pusht"}  # packages of environments that the extra has


@dataclass(frozen=True)
class Rollouts:
    """What became of N episodes.

    Attributes:
        success: whether the environment has said at any step that the task is done [N].
        steps: of each [N].
        total: sum of its rewards [N].
        best: the largest value at any step of each number of ``info`` that was watched, by name [N] each.
    """

    success: Tensor
    steps: Tensor
    total: Tensor
    best: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.success)

    @property
    def rate(self) -> float:
        """The share of episodes that succeeded."""
        return float(self.success.double().mean())

    def interval(self, mass: float = 0.95) -> tuple[float, float]:
        """Within which the rate of success lies, by Jeffreys' posterior: ``share_interval``."""
        return share_interval(int(self.success.sum()), len(self), mass)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: means over episodes with their standard errors, and the interval of the rate."""
        means = {"steps": self.steps, "total": self.total, **self.best}
        low, high = self.interval()
        return {"episodes": len(self), "success": self.rate, "success_low": low, "success_high": high} | {
            name + end: value for name, v in means.items() for end, value in zip(("", "_se"), _mean(v), strict=True)
        }


def _mean(v: Tensor) -> tuple[float, float]:
    v = v.double()
    return float(v.mean()), float(v.std() / len(v) ** 0.5) if len(v) > 1 else 0.0


def flat(seen: Any) -> np.ndarray:
    """An observation as one row of numbers, those of a dictionary one after the other, in its order."""
    if isinstance(seen, Mapping):
        return np.concatenate([flat(v) for v in seen.values()])
    return np.asarray(seen, dtype=np.float64).reshape(-1)


def environment(name: str, **options: Any) -> Callable[[], Any]:
    """Makes environments of a registered name, such as "gym_pusht/PushT-v0", with options of its own.

    What stands before the slash is imported, where it is a package, so that its names are known. Raises UsageError
    where gymnasium, or the package, is not installed, and for names that nobody registered; what it returns, where the
    environment cannot be made.
    """
    package = name.partition("/")[0] if "/" in name else ""
    try:
        import gymnasium

        if package in OWN or (package.isidentifier() and util.find_spec(package)):
            import_module(package)
    except ImportError as error:
        lacks = error.name or package
        raise UsageError(f"The environment {name} needs {lacks}, which is not installed.", EXTRA) from error
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        known = sorted(gymnasium.registry)
        raise UsageError(
            f"No environment is named {name!r}.", meant(name, known, "Import what registers it.")
        ) from error

    def make() -> Any:
        try:
            return gymnasium.make(name, **options)
        except (gymnasium.error.Error, TypeError) as error:
            raise UsageError(f"{name} cannot be made: {error}".rstrip(".") + ".", "Install or correct that.") from error

    return make


def rollout(
    make: Callable[[], Any],
    policy: Policy,
    episodes: int = 100,
    seed: int = 0,
    *,
    see: Callable[[Any], Any] = flat,
    success: str = "is_success",
    watch: Sequence[str] = (),
    at_step: Callable[[int, int, Any, Any], None] | None = None,
) -> Rollouts:
    """Play episodes side by side, each in an environment of its own, until it ends.

    Args:
        make: an environment of gymnasium (``environment``), for each episode.
        seed: episode i is reset with seed + i: the same episodes for every policy. What the policy draws follows from
            its own seed.
        see: an observation as the row of columns that the model was fitted with.
        success: the entry of ``info`` that tells whether the task is done.
        watch: numbers of ``info`` whose largest value is kept.
        at_step: called with the episode, its step (0 after its reset), its environment and its ``info``: for pictures.

    Actions are kept within the limits of the action space, where it has some.

    Raises EmptyData for no episode, WrongShape for actions that are not the environment's, UsageError for an entry that
    ``info`` has not.
    """
    if episodes < 1:
        raise EmptyData(f"{episodes} episodes show nothing.", "Ask for 1 or more.")
    environments = [make() for _ in range(episodes)]
    none = torch.zeros(episodes, dtype=torch.int64)
    best = {name: torch.full((episodes,), -torch.inf, dtype=torch.float64) for name in watch}
    found = Rollouts(none.bool(), none.clone(), none.double(), best)
    try:
        _check_actions(environments[0].action_space, policy)
        rows = []
        for i, each in enumerate(environments):
            seen, info = each.reset(seed=seed + i)
            rows.append(see(seen))
            if at_step is not None:
                at_step(i, 0, each, info)
        policy.reset(episodes)
        on = list(range(episodes))
        while on:  # those that are over stay as they were last seen: what others draw does not depend on them
            actions, still = policy.act(np.stack(rows)).numpy(), []
            for i in on:
                space = environments[i].action_space
                action = actions[i].reshape(space.shape)
                if hasattr(space, "low"):
                    action = action.clip(space.low, space.high)
                seen, reward, ended, cut, info = environments[i].step(action.astype(space.dtype))
                rows[i] = see(seen)
                _add(found, i, reward, info, success)
                if at_step is not None:
                    at_step(i, int(found.steps[i]), environments[i], info)
                if not (ended or cut):
                    still.append(i)
            on = still
    finally:
        for each in environments:
            each.close()
    return found


def _check_actions(space: Any, policy: Policy) -> None:
    shape = getattr(space, "shape", None)
    if not shape:
        raise WrongShape(f"An action is of {space}, no vector of numbers.", "Play environments that are moved by some.")
    if math.prod(shape) != policy.actions:
        raise WrongShape(
            f"An action is {math.prod(shape)} numbers; in the chunks of this {policy.model.name} it is "
            f"{policy.actions}.", "Give a run that was fitted to actions of this environment.",
        )  # fmt: skip


def _add(found: Rollouts, i: int, reward: Any, info: dict[str, Any], success: str) -> None:
    for name in (success, *found.best):
        if name not in info:
            there = meant(name, info, f"It tells {', '.join(info)}.") if info else "It tells nothing beside rewards."
            raise UsageError(f"The environment tells no {name!r} (success, watch).", there)
    found.success[i] |= bool(info[success])
    found.steps[i] += 1
    found.total[i] += float(reward)
    for name, best in found.best.items():
        best[i] = max(float(best[i]), float(info[name]))

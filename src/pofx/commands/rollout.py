"""``pofx rollout``: a run as a policy in an environment."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pofx.commands.requests import Sampling, sampler_of
from pofx.commands.shared import Output, out, parse, print_json, tell_standing
from pofx.core.spelling import visible


@dataclass(kw_only=True)
class Rollout(Sampling, Output):  # type: ignore[misc]
    """Play episodes by a run whose data are chunks of actions given what is seen: how often the task is done.

    An environment of gymnasium shows the columns that the run was fitted with, in their order. Of each chunk that is
    drawn the first actions are played, then the next is drawn.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    environment: Annotated[Positional[str], arg(metavar="ENVIRONMENT")]
    """The name by which gymnasium knows it, such as gym_pusht/PushT-v0."""
    episodes: int = 100
    """How many are played, side by side."""
    horizon: int = 8
    """Actions of a chunk that are played before the next is drawn."""
    seed: int = 0
    """Of the first episode, the next ones have those after it; and of what is drawn."""
    success: str = "is_success"
    """The entry of the environment's info that tells whether the task is done."""
    watch: Annotated[list[str], arg(metavar="NAME,...")] = dataclasses.field(default_factory=list)
    """Numbers of the environment's info whose largest value in each episode is told, such as coverage."""


def rollout(argv: list[str]) -> int:
    args = parse(Rollout, argv, "rollout")
    from pofx.commands.model import read_model
    from pofx.uses.policy import Policy
    from pofx.uses.rollouts import environment
    from pofx.uses.rollouts import rollout as play

    run = read_model(args.run)
    stands = tell_standing(run.info, run.log, args.run)
    policy = Policy(run.model, args.horizon, sampler_of(args, run.model), args.seed)
    started = time.perf_counter()
    found = play(
        environment(args.environment), policy, args.episodes, args.seed, success=args.success,
        watch=args.watch,
    )  # fmt: skip
    told = found.to_json()
    if args.json:
        about = {"run": str(args.run), "environment": args.environment, "horizon": args.horizon, "seed": args.seed}
        print_json({**about, **stands, **told, "seconds": time.perf_counter() - started})
        return 0
    low, high = found.interval()
    done = int(found.success.sum())
    out.print(f"{done} of {len(found)} episodes done: {found.rate:.1%}, 95% interval {low:.1%} to {high:.1%}")
    for name in ("steps", "total", *found.best):
        what = {"steps": "steps", "total": "sum of rewards"}.get(name, f"largest {visible(name)}")
        out.print(f"{what}: {told[name]:.4g} ± {told[f'{name}_se']:.2g}")
    return 0

"""Push-T in its real environment: policies that are models of action chunks, their held-out nats beside their success.

    python benchmarks/pusht_policies.py DATA OUT [--family NAME ...] [--seconds 3600] [--seed 0] [--episodes 100]
                                        [--horizon 8] [--quick]

DATA is the folder of the data sets (trajectories/pusht_cchi_v7_lowdim.npz in it). Needs the extra pofx[pusht]. Each
family is fitted by the clock on one thread to p(the next 16 actions | two observations), an observation being the agent
and nine points of the block (Chi et al. 2023), which the block's pose gives: their places in its own frame are what the
data say. Then it plays: environments with the seeds 100,000 to 100,099, 8 actions of each chunk, 300 steps at most.

- Success: the block covers more than 95% of its goal at any step, as the environment's own ``is_success`` says at each.
- Overlap: the largest coverage of an episode, at most 1. (The reward of the environment is coverage / 0.95, at most 1.)
- Nats: of the 16 actions of held-out chunks, per step, with their kind and the error of the choice of episodes. Actions
  are whole pixels that often repeat: each is moved within its pixel at random, once for all models, else a density
  would gain without end by spikes. A chunk of ``gpt`` is a sequence of steps, and its nats hold that it ends after 16.

``diffusion-policy best`` has the weights of the best validation, all others the last ones.

``people`` is what the demonstrations reach when they are replayed: they stop before 0.95. ``world`` is an `rssm` of
what is seen given the actions (by the clock, too): how far its block is from where it was, so many steps later.

Writes results/pusht_policies.json (models of earlier calls stay in it), and in OUT NAME.png, frames of six episodes,
policies.png, the nats of all models in the results against their success, and the run folders, runs/NAME: a model whose
folder is there is played, not fitted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pofx
from pofx.core.likelihood import mean, number
from pofx.data.actions import action_chunks, given_steps
from pofx.data.parts import Data, Part
from pofx.evaluate.pairs import share_interval
from pofx.spaces import Real, Sequence, Table
from pofx.uses.policy import Policy
from pofx.uses.rollouts import environment, rollout
from timing import Results

ACTIONS, CHUNK, SEEN, HELD = ("action1", "action2"), 16, 2, 7
FIRST_SEED, SUCCESS = 100_000, 0.95
FRAMES, PICTURED = (0, 20, 40, 80, 120, 160, 240), 6
GIVEN, AHEAD = 20, (1, 4, 8, 16, 32, 64)
GPT = {"width": 128, "layers": 4, "n_heads": 4, "block": 32}
NET = {"net": "mlp", "hidden": 512, "blocks": 4}
LAST = {"keep": "last"}  # weights: what succeeds goes on getting better when the held-out likelihood has begun to fall
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "diffusion-policy": ("diffusion-policy", NET, {"batch": 256, **LAST}),
    "diffusion-policy best": ("diffusion-policy", NET, {"batch": 256, "keep": "best"}),
    "flow-matching": ("flow-matching", NET, {"batch": 256, **LAST}),
    "act": ("act", {}, LAST),
    "gpt": ("gpt", GPT, {"batch": 64, **LAST}),
}


def points_of(source: Path) -> Tensor:
    """The nine points in the block's own frame [9, 2], by least squares: its turns keep lengths, so that is a mean."""
    with np.load(source) as found:
        state, points = (torch.from_numpy(found[k]).double() for k in ("state", "keypoint"))
    turned = torch.einsum("nji,nkj->nki", turns(state[:, 4]), points - state[:, None, 2:4])
    frame = turned.mean(0)
    off = (seen_of(state, frame)[:, 2:].unflatten(1, (-1, 2)) - points).abs().mean()  # a few are up to 2 off
    assert off < 0.05, f"the pose of a block does not give its points: {off} pixels off"
    return frame


def turns(angle: Tensor) -> Tensor:
    """Rotations [N, 2, 2]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def seen_of(state: Tensor, frame: Tensor) -> Tensor:
    """States [N, 5] (agent, block, its angle) -> the agent and the points [N, 20]."""
    points = state[:, None, 2:4] + torch.einsum("nij,kj->nki", turns(state[:, 4]), frame)
    return torch.cat([state[:, :2], points.flatten(1)], 1)


def with_points(data: Data, frame: Tensor) -> Data:
    """Sequences of actions and states as those of actions, anywhere within their pixels, and what is seen."""
    generator = torch.Generator().manual_seed(0)

    def part(p: Part) -> Part:
        x = p.read().x
        inside = x[..., 0].isfinite()
        made = torch.full((*x.shape[:2], 2 + 2 + frame.numel()), torch.inf, dtype=torch.float64)
        action, state = x[inside].split([2, 5], 1)
        action = action + torch.rand(action.shape, generator=generator, dtype=torch.float64) - 0.5
        made[inside] = torch.cat([action, seen_of(state, frame)], 1)
        return dataclasses.replace(p, x=made)

    space = data.space
    assert isinstance(space, Sequence)
    named = [*ACTIONS, "agent1", "agent2", *(f"point{k}{axis}" for k in range(len(frame)) for axis in "xy")]
    parts = {name: part(getattr(data, name)) for name in ("train", "valid", "test")}
    step = Table(tuple(Real(name) for name in named))
    return dataclasses.replace(data, space=dataclasses.replace(space, step=step), dependent=(), **parts)


def people(results: Results, data: Data) -> None:
    """What the demonstrations cover at most, each replayed from where it began."""
    each = environment("gym_pusht/PushT-v0", obs_type="state")().unwrapped
    best = []
    for part in (data.train, data.valid, data.test):
        for row in part.read().x:
            steps = row[row[:, 0].isfinite()].numpy()
            each.reset(seed=0)
            each.agent.position, each.block.angle = steps[0, 2:4].tolist(), float(steps[0, 6])
            each.block.position = steps[0, 4:6].tolist()
            best.append(max(each.step(action)[4]["coverage"] for action in steps[:, :2]))
    cover = torch.tensor(best)
    hits = int((cover > SUCCESS).sum())
    low, high = share_interval(hits, len(cover))
    results.emit(
        task="rollouts", model="people", episodes=len(cover), success=hits / len(cover), success_low=low,
        success_high=high, coverage=float(cover.mean()), coverage_se=float(cover.std() / len(cover) ** 0.5),
        least=float(cover.min()), most=float(cover.max()),
    )  # fmt: skip


def plays(model: Any, name: str, frame: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Rollouts of a policy; their frames go into a picture."""
    shots: dict[tuple[int, int], np.ndarray] = {}
    best = torch.zeros(args.episodes)
    stepping = [0.0]

    def see(state: Any) -> np.ndarray:
        return seen_of(torch.from_numpy(state)[None], frame)[0].numpy()

    def at_step(i: int, step: int, each: Any, info: dict[str, Any]) -> None:
        best[i] = max(float(best[i]), float(info.get("coverage", 0.0)))
        over = bool(info["is_success"])
        if i < PICTURED and (step in FRAMES or over):
            at = next((t for t in FRAMES if t >= step), FRAMES[-1])
            shots[i, FRAMES.index(at)] = each.render()

    sizes = {"visualization_width": 128, "visualization_height": 128}
    make = environment("gym_pusht/PushT-v0", obs_type="state", render_mode="rgb_array", **sizes)
    policy, begun = Policy(model, args.horizon, seed=args.seed), time.perf_counter()
    act = policy.act

    def timed(seen: Any) -> Tensor:
        start = time.perf_counter()
        actions = act(seen)
        stepping[0] += time.perf_counter() - start
        return actions

    policy.act = timed  # type: ignore[method-assign]
    found = rollout(make, policy, args.episodes, FIRST_SEED, see=see, watch=("coverage",), at_step=at_step)
    seconds = time.perf_counter() - begun
    assert bool(((found.best["coverage"] > SUCCESS) == found.success).all()), "success is not what coverage says"
    figure = Figure(figsize=(len(FRAMES) * 1.3, PICTURED * 1.3), layout="constrained")
    grid = figure.subplots(PICTURED, len(FRAMES), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for (i, j), image in shots.items():
        grid[i, j].imshow(image)
        grid[i, j].set_title(f"step {FRAMES[j]}" if i == 0 else "", fontsize=7)
    for i in range(min(PICTURED, args.episodes)):
        grid[i, 0].text(4, 122, f"best {found.best['coverage'][i]:.2f}", fontsize=7)
    figure.savefig(args.out / f"{name}.png", dpi=80)
    told = found.to_json()
    told["coverage"] = float(found.best["coverage"].clamp(max=1).mean())
    return told | {"rollout_seconds": seconds, "policy_seconds": stepping[0]}


def fitted(data: Data, family: str, name: str, args: argparse.Namespace, seconds: float, **how: Any) -> Any:
    """A run of OUT, where an earlier call has left it; else one that is fitted now."""
    folder = args.out / "runs" / name
    if folder.exists():
        return pofx.read_run(folder)
    return pofx.fit(data, family, seconds=seconds, seed=args.seed, out=None if args.quick else folder, **how)


def policy(results: Results, name: str, data: Data, frame: Tensor, args: argparse.Namespace, seconds: float) -> None:
    family, options, recipe = FAMILIES[name]
    options, recipe, name = options | args.options, recipe | args.recipe, name + args.tag
    kind = "sequence" if family == "gpt" else "reals"
    chunks = action_chunks(data, ACTIONS, CHUNK, SEEN, hold=HELD, kind=kind)
    run = fitted(chunks, family, name, args, seconds, options=options, recipe=recipe)
    test = chunks.test.draw(50 if args.quick else 1000, seed=0).read()
    with torch.no_grad():
        lik = run.model.given(test.c).log_prob(test.x)
    rate = mean(number(lik), size=torch.full((len(test),), float(CHUNK)), group=test.groups)
    results.emit(
        task="rollouts", model=name, family=family, options=options, recipe=recipe, seconds=seconds, seed=args.seed,
        kind=rate.kind.__name__, nats_per_step=rate.nats, error=rate.error or 0.0, draws=rate.draws, rows=len(test),
        training_steps=run.log[-1]["step"], parameters=run.model.parameter_count(), horizon=args.horizon,
        **plays(run.model, name, frame, args),
    )  # fmt: skip


def world(results: Results, data: Data, args: argparse.Namespace, seconds: float) -> None:
    """How far a world model's block is from the true one, beside one that stays where it is."""
    told = given_steps(data, ACTIONS)
    run = fitted(told, "rssm", "world", args, seconds)
    test = told.test.read()
    rows = (told.space.lengths(test.x) >= GIVEN + AHEAD[-1]).nonzero()[:, 0]
    x, c = test.x[rows, : GIVEN + AHEAD[-1]], test.c[rows, : GIVEN + AHEAD[-1]]
    drawn = run.model.predict(x[:, :GIVEN], c, length=AHEAD[-1], generator=torch.Generator().manual_seed(args.seed))[
        :, -AHEAD[-1] :
    ]
    centre = slice(2, None)
    for ahead in AHEAD:
        true = x[:, GIVEN + ahead - 1, centre].unflatten(1, (-1, 2))
        off, still = (
            (p[..., centre].unflatten(1, (-1, 2)) - true).norm(dim=2).mean(1)
            for p in (drawn[:, ahead - 1], x[:, GIVEN - 1])
        )
        there = off.isfinite()  # others have ended by then
        off = off[there]
        results.emit(
            task="world", model="rssm", seconds=seconds, seed=args.seed, ahead=ahead, episodes=len(off),
            pixels=float(off.mean()), pixels_se=float(off.std() / len(off) ** 0.5),
            still_pixels=float(still[there].mean()),
        )  # fmt: skip


def picture(entries: list[dict[str, Any]], path: Path) -> None:
    """Nats against success."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for e in (e for e in entries if "nats_per_step" in e and "success" in e):
        low, high = e["success"] - e["success_low"], e["success_high"] - e["success"]
        axes.errorbar(e["nats_per_step"], e["success"], yerr=[[low], [high]], fmt="o", capsize=3)
        sign = {"Exact": "=", "LowerBound": "≥", "Estimate": "≈"}[e["kind"]]
        axes.annotate(f" {e['model']} ({sign})", (e["nats_per_step"], e["success"]), fontsize=8)
    axes.set(xlabel="held-out log p of an action, nats", ylabel="success (95% intervals)", ylim=(0, 1))
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--family", nargs="+", choices=[*FAMILIES, "people", "world"], default=[*FAMILIES, "people", "world"]
    )
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON", help="of the families, beside their own"
    )
    parser.add_argument(
        "--recipe", type=json.loads, default={}, metavar="JSON", help="the same of how they are trained"
    )
    parser.add_argument("--tag", default="", help="ends the name of a model fitted with other options")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 2.0 if args.quick else args.seconds
    args.episodes = 3 if args.quick else args.episodes
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.quick, threads=1, torch=torch.__version__)
    source = args.data / "trajectories" / "pusht_cchi_v7_lowdim.npz"
    raw = pofx.load(source, arrays=("action", "state"), types=dict.fromkeys(ACTIONS, "real"))
    frame = points_of(source)
    data = with_points(raw, frame)
    for name in args.family:
        if name == "people":
            people(results, raw)
        elif name == "world":
            world(results, data, args, seconds)
        else:
            policy(results, name, data, frame, args, seconds)
    results.keep("model")
    picture(results.entries, args.out / "policies.png")
    results.save()


if __name__ == "__main__":
    main()

"""Push-T: `rssm` and `act` beside a Gaussian, `gpt`, `rnn` and `vae`, and trajectories that a world model predicts.

    python benchmarks/pusht.py DATA OUT [--minutes 4] [--only NAME ...] [--quick]

DATA is the folder of the data sets (trajectories/pusht_cchi_v7_lowdim.npz in it). Held-out nats per step, each fit by
the clock on one thread, seed 0, default options: of p(states and actions) by sequences (the Gaussian takes each step
for itself), of p(states | actions), and of p(the next 16 actions | state), where steps are those of the chunk. Writes
results/pusht.json, and in OUT predictions.png: six test episodes, their first 20 steps given, then eight predictions of
`rssm` given the actions beside what happened.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import pofx
from pofx.core.likelihood import mean, number
from pofx.data.actions import action_chunks, given_steps
from pofx.data.parts import Data, Part
from pofx.families.rssm import Rssm
from timing import Results

ACTIONS, CHUNK, GIVEN = ("action1", "action2"), 16, 20
SEEN = {"autoregressive": True}
SMALL = {"width": 96, "layers": 3, "block": 256}
JOINT: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("gaussian", {}), "gpt": ("gpt", SMALL), "rnn": ("rnn", {"width": 128, "block": 256}),
    "rssm": ("rssm", {}), "rssm, sees steps": ("rssm", SEEN),
}  # fmt: skip
WORLD = {name: of for name, of in JOINT.items() if name != "gaussian"}
POLICY: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("gaussian", {}), "made": ("made", {}), "vae": ("vae", {}),
    "act": ("act", {}), "act, gaussian": ("act", {"head": "gaussian"}), "act, beta 10": ("act", {"beta": 10.0}),
}  # fmt: skip


def rows_of(data: Data) -> Data:
    """Every step by itself."""

    def part(p: Part) -> Part:
        x = p.read().x.flatten(0, 1)
        return Part(x[x[:, 0].isfinite()])

    parts = {name: part(getattr(data, name)) for name in ("train", "valid", "test")}
    return dataclasses.replace(data, space=data.space.step, labels=None, dependent=(), **parts)  # type: ignore[attr-defined]


def told(
    results: Results,
    task: str,
    name: str,
    data: Data,
    family: str,
    options: dict[str, Any],
    seconds: float,
    quick: bool,
) -> Any:
    recipe = {"batch": 8} if family in ("gpt", "rnn") else {}
    run = pofx.fit(data, family, seconds=seconds, seed=0, options=options, recipe=recipe)
    test = data.test.draw(100 if quick else 1000, seed=0).read()
    size = test.x.shape[1] if task == "actions given a state" else None
    with torch.no_grad():
        lik = run.model.given(test.c).log_prob(test.x)
    units = torch.ones(len(test)) * size if size else data.space.units(test.x)
    units = torch.ones(len(test)) if data.space.name == "table" else units
    rate = mean(number(lik), size=units, group=test.groups)
    results.emit(
        task=task, model=name, kind=rate.kind.__name__, nats_per_step=rate.nats, error=rate.error or 0.0,
        draws=rate.draws, parameters=run.model.parameter_count(), seconds=seconds, rows=len(test),
    )  # fmt: skip
    return run.model


def picture(model: Rssm, test: Part, path: Path) -> None:
    x, c = test.x, test.c
    rows = (model.space.lengths(x) > 2 * GIVEN).nonzero()[:6, 0]
    figure = Figure(figsize=(15, 10), layout="constrained")
    for axes, i in zip(figure.subplots(2, 3).flat, rows.tolist(), strict=False):
        n = int(model.space.lengths(x[i : i + 1]))
        before = x[i, :GIVEN].expand(8, -1, -1)
        drawn = model.predict(
            before, c[i].expand(8, -1, -1), length=n - GIVEN, generator=torch.Generator().manual_seed(i)
        )
        drawn = torch.where(drawn.isinf(), torch.nan, drawn)
        for k, (what, colour) in enumerate((("agent", "tab:blue"), ("block", "tab:red"))):
            a, b = 2 * k, 2 * k + 1
            for row in drawn:
                axes.plot(row[:, a], row[:, b], color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(x[i, :n, a], x[i, :n, b], color="black", linewidth=0.8, linestyle=":")
            axes.plot(x[i, :GIVEN, a], x[i, :GIVEN, b], color=colour, linewidth=2.5, label=what)
        axes.set(title=f"test episode {i}, {n} steps", aspect="equal", xlim=(0, 512), ylim=(512, 0))
        axes.legend(loc="lower left")
    figure.suptitle(
        f"Push-T: {GIVEN} steps given (thick), then 8 predictions given the actions, and what happened (dots)"
    )
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="of the models; nothing is kept")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 2.0 if args.quick else 60 * args.minutes
    results = Results(args.quick or args.only is not None, threads=1, torch=torch.__version__, seconds=seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    source = args.data / "trajectories" / "pusht_cchi_v7_lowdim.npz"
    data = pofx.load(source, arrays=("action", "state"))
    real = pofx.load(source, arrays=("action", "state"), types=dict.fromkeys(ACTIONS, "real"))
    tasks = {
        "states and actions": (JOINT, data),
        "states given actions": (WORLD, given_steps(data, ACTIONS)),
        "actions given a state": (POLICY, action_chunks(real, ACTIONS, CHUNK)),
    }
    for task, (models, of) in tasks.items():
        for name, (family, options) in models.items():
            if args.only is not None and name not in args.only:
                continue
            own = rows_of(of) if task == "states and actions" and name == "gaussian" else of
            model = told(results, task, name, own, family, options, seconds, args.quick)
            if task == "states given actions" and name == "rssm":
                picture(model, of.test.read(), args.out / "predictions.png")
    results.save()


if __name__ == "__main__":
    main()

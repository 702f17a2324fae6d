"""Natural image patches: test log-likelihood of families on BSDS300 8x8 grey patches, in nats.

Preprocessing as in Papamakarios et al. 2017 (after Zoran & Weiss 2011): add U[0, 1), divide by 256,
subtract the patch's mean, drop the last pixel; the density is one on those 63 numbers.

    python benchmarks/bsds300.py --data DATA --family nsf --minutes 13 --threads 1 [--copies 8]

adds one record to benchmarks/results/bsds300.json (one per family, seed, threads, minutes and copies). With copies a
training patch is there as often, turned and mirrored, with other noise each time; held-out patches are as they are. An
estimate (cnf, flow-matching) is of the first ``--rows`` test patches. "zuko-nsf" is zuko's flow of the same layers,
bins and widths as nsf, trained by Adam with the same batches and the same falling rate, for as long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "bsds300.json"

# What each family is given, beside its defaults.
SETTINGS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "gaussian": ({}, {}),
    "gmm": ({}, {}),
    "realnvp": ({}, {}),
    "maf": ({"hidden": 512}, {"batch": 512}),
    "nsf": ({"hidden": 256}, {"batch": 512}),
    "cnf": ({"hidden": 256}, {"batch": 512}),
    "flow-matching": ({"hidden": 512, "blocks": 3}, {"batch": 512}),
    "tarflow": ({}, {}),
}


def load(folder: Path, copies: int = 1):
    """The three parts as one ``Data`` of 63 real columns; the noise has a fixed seed."""
    import numpy as np
    import torch

    from pofx.data.parts import Data, Part
    from pofx.spaces import Real, Table

    file = np.load(folder / "images" / "bsds300" / "bsds300_gray8x8_patches.npz", allow_pickle=False)
    rng = np.random.default_rng(0)

    def part(name: str) -> Part:
        x = file[name]
        if name == "train":
            turned = [np.rot90(x if k < 4 else x[:, ::-1], k, (1, 2)) for k in range(copies)]
            x = np.concatenate(turned)
        x = x.reshape(-1, 64)
        x = (x + rng.random(x.shape)) / 256
        return Part(torch.from_numpy((x - x.mean(1, keepdims=True))[:, :-1]))

    space = Table(tuple(Real(f"pixel {i}") for i in range(63)))
    parts = {name: part(name) for name in ("train", "valid", "test")}
    return Data("bsds300", str(folder), space, **parts, split="the set's own: images are disjoint")


def key(record: dict) -> tuple:
    return (*(record.get(k) for k in ("family", "seed", "minutes", "copies")), record["machine"]["threads"])


def zuko(data, options: dict, recipe: dict, args: argparse.Namespace):
    """Its flow at our size, on columns standardised as ours are, as long and in the same batches."""
    import torch
    import zuko

    torch.manual_seed(args.seed)
    loc, scale = data.train.x.mean(0), data.train.x.std(0)
    size = {"transforms": options.get("layers", 5), "hidden_features": [options["hidden"]] * 4, "bins": 8}
    flow = zuko.flows.NSF(63, 0, **size)
    optimizer, steps, started = torch.optim.Adam(flow.parameters(), 1e-3), 0, time.perf_counter()
    while (spent := (time.perf_counter() - started) / (60 * args.minutes)) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - spent)
        x = data.train.x[torch.randint(len(data.train.x), (recipe["batch"],))]
        loss = -flow().log_prob(((x - loc) / scale).float()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        steps += 1
    with torch.no_grad():
        rows = ((data.test.x - loc) / scale).float().split(1000)
        nats = torch.cat([flow().log_prob(some) for some in rows]).double() - scale.log().sum()
    return "Exact", nats, {"seconds": 60 * args.minutes, "steps": steps}, sum(p.numel() for p in flow.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/bsds300")
    parser.add_argument("--family", choices=[*SETTINGS, "zuko-nsf"], required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--copies", type=int, default=1, choices=range(1, 9), help="of each training patch")
    parser.add_argument("--rows", type=int, default=1000, help="test patches of an estimate")
    parser.add_argument("--hidden", type=int, help="width, instead of the one above")
    parser.add_argument("--layers", type=int, help="of a flow, instead of its default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    import torch

    from pofx.train.fit import fit

    torch.set_num_threads(args.threads)
    data = load(args.data, args.copies)
    options, recipe = (dict(of) for of in SETTINGS[args.family.removeprefix("zuko-")])
    options |= {k: v for k in ("hidden", "layers") if (v := getattr(args, k)) is not None}
    if args.family == "zuko-nsf":
        kind, nats, fitted, parameters = zuko(data, options, recipe, args)
    else:
        run = fit(data, args.family, seconds=args.minutes * 60, seed=args.seed, options=options, recipe=recipe)
        claims = run.model.own_estimators[-1] if args.family == "flow-matching" else None  # its ODE
        estimated = args.family in ("cnf", "flow-matching")
        with torch.no_grad():
            lik = run.model.log_prob(data.test.x[: args.rows] if estimated else data.test.x, request=claims)
        kind, nats, parameters = type(lik).__name__, lik.nats.double(), run.model.parameter_count()
        fitted = {"seconds": run.seconds, "steps": run.steps}
    record = {
        "family": args.family,
        "seed": args.seed,
        "test_nats": round(nats.mean().item(), 3),
        "kind": kind,
        "data_se": round((nats.std() / len(nats) ** 0.5).item(), 3),
        "rows": len(nats),
        "fit_seconds": round(fitted["seconds"], 1),
        "steps": fitted["steps"],
        "parameters": parameters,
        "minutes": args.minutes,
        "copies": args.copies,
        "options": options,
        "recipe": recipe,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
    }
    print(json.dumps(record))
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    known = [r for r in known if key(r) != key(record)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([*known, record], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

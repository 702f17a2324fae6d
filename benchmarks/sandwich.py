"""Both sides of a marginal likelihood: of ``ppca``, whose truth is known, and of a ``vae`` on fixed binarized MNIST.

    python benchmarks/sandwich.py --data DATA [--run RUN] [--minutes 5] [--rows 500] [--temperatures 300] [--quick]

DATA is the folder that holds images/binarized-mnist. ppca: ELBO, IWAE-64, AIS, the exact value and reverse AIS of 200
rows of ten columns, with the share of rows that are in order beyond five errors. vae: RUN, or one that is trained for
so many minutes: AIS and the way back from chains on test rows, bidirectional Monte Carlo on as many simulated rows,
the inference gap on 100. Writes benchmarks/results/sandwich.json; --quick is a trial of seconds, not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "sandwich.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--temperatures", type=int, default=300)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.data is None and not args.quick:
        parser.error("give --data, or --quick")

    import torch

    import pofx
    from pofx.core.requests import Ais, Elbo, ExactLikelihood, Iwae, ReverseAis
    from pofx.data.parts import Data, Part
    from pofx.evaluate.inference import inference_gap
    from pofx.evaluate.sandwich import sandwich
    from pofx.spaces import Image, Real, Table

    torch.set_num_threads(args.threads)
    if args.quick:
        args.rows, args.temperatures = 10, 10
    started, steps = time.perf_counter(), Ais(temperatures=args.temperatures, chains=args.chains)

    def linear() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(args.seed)
        loading = torch.randn(3, 10, generator=generator, dtype=torch.float64)
        x = torch.randn(1200, 3, generator=generator).double() @ loading + 0.5 * torch.randn(
            1200, 10, generator=generator
        )
        space = Table(tuple(Real(f"x{i}") for i in range(10)))
        data = Data("linear", "memory", space, Part(x[:900]), Part(x[900:1000]), Part(x[1000:]), None)
        model = pofx.fit(data, "ppca", options={"latent": 3}, seed=args.seed).model
        asked = (
            Elbo(64),
            Iwae(64),
            steps,
            ExactLikelihood(),
            ReverseAis(temperatures=args.temperatures, chains=args.chains),
        )
        found = [model.log_prob(x[1000 : 1000 + min(200, args.rows)], request=r) for r in asked]
        errors = [getattr(f, "mc_se", torch.zeros_like(f.nats)) for f in found]
        pairs = list(zip(range(4), range(1, 5), strict=True))
        ordered = [
            found[a].nats < found[b].nats + 5 * (errors[a] ** 2 + errors[b] ** 2).sqrt() + 1e-6 for a, b in pairs
        ]
        means = {r.name: round(float(f.nats.mean()), 4) for r, f in zip(asked, found, strict=True)}
        return {
            "mean_nats": means,
            "rows_in_order": [round(float(o.double().mean()), 4) for o in ordered],
            "sandwich": round(float((found[4].nats - found[2].nats).mean()), 4),
        }

    def images() -> Data:
        if not args.quick:
            from binarized_mnist_made import load

            return load(args.data)
        x = (torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7).to(torch.uint8)
        return Data("random", "memory", Image(8, 8, 1, 2), Part(x[:200]), Part(x[200:250]), Part(x[250:]), None)

    record: dict[str, Any] = {"ppca": linear()}
    print(json.dumps(record), flush=True)
    data = images()
    if args.run is not None:
        from pofx.train.run import read_run

        model = read_run(args.run).model
    else:
        budget = {"steps": 30} if args.quick else {"seconds": args.minutes * 60}
        options = {"latent": 32, **({} if args.quick else {"net": "mlp", "hidden": 300})}
        model = pofx.fit(data, "vae", seed=args.seed, options=options, **budget).model
    rows = data.test.draw(args.rows, args.seed)
    both = sandwich(model, rows, request=steps, simulate=args.rows, seed=args.seed)
    record["vae"] = both.to_json(rows=False)
    print(both, "| simulated:", both.simulated, flush=True)
    gap = inference_gap(model, rows[: min(100, args.rows)], fits=20 if args.quick else 300, truth=steps, seed=args.seed)
    record["inference_gap"] = gap.to_json()
    print(gap, flush=True)
    record |= {
        "rows": args.rows, "temperatures": args.temperatures, "chains": args.chains, "seed": args.seed,
        "threads": args.threads, "seconds": round(time.perf_counter() - started), "machine": platform.processor(),
    }  # fmt: skip
    if not args.quick:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

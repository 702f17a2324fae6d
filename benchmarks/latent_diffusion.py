"""MNIST by ``latent-diffusion`` given the label: the bound in nats, and how far samples are from test images.

    python benchmarks/latent_diffusion.py DATA OUT [--minutes 12] [--n 10000] [--threads N] [--quick]

DATA is the folder of the data sets (images/mnist in it); OUT keeps the runs, which are read again where they are
there, and a sheet of samples of each sampler. ``bound`` is that of the first 1,000 test images, with its terms. As in
sample_quality.py ``distance`` is that of two Gaussians (Heusel et al. 2017) of what a pofx classifier's ConvNet makes
of drawn and of test images, "real" that of as many training images, and ``read`` the share of images that another
classifier reads as the label they were drawn for. One JSON object a line, all of them in results/latent_diffusion.json.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from pofx.core.requests import Ancestral, DpmSolver, Sampler
from pofx.evaluate.likelihood import mean_log_prob
from pofx.evaluate.two_sample import frechet
from pofx.report.plots import montage
from timing import Results

OPTIONS: dict[str, Any] = {"context_dropout": 0.1}
DRAWS: list[Sampler] = [DpmSolver(20), DpmSolver(20, guidance=2.0), Ancestral(100)]
SCORED = 1000  # test images of the bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0, help="of the fit; a classifier has a sixth of them")
    parser.add_argument("--n", type=int, default=10_000, help="images on either side of a distance")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="fits of seconds, 200 images; nothing is kept in results/")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    minutes, n, scored = (0.1, 200, 20) if args.quick else (args.minutes, args.n, SCORED)
    kept, place = args.out / f"{minutes:g}-minutes", args.data / "images" / "mnist"
    results = Results(args.quick, minutes=minutes, n=n, options=OPTIONS, seed=0, threads=torch.get_num_threads())

    def fitted(name: str, data: pofx.Data, family: str, share: float, **how: Any) -> Any:
        if not (kept / name / "config.json").exists():
            pofx.fit(data, family, seconds=60 * minutes * share, out=kept / name, **how)
        return pofx.read_run(kept / name).model

    labelled = pofx.load(place, target="label")
    seer, reader = (fitted(f"classifier-{k}", labelled, "classifier", 1 / 6, seed=k) for k in (0, 1))
    data = pofx.load(place, given="label")
    model = fitted("latent-diffusion", data, "latent-diffusion", 1.0, options=OPTIONS, seed=0)
    x, labels = data.test.x[:n], data.test.c[:n]

    def judged(drawn: Tensor) -> dict[str, float]:
        logits = torch.cat([reader.logits(reader.encode_context(some)) for some in drawn.split(1000)])
        read = (logits.argmax(1) == labels[: len(drawn)]).double().mean()
        return {"distance": frechet(features(seer, drawn), features(seer, x)).distance, "read": float(read)}

    found, dims = mean_log_prob(model, data.test[:scored]), data.space.dims
    terms = model.given(labels[:scored]).bound_terms(x[:scored])
    results.emit(
        who="bound", kind=found.kind.__name__, nats=found.nats, se=found.se, mc_se=found.mc_se,
        bits_per_dim=-found.nats / dims / math.log(2), rows=found.n, parameters=model.parameter_count(),
        **{name: float(term.nats.mean()) for name, term in terms.items()},
    )  # fmt: skip
    train = data.train.x[:n]
    results.emit(
        who="real", distance=frechet(features(seer, train), features(seer, x)).distance, read=judged(x)["read"]
    )
    with torch.no_grad():
        z = model.given(labels).encode(x).mean
        kept_of = model.heads.sample(
            model.decoded(z, model.encode_context(labels).own.vector), torch.Generator().manual_seed(0)
        )
    results.emit(who="decoded from the latents of test images", **judged(kept_of))
    for sampler in DRAWS:
        (drawn,) = model.given(labels).sample(1, generator=torch.Generator().manual_seed(0), sampler=sampler)
        guidance = getattr(sampler, "guidance", None)
        results.emit(who="samples", sampler=sampler.name, steps=sampler.steps, guidance=guidance, **judged(drawn))
        sheet = montage(drawn[:100][labels[:100].argsort()].numpy(), 256, 10, 10)
        name = f"{sampler.name}-{sampler.steps}-{guidance}.html"
        (kept / name).write_text(f'<img width="560" src="{sheet}">')
    results.save()


@torch.no_grad()
def features(classifier: Any, x: Tensor) -> Tensor:
    return torch.cat([classifier.encode_context(some).vector for some in x.split(1000)]).double()


if __name__ == "__main__":
    main()

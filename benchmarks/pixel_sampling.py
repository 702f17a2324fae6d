"""Sampling by cached walks against the same nets run anew for every value; and a training step of pixelcnn.

    python benchmarks/pixel_sampling.py [--quick] [--threads N]

    sample  seconds for a batch of 28x28 binary images: the walk, whole; the naive sampler, extrapolated from the
            median full forward pass times the number of values (it makes one pass for each)
    flat    microseconds per pixel of a walk at 14x14, 28x28 and 42x42 (image-gpt's attention grows with their number)
    step    one training step (forward and backward) of pixelcnn against a hand-written net of the same layers with
            the usual masked convolutions: the whole window in NCHW, the mask multiplied into the weight in place

Nets are untrained: the time does not depend on the weights. pixelcnn has the recipe of pytorch-generative: 15 blocks
of 32 features; image-gpt has its size there, on single pixels. Rounds interleave; figures are medians, a ratio is one
of medians within the run. Prints one JSON object a line and writes all to benchmarks/results/pixel_sampling.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="small nets, small batches, results not kept")
parser.add_argument("--threads", type=int, default=2)
ARGS = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.model import Model
from pofx.core.registry import family
from pofx.families.image_gpt import ImageGpt
from pofx.families.pixel import Pixel
from pofx.spaces import Image
from timing import Results, middle, race

torch.set_num_threads(ARGS.threads)

NETS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("pixelcnn", {"hidden": 32, "layers": 15}, (16, 256)),
    ("gated-pixelcnn", {}, (16,)),
    ("gated-pixelcnn", {"hidden": 128, "layers": 9}, (16,)),
    ("pixelcnn++", {}, (16,)),
    ("pixelcnn++", {"hidden": 96, "layers": 3}, (16,)),
    ("pixelrnn", {"kind": "row-lstm", "hidden": 64, "layers": 4}, (16,)),
    ("pixelrnn", {"kind": "diagonal-bilstm", "hidden": 64, "layers": 4}, (16,)),
    ("image-gpt", {"patch": 1, "width": 64, "layers": 8, "n_heads": 4}, (16,)),
]
ROUNDS = 3


def build(name: str, options: dict[str, Any], side: int = 28) -> Model:
    cls, space = family(name), Image(side, side, 1, 2)
    return cls(cls.Config(**options), space).eval()


def forward(model: Model, n: int) -> Callable[[], Tensor]:
    """One pass of the net over all values of n images."""
    values = torch.zeros(n, model.space.dims)  # type: ignore[attr-defined]

    @torch.no_grad()
    def call() -> Tensor:
        if isinstance(model, ImageGpt):
            return model.emission.logits(model.net(model.emission.embed(values.long())))  # type: ignore[attr-defined]
        assert isinstance(model, Pixel)
        return model.params(values, None, 0)

    return call


class MaskedConv(nn.Conv2d):
    """The usual one: its mask is multiplied into the weight, in place, before every pass."""

    def __init__(self, inputs: int, outputs: int, kernel: int, own: bool) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        mask = torch.ones_like(self.weight)
        mask[:, :, kernel // 2, kernel // 2 + own :] = 0
        mask[:, :, kernel // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class HandWritten(nn.Module):
    """The layers of pixelcnn, as they are usually written."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        inner = hidden // 2
        self.first = MaskedConv(1, hidden, 7, False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(hidden, inner, 1),
                nn.ReLU(), MaskedConv(inner, inner, 3, True),
                nn.ReLU(), nn.Conv2d(inner, hidden, 1),
            )
            for _ in range(layers)
        )  # fmt: skip
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return self.out(y)


def steps(hidden: int, layers: int, n: int) -> dict[str, Callable[[], None]]:
    x = (torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8)
    ours, usual = build("pixelcnn", {"hidden": hidden, "layers": layers}), HandWritten(hidden, layers)
    assert isinstance(ours, Pixel)

    def ours_step() -> None:
        ours.zero_grad()
        (-ours._log_prob(x, None, 0)).mean().backward()

    def usual_step() -> None:
        usual.zero_grad()
        F.binary_cross_entropy_with_logits(usual(x.float()), x.float(), reduction="sum").div(n).backward()

    return {"pofx": ours_step, "hand-written": usual_step}


def main() -> None:
    results = Results(ARGS.quick, threads=ARGS.threads, torch=torch.__version__)
    noise = torch.Generator().manual_seed(0)
    for name, options, batches in NETS[:1] if ARGS.quick else NETS:
        model = build(name, options)
        for n in batches[:1] if ARGS.quick else batches:
            walk, once = (lambda m=model, k=n: m.sample(k, generator=noise)), forward(model, n)
            times = race({"walk": walk, "forward": once}, ROUNDS)
            cached, naive = middle(times["walk"])[0], middle(times["forward"])[0] * model.space.event_shape[1] ** 2
            results.emit(
                what="sample", family=name, options=options, parameters=model.parameter_count(), batch=n,
                walk_seconds=cached, naive_seconds=naive, ratio=naive / cached,
                iqr=middle(times["walk"])[1],
            )  # fmt: skip
    for name, options, _ in NETS[:1] if ARGS.quick else (NETS[0], NETS[-1]):
        walks = {side: build(name, options, side) for side in (14, 28, 42)}
        times = race({str(s): (lambda m=m: m.sample(16, generator=noise)) for s, m in walks.items()}, ROUNDS)
        per_pixel = {s: 1e6 * middle(t)[0] / int(s) ** 2 for s, t in times.items()}
        results.emit(what="flat", family=name, options=options, batch=16, microseconds_per_pixel=per_pixel)
    for hidden, layers, n in ((32, 15, 32),) if ARGS.quick else ((32, 15, 32), (64, 8, 32), (128, 15, 16)):
        times = race(steps(hidden, layers, n), 3 if ARGS.quick else 9, seconds=8)
        ours, usual = middle(times["pofx"])[0], middle(times["hand-written"])[0]
        results.emit(
            what="step", family="pixelcnn", hidden=hidden, layers=layers, batch=n,
            pofx_seconds=ours, usual_seconds=usual, ratio=usual / ours,
        )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()

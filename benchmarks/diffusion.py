"""Diffusion: train step and sampling of our U-Net against the GEMM limit, and against diffusers if it is there.

    python benchmarks/diffusion.py [--quick] [--threads 2] [--batch 32] [--channels 32]

One JSON line per figure. A comparison is timed in interleaved rounds (A B, A B, ...); times are medians.
The limit is the U-Net's multiplications at the speed of a large fp32 matrix product in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pofx.core.learner import Batch
from pofx.core.requests import Ddim, DpmSolver
from pofx.families.diffusion import Vdm
from pofx.families.path import PathConfig
from pofx.spaces import Image
from timing import Results, middle, race

SPACE = Image(28, 28, 1, 256)


def gemm_speed(rounds: int, n: int = 1024) -> float:
    """Floating point operations per second of an n x n fp32 matrix product."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    out = torch.empty(n, n)
    return 2 * n**3 / middle(race({"gemm": lambda: torch.mm(a, b, out=out)}, 10 * rounds)["gemm"])[0]


def flops(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops()


def build(channels: int) -> Vdm:
    model = Vdm(PathConfig(channels=channels), SPACE)
    x = torch.randint(256, (256, *SPACE.event_shape), dtype=torch.uint8)
    model.prepare(x, None, None, torch.Generator().manual_seed(0))
    return model


def our_step(model: Vdm, batch: int) -> Callable[[], object]:
    """A whole step: dequantisation, noise, two passes per image (eps and -eps), backward, Adam."""
    learner, generator = model.learner(Vdm.recipe(SPACE)), torch.Generator().manual_seed(0)
    x = torch.randint(256, (batch // 2, *SPACE.event_shape), dtype=torch.uint8)
    return lambda: learner.step(Batch(x, total=len(x)), generator)


def net_step(net: Callable[[Tensor, Tensor], Tensor], module: nn.Module, batch: int) -> Callable[[], object]:
    """The least that a step on ``batch`` noisy images takes: forward, squared error, backward, Adam."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)
    x, t = torch.randn(batch, *SPACE.event_shape), torch.randn(batch)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(net(x, t), x).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="results not kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="noisy images per step")
    parser.add_argument("--channels", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results, rounds = Results(args.quick, torch=torch.__version__, threads=args.threads), 3 if args.quick else 9
    emit, speed = results.emit, gemm_speed(rounds)
    model = build(args.channels)
    x, t = torch.randn(1, *SPACE.event_shape), torch.zeros(1)
    forward = flops(lambda: model.net(x, t))
    emit(what="limit", gemm_gflops=speed / 1e9)
    emit(what="u-net", parameters=sum(p.numel() for p in model.net.parameters()), forward_mflop_per_image=forward / 1e6)

    steps = {
        "pofx vdm, whole step": our_step(model, args.batch),
        "pofx u-net alone": net_step(model.net, model.net, args.batch),
    }
    work = dict.fromkeys(steps, forward)
    if importlib.util.find_spec("diffusers"):
        from diffusers import UNet2DModel

        peer = UNet2DModel(
            sample_size=28, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8,
            block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        steps["diffusers UNet2DModel alone"] = net_step(lambda x, t: peer(x, t).sample, peer, args.batch)
        work["diffusers UNet2DModel alone"] = flops(lambda: peer(x, t))
    else:
        emit(what="skipped", who="diffusers UNet2DModel", why="diffusers is not installed")
    for name, times in race(steps, rounds).items():
        seconds, iqr = middle(times)
        rate, limit = args.batch / seconds, speed / (3 * work[name])
        emit(what="train step", who=name, noisy_images_per_s=rate, limit=limit, share_of_limit=rate / limit, iqr=iqr)

    model.eval()
    for size in (1, 16):
        noisy, level = torch.randn(size, *SPACE.event_shape), torch.zeros(size)

        def one_pass(noisy: Tensor = noisy, level: Tensor = level) -> Tensor:
            with torch.inference_mode():
                return model.net(noisy, level)

        calls: dict[str, Callable[[], object]] = {"one pass": one_pass}
        passes = {"one pass": 1, "dpm++": 20, "ddim": 50}
        for solver in (DpmSolver, Ddim):
            calls[solver.name] = partial(model.sample, size, sampler=solver(passes[solver.name]))
        for name, times in race(calls, rounds).items():
            seconds, iqr = middle(times)
            limit = size * passes[name] * forward / speed
            figures = {"s_per_image": seconds / size, "share_of_limit": limit / seconds, "iqr": iqr}
            emit(what="sample", who=name, passes=passes[name], batch=size, **figures)
    results.save()


if __name__ == "__main__":
    main()

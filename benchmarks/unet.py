"""U-Nets: training steps, passes and sampling against diffusers' UNet2DModel at equal net, in one run.

    python benchmarks/unet.py [--quick] [--threads 2] [--batch 32] [--minutes 6]

Needs diffusers. Two comparisons, each at one image size, with equal data, losses and optimisers:

    same      pofx's unet2d, which computes what UNet2DModel does, from the same weights
    near      pofx's unet, and the UNet2DModel that comes nearest: on the same 2 x 2 pixel blocks, with as many levels,
              blocks, features and heads, its norms scaled and shifted, too

Theirs is timed as it comes and with channels last. ``ratio`` is the time of the faster one over ours. Times are medians
of interleaved rounds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils import logging
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.interop.diffusers import shape_of
from pofx.nn.unet import UNet, fold, unfold
from pofx.nn.unet2d import UNet2d, UNet2dOnChain
from pofx.paths.predict import PREDICTIONS, Denoiser
from pofx.paths.samplers import sample
from pofx.paths.schedule import Chain
from timing import Results, middle, race

SIDE = 28
Net = Callable[[Tensor, Tensor], Tensor]


def theirs(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(layers_per_block=2, resnet_time_scale_shift="scale_shift", **options)


def called(net: nn.Module, patch: int = 1) -> Net:
    """A net of theirs on images."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        return unfold(net(fold(x, patch), t).sample, patch, SIDE, SIDE)

    return call


def last(net: nn.Module) -> Any:
    return copy.deepcopy(net).to(memory_format=torch.channels_last)


def training(net: Net, module: nn.Module, batch: int) -> Callable[[], object]:
    """Forward, squared error, backward, AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)
    x, t = torch.randn(batch, 1, SIDE, SIDE), torch.randint(1000, (batch,)).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(net(x, t), x).backward()
        optimizer.step()

    return step


def one_pass(net: Net, x: Tensor) -> Callable[[], object]:
    return torch.inference_mode()(lambda: net(x, torch.zeros(1)))


def their_sampling(net: Net, batch: int, steps: int) -> Callable[[], object]:
    scheduler = DDIMScheduler(clip_sample=False)

    def run() -> Tensor:
        scheduler.set_timesteps(steps)
        z = torch.randn(batch, 1, SIDE, SIDE)
        with torch.inference_mode():
            for t in scheduler.timesteps:
                z = scheduler.step(net(z, t), t, z).prev_sample
        return z

    return run


def our_sampling(net: Any, batch: int, steps: int) -> Callable[[], object]:
    chain = Chain(1000)

    def run() -> Tensor:
        z = torch.randn(batch, 1, SIDE, SIDE)
        with torch.inference_mode():
            denoise = Denoiser(net, chain, PREDICTIONS["eps"])
            return sample("ddim", denoise, chain, chain.times(steps), z, torch.Generator())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="results not kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="images per training step")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM")
    parser.add_argument("--minutes", type=float, default=6.0, help="of all rounds together, at most")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    results = Results(args.quick, torch=torch.__version__, threads=args.threads)
    rounds, seconds = (3, 10.0) if args.quick else (25, args.minutes * 60 / 10)

    def compare(what: str, which: str, size: int, calls: dict[str, Callable[[], object]]) -> None:
        times = {name: middle(t) for name, t in race(calls, rounds, seconds).items()}
        peers = min(t for name, (t, _) in times.items() if name.startswith("diffusers"))
        for name, (t, iqr) in times.items():
            ratio = {} if name.startswith("diffusers") else {"ratio": peers / t}
            results.emit(what=what, net=which, who=name, batch=size, ms=1e3 * t, iqr=iqr, **ratio)

    same = theirs(
        sample_size=SIDE, in_channels=1, out_channels=1, block_out_channels=(16, 32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"), attention_head_dim=64,
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    ours = UNet2d(shape_of(dict(same.config), "theirs"))
    ours.load_state_dict(same.state_dict())
    near = theirs(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(32, 64), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
    )  # fmt: skip
    own = UNet(1, 32, 2, 2, 2)
    kinds: dict[str, tuple[dict[str, tuple[Net, nn.Module]], Any]] = {}
    for which, net, peer, patch in (("same", ours, same, 1), ("near", own, near, 2)):
        turned = last(peer)
        kinds[which] = (
            {
                f"pofx {'unet2d' if which == 'same' else 'unet'}": (net, net),
                "diffusers": (called(peer, patch), peer),
                "diffusers, channels last": (called(turned, patch), turned),
            },
            UNet2dOnChain(net, Chain(1000).step) if isinstance(net, UNet2d) else net,
        )
        for who, (_, module) in list(kinds[which][0].items())[:2]:
            results.emit(what="parameters", net=which, who=who, count=sum(p.numel() for p in module.parameters()))

    for which, (nets, path) in kinds.items():
        compare("training step", which, args.batch, {k: training(f, m, args.batch) for k, (f, m) in nets.items()})
        for _, module in nets.values():
            module.eval()
        for size in (1, 16):
            x = torch.randn(size, 1, SIDE, SIDE)
            passes = {k: one_pass(f, x) for k, (f, _) in nets.items()}
            compare("one pass", which, size, passes)
            calls = {
                k: our_sampling(path, size, args.steps) if k.startswith("pofx") else their_sampling(f, size, args.steps)
                for k, (f, _) in nets.items()
            }
            compare(f"ddim, {args.steps} steps", which, size, calls)
    results.save()


if __name__ == "__main__":
    main()

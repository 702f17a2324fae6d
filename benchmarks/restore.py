"""Images restored from what is left of them, several answers for each: one draw, their mean, and a regressor beside.

    python benchmarks/restore.py DATA OUT [--seconds 720] [--seed 0] [--threads 1] [--only TASK ...] [--family F]
        [--quick]

DATA is the folder of the data sets (images/fashion-mnist and images/bsds300 in it); OUT keeps the runs. Each task is a
``flow-matching`` given the degraded image (``pofx.data.degrade``) for the seconds, and a U-Net of the same shape
trained on the squared error alone for a third of them: the mean predictor, blurred where the answer is open.

PSNR and SSIM (scikit-image) against the truth, of the regressor, of one draw and of the mean of 8 draws, on 200 test
images; the likelihood of the truth and its kind. ``spread`` is the standard deviation of 8 draws of a pixel, in levels,
where what is given tells the answer (``known``) and where it does not (``open``): outside and inside the hole; grey
levels and the colours beside them; the means of squares and what varies within. Prints one JSON object a line and
writes all to results/restore.json, and a picture of each task in OUT: what is given, the truth, the regressor, the mean
of the draws, four draws.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

import pofx
from fitted import arguments, fitted, generator, parsed, picture
from pofx.core.likelihood import mean, number
from pofx.core.requests import DpmSolver, VariationalBound
from pofx.data import degrade
from pofx.data.parts import Data, Part
from pofx.nn.encoders import Encoded, channels_beside
from pofx.nn.unet import UNet
from pofx.spaces import Image
from timing import Results

DRAWS, STEPS, SHOWN = 8, 20, 8


def fashion(args: Any) -> Data:
    return pofx.load(args.data / "images" / "fashion-mnist")


def tiles(args: Any) -> Data:
    """32x32 tiles in colour; those of test images are of other photographs than those of training."""
    file = np.load(args.data / "images" / "bsds300" / "bsds300_color32_tiles.npz", allow_pickle=False)
    train, test = (torch.from_numpy(file[k]) for k in ("train", "test"))
    train, test = (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2).contiguous() for x in (train, test))
    train = train[torch.randperm(len(train), generator=generator(args.seed))]
    return Data("tiles", "memory", Image(32, 32, 3, 256), Part(train[500:]), Part(train[:500]), Part(test))


TASKS = {
    "fashion, a hole": lambda args: degrade.masked(fashion(args), 0.5, args.seed),
    "fashion, 4 times smaller": lambda args: degrade.small(fashion(args), 4),
    "tiles, grey": lambda args: degrade.grey(tiles(args)),
    "tiles, 2 times smaller": lambda args: degrade.small(tiles(args), 2),
}


class Mean(nn.Module):
    """The mean of an image [N, C, H, W] given another, by the squared error: both from -1 to 1."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        assert isinstance(data.space, Image)
        assert isinstance(data.context, Image)
        c, self.shape = data.context, data.space.event_shape
        self.net = UNet(
            self.shape[0], 32, 2, 2, 2, shown=channels_beside((c.channels, c.height, c.width), self.shape[1:])
        )

    def forward(self, c: Tensor) -> Tensor:
        seen = Encoded(c.new_zeros(len(c), 0), map=c)
        y: Tensor = self.net(c.new_zeros(len(c), *self.shape), c.new_zeros(1), seen)
        return y


def regressor(data: Data, seconds: float, seed: int) -> Mean:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, train = Mean(data).train(), data.train.read()
    assert train.c is not None
    optimizer, noise, started = torch.optim.Adam(net.parameters(), 1e-3), generator(seed), time.perf_counter()
    while (gone := (time.perf_counter() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, 0.01 + 1.5 * (1 - gone))
        rows = torch.randint(len(train), (32,), generator=noise)
        loss = F.mse_loss(net(scaled(train.c[rows])), scaled(train.x[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def likeness(true: Tensor, found: Tensor) -> dict[str, float]:
    """Means over images [N, C, H, W] of levels 0 to 255."""
    pairs = [
        (a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy())
        for a, b in zip(true.double(), found.double(), strict=True)
    ]
    return {
        "psnr": float(np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs if (a != b).any()])),
        "ssim": float(np.mean([structural_similarity(a, b, data_range=255, channel_axis=2) for a, b in pairs])),
    }


def spread(task: str, c: Tensor, draws: Tensor) -> dict[str, float]:
    """Standard deviations over draws [K, N, C, H, W], as said above."""
    draws = draws.double()
    if "hole" in task:
        known = (c[:, -1:] > 0).expand_as(draws[0])
        std = draws.std(0)
        return {"known": float(std[known].mean()), "open": float(std[~known].mean())}
    if "grey" in task:
        luma = (draws * torch.tensor(degrade.LUMA).double()[:, None, None]).sum(2, keepdim=True)
        return {"known": float(luma.std(0).mean()), "open": float((draws - luma).std(0).mean())}
    k = draws.shape[-1] // c.shape[-1]
    blocks = F.avg_pool2d(draws.flatten(0, 1), k).unflatten(0, draws.shape[:2])
    rest = draws - blocks.repeat_interleave(k, 3).repeat_interleave(k, 4)
    return {"known": float(blocks.std(0).mean()), "open": float(rest.std(0).mean())}


def as_shown(c: Tensor, like: Tensor) -> Tensor:
    """What is given as images of a size and number of channels, for pictures."""
    c = c[:, :-1] if c.shape[1] > like.shape[1] else c
    c = F.interpolate(c.float(), like.shape[2:], mode="nearest").to(torch.uint8)
    return c.expand(-1, like.shape[1], -1, -1)


def main() -> None:
    parser = arguments(__doc__, 720.0)
    parser.add_argument("--images", type=int, default=200, help="of the test part")
    parser.add_argument("--family", default="flow-matching")
    args = parsed(parser)
    n = 6 if args.quick else args.images
    results = Results(args.quick, seconds=args.seconds, seed=args.seed, threads=args.threads)
    for task, made in TASKS.items():
        if args.only is not None and task not in args.only:
            continue
        data = made(args)
        place = args.out / task.replace(", ", "-").replace(" ", "-")
        run = fitted(place, data, args.family, args.seconds, args.seed, recipe={"batch": 32}, valid_rows=100)
        net = regressor(data, max(2.0, args.seconds / 3), args.seed)
        test = data.test.draw(n, args.seed).read()
        assert test.c is not None
        drawn, noise = [], generator(args.seed)
        for some in test.c.split(50):
            drawn.append(run.model.given(some).sample(DRAWS, sampler=DpmSolver(STEPS), generator=noise))
        draws = torch.cat(drawn, 1)
        with torch.no_grad():
            lik = mean(number(run.model.given(test.c).log_prob(test.x, request=VariationalBound(16), generator=noise)))
            level = torch.cat([net(scaled(some)) for some in test.c.split(50)])
        guess, centre = ((level + 1) * 127.5).clamp(0, 255), draws.double().mean(0)
        ways = {"regressor": guess, "one draw": draws[0], f"mean of {DRAWS} draws": centre}
        for name, found in ways.items():
            results.emit(task=task, of=name, n=n, **likeness(test.x, found))
        results.emit(
            task=task, of="likelihood of the truth", kind=lik.kind.__name__, nats=lik.nats, se=lik.se,
            bits_per_dim=-lik.nats / math.log(2) / data.space.dims, n=n, parameters=run.model.parameter_count(),
        )  # fmt: skip
        std, error = draws.double().std(0).flatten(), (centre - test.x.double()).abs().flatten()
        results.emit(
            task=task, of="spread", n=n, draws=DRAWS, **spread(task, test.c, draws),
            correlation_with_error=float(torch.corrcoef(torch.stack([std, error]))[0, 1]),
        )  # fmt: skip
        levels = [guess.round().to(torch.uint8), centre.round().to(torch.uint8), *draws[:4]]
        rows = torch.stack([as_shown(test.c, test.x), test.x, *levels], 1)
        picture(rows[:SHOWN], args.out / f"{place.name}.png")
    results.keep("task")
    results.save()


if __name__ == "__main__":
    main()

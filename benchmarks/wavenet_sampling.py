"""WaveNet: training steps against the same net of plain convolutions, and cached steps against running it again.

    python benchmarks/wavenet_sampling.py [--quick]

The net has 3 stacks of 10 layers, 32 residual and 128 skip channels: its reach is 3070 samples. ``training`` is a
forward and a backward pass; the other net is nn.Conv1d over [N, C, L] with tanh and sigmoid, and has the same weights.
``sampling`` draws 8-bit samples one by one (embedding, net, head and draw), with the cache, and by a pass over the
last 3070 samples for each, on 2 threads and on 1: a step is too little work to share, and on a busy machine threads
wait for each other. Medians; one JSON line each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.sequence import Cache
from pofx.nn.wavenet import WaveNet
from timing import Results, middle, race

LEVELS, WIDTH = 256, 64


class Plain(nn.Module):
    """The same net of nn.Conv1d, with the weights of ``net``."""

    def __init__(self, net: WaveNet) -> None:
        super().__init__()
        self.net = net
        depth, c, skip = net.skip.shape
        self.filters = nn.ModuleList(nn.Conv1d(c, 2 * c, net.kernel, dilation=d) for d in net.dilations)
        self.residuals = nn.ModuleList(nn.Conv1d(c, c, 1, bias=False) for _ in range(depth - 1))
        self.skips = nn.ModuleList(nn.Conv1d(c, skip, 1, bias=False) for _ in range(depth))
        with torch.no_grad():
            for l in range(depth):
                filter, half = net.filter[l].unflatten(0, (net.kernel, c)).permute(2, 1, 0), torch.ones(2 * c)
                half[c:] = 2  # sigmoid(2b) = (1 + tanh b) / 2
                self.filters[l].weight.copy_(filter * half[:, None, None])
                self.filters[l].bias.copy_(net.bias[l] * half)
                self.skips[l].weight.copy_(2 * net.skip[l].T[..., None])
                if l < depth - 1:
                    self.residuals[l].weight.copy_(2 * net.residual[l].T[..., None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.enter(x).transpose(1, 2)
        total = self.net.skip_bias[:, None]
        for l, d in enumerate(self.net.dilations):
            a, b = self.filters[l](F.pad(x, (d, 0))).chunk(2, 1)
            z = a.tanh() * b.sigmoid()
            total = total + self.skips[l](z)
            if l < len(self.residuals):
                x = x + self.residuals[l](z)
        return F.relu(self.net.leave(F.relu(total.transpose(1, 2))))


def training(results: Results, net: WaveNet, rounds: int) -> None:
    plain = Plain(net)
    c, skip = net.skip.shape[1:]
    each = 2 * (net.filter.numel() + net.residual.numel() + net.skip.numel() + WIDTH * (c + skip))
    for n, length in ((1, 8192), (8, 1024)):
        x = torch.randn(n, length, WIDTH)
        with torch.no_grad():
            difference = float((net(x) - plain(x)).abs().max())

        def step(model: nn.Module, x: Tensor = x) -> Callable[[], object]:
            return lambda: model(x).square().sum().backward()

        times = race({"pofx": step(net), "conv1d": step(plain)}, rounds, 10.0)
        (ours, spread), (other, other_spread) = middle(times["pofx"]), middle(times["conv1d"])
        results.emit(what="training", batch=n, length=length, seconds=ours, spread=spread, conv1d_seconds=other,
                     conv1d_spread=other_spread, speedup=other / ours, gflops=3 * each * n * length / ours / 1e9,
                     samples_per_second=n * length / ours, largest_difference=difference)  # fmt: skip


def sampling(results: Results, net: WaveNet, rounds: int) -> None:
    embedding, head = nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS)
    parameters = sum(p.numel() for m in (net, embedding, head) for p in m.parameters())

    def draw(y: Tensor) -> Tensor:
        return torch.multinomial(head(y).softmax(1), 1)[:, 0]

    for n, threads in ((1, 2), (1, 1), (16, 2), (16, 1)):
        torch.set_num_threads(threads)
        cache, last = net.cache(n, 10**6), torch.randint(LEVELS, (n, net.reach))
        cache.extend(embedding(last))

        def cached(cache: Cache = cache, now: Tensor = last[:, -1]) -> None:
            for _ in range(100):
                now = draw(cache.step(embedding(now)))

        def again(last: Tensor = last) -> None:
            draw(net(embedding(last))[:, -1])

        times = race({"cached": cached, "again": again}, rounds, 6.0)
        (ours, spread), (other, other_spread) = middle([t / 100 for t in times["cached"]]), middle(times["again"])
        results.emit(what="sampling", batch=n, threads=threads, parameters=parameters, reach=net.reach,
                     seconds_per_step=ours, spread=spread, again_seconds=other, again_spread=other_spread,
                     speedup=other / ours, samples_per_second=n / ours)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    results = Results(args.quick, torch=torch.__version__, threads=2)
    net, rounds = WaveNet(WIDTH), 3 if args.quick else 15
    training(results, net, rounds)
    with torch.no_grad():
        sampling(results, net, rounds)
    results.save()


if __name__ == "__main__":
    main()

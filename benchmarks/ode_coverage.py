"""Do the stated errors of the ODE likelihood cover the truth? A thousand densities that are known in closed form.

    python benchmarks/ode_coverage.py [--quick] [--seed 0] [--steps 16]

Every case is a density of its own and one datum drawn from it: a Gaussian with random eigenvalues (0.01 to 2, in a
random rotation) or a mixture of three, in 2 to 32 dimensions, whose best denoiser is known. The probability flow is
solved with the exact divergence and with 4, 8 or 32 probes. The truth is the density of the datum itself. One JSON
line per group: the share of 95% intervals that cover it, and how the errors compare with what is stated.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.core.comparison import interval
from pofx.core.noise import RowNoise
from pofx.core.requests import OdeLikelihood
from pofx.paths.likelihood import ode
from pofx.paths.predict import point
from pofx.paths.schedule import SCHEDULES, Schedule
from pofx.transforms.ode import estimate, probes
from timing import Results

DIMS, COMPONENTS = (2, 4, 8, 16, 32), {"gaussian": 1, "mixture": 3}


@dataclass
class Mixtures:
    """N mixtures, one a row, sum_k w_k N(m_k, V_k diag(lambda_k) V_k'): a denoiser, and a density at any noise.

    Args:
        log_w: [N, K]; mean, variance: [N, K, d]; axes: V [N, K, d, d].
    """

    schedule: Schedule
    log_w: Tensor
    mean: Tensor
    variance: Tensor
    axes: Tensor

    @classmethod
    def random(cls, schedule: Schedule, n: int, k: int, d: int, generator: torch.Generator) -> Mixtures:
        def normal(*shape: int) -> Tensor:
            return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

        low, high = math.log(0.01), math.log(2 if k == 1 else 0.5)
        variance = (low + (high - low) * torch.rand(n, k, d, generator=generator, dtype=torch.float64)).exp()
        return cls(
            schedule, normal(k).log_softmax(1), normal(k, d) * (k > 1), variance, torch.linalg.qr(normal(k, d, d))[0]
        )

    def sample(self, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.log_w.exp(), 1, generator=generator)[:, 0]
        rows = torch.arange(len(k))
        e = torch.randn(self.mean[:, 0].shape, generator=generator, dtype=torch.float64) * self.variance[rows, k].sqrt()
        return self.mean[rows, k] + torch.einsum("nij,nj->ni", self.axes[rows, k], e)

    def _parts(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates of z - alpha m_k and their variances [N, K, d], and log w_k N(z; ...) [N, K]."""
        w = torch.einsum("nkij,nki->nkj", self.axes, z[:, None] - alpha * self.mean)
        v = alpha**2 * self.variance + sigma**2
        return w, v, self.log_w - ((2 * math.pi * v).log() + w**2 / v).sum(2) / 2

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        p = point(self.schedule, t, z)
        alpha, sigma = p.alpha[..., None], p.sigma[..., None]
        w, v, log_p = self._parts(z, alpha, sigma)
        each = self.mean + torch.einsum("nkij,nkj->nki", self.axes, alpha * self.variance / v * w)
        return (log_p.softmax(1)[..., None] * each).sum(1)

    def log_prob(self, z: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        return self._parts(z, torch.tensor(alpha), torch.tensor(sigma))[2].logsumexp(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases; results not kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16, help="of the solver")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, generator = Results(args.quick, seed=args.seed, steps=args.steps), torch.Generator().manual_seed(args.seed)
    each = 5 if args.quick else 50
    schedule = SCHEDULES["cosine"]()
    every: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"exact": [], "probed": []}
    for kind, k in COMPONENTS.items():
        for d in DIMS:
            for divergence in every:
                started = time.perf_counter()
                counts = (0,) if divergence == "exact" else (4, 8, 32)
                found = []
                for i, count in enumerate(counts):
                    n = each // len(counts) + (i < each % len(counts))
                    data = Mixtures.random(schedule, n, k, d, generator)
                    x, noise = data.sample(generator), RowNoise.by_place(n, generator)
                    probe = probes(count, x, noise)

                    def solve(steps, noise, data=data, x=x, probe=probe):
                        return ode(data, data, data.schedule, x, steps=steps, noise=noise, probe=probe)

                    lik = estimate(solve, OdeLikelihood(args.steps, count), noise, d, "flow")
                    low, high = interval(lik)
                    own = data.log_prob(x)
                    found.append(torch.stack([(low <= own) & (own <= high), lik.nats - own, lik.mc_se]))
                all_of = torch.cat(found, 1)
                every[divergence].append(all_of)
                tell(results, all_of, kind=kind, dim=d, divergence=divergence, seconds=time.perf_counter() - started)
    for divergence, parts in every.items():
        tell(results, torch.cat(parts, 1), divergence=divergence)
    tell(results, torch.cat([p for parts in every.values() for p in parts], 1), divergence="both")
    results.save()


def tell(results: Results, of: Tensor, **group: object) -> None:
    """``of`` [3, cases]: covered, error, stated error."""
    covered, error, se = of.double()
    rms = {"rms_error": error.square().mean().sqrt().item(), "rms_stated": se.square().mean().sqrt().item()}
    ratio = (error / se).abs().median().item() / 0.6745
    results.emit(what="coverage", **group, cases=len(error), covered=covered.mean().item(), **rms, median_ratio=ratio)


if __name__ == "__main__":
    main()

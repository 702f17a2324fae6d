"""Forward KL covers modes, reverse KL seeks them: one Gaussian fitted to two modes, both ways.

The same function, its arguments swapped, is the loss. Forward, KL(p || q), is what maximum likelihood
lowers: q pays without limit where it misses mass of p, so it spreads over both modes. Reverse,
KL(q || p), is what variational inference lowers: q pays for mass where p has none, so it settles on one
mode (which one depends on the start). Bishop (2006), Pattern Recognition and Machine Learning, fig. 10.3.

    python examples/kl_directions.py          # writes docs/kl_directions.png in about 20 seconds
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from pofx.core.likelihood import Number
from pofx.information import kl, reverse_kl

OUT = Path(__file__).parent.parent / "docs" / "kl_directions.png"
STEPS = 300


def target() -> Distribution:
    """Two tilted Gaussians of equal weight."""
    covariance = torch.tensor([[1.0, -0.6], [-0.6, 0.7]])
    means = torch.tensor([[-1.6, -1.3], [1.6, 1.3]])
    return MixtureSameFamily(Categorical(torch.ones(2)), MultivariateNormal(means, covariance.expand(2, 2, 2)))


def fit(divergence: Callable[..., Number[Tensor]], p: Distribution, start: tuple[float, float]) -> MultivariateNormal:
    """The Gaussian q that minimises ``divergence(p, q)`` by stochastic gradient descent from ``start``."""
    mean = torch.tensor(start, requires_grad=True)
    scale = torch.eye(2).mul(0.7).requires_grad_()  # Cholesky factor: its lower triangle, positive diagonal
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([mean, scale], lr=0.05)

    def q() -> MultivariateNormal:
        return MultivariateNormal(mean, scale_tril=scale.tril(-1) + scale.diagonal().abs().diag())

    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / STEPS)
        optimizer.zero_grad()
        divergence(p, q(), draws=256, generator=generator).nats.backward()
        optimizer.step()
    return MultivariateNormal(mean.detach(), scale_tril=q().scale_tril.detach())


def density(ax: plt.Axes, d: Distribution, filled: bool) -> None:
    axis = torch.linspace(-5, 5, 201)
    points = torch.cartesian_prod(axis, axis)
    z: Tensor = d.log_prob(points).exp().reshape(201, 201).T
    if filled:
        ax.contourf(axis, axis, z, levels=12, cmap="Blues")
    else:
        levels = (z.max() * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])).tolist()
        ax.contour(axis, axis, z, levels=levels, colors="#c8443c", linewidths=1.4)


def main() -> None:
    p = target()
    fits = [
        ("forward KL(p‖q) covers both modes", fit(kl, p, (1.0, 0.5))),
        ("reverse KL(q‖p) seeks one mode ...", fit(reverse_kl, p, (1.0, 0.5))),
        ("... and which one depends on the start", fit(reverse_kl, p, (-1.0, -0.5))),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), sharex=True, sharey=True, layout="constrained")
    for ax, (title, q) in zip(axes, fits, strict=True):
        density(ax, p, filled=True)
        density(ax, q, filled=False)
        generator = torch.Generator().manual_seed(1)
        forward, reverse = (f(p, q, draws=20_000, generator=generator) for f in (kl, reverse_kl))
        numbers = "   ".join(
            f"{name} {r.nats.item():.2f} ± {r.mc_se.item():.2f}"
            for name, r in (("KL(p‖q)", forward), ("KL(q‖p)", reverse))
        )
        ax.set_title(title, fontsize=11)
        ax.set_xlabel(f"{numbers} nats", fontsize=9)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
        print(f"{title}: {numbers} nats")
    figure.suptitle("A Gaussian q (red) fitted to two modes p (blue)", fontsize=12)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=130)
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()

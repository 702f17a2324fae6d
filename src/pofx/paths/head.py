"""A step of several numbers by a small diffusion, told what a net over sequences knows at that step.

    log P(u) >= E [ log p(u + v | y) ],   v uniform in the cell of each level,   p(. | y) a diffusion told y

In the place of a softmax over a step's values (``nn.emission.StepHead``): the net's output y is the context of an MLP
that takes the noise from a patch of an image (Li et al. 2024, "Autoregressive image generation without vector
quantization"). The net reads whole levels, whatever noise the head adds to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pofx.core.errors import Unsupported
from pofx.nn.emission import Emission, Given
from pofx.nn.encoders import Encoded
from pofx.nn.noisy import NoisyMlp
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import angles, terms
from pofx.paths.objective import COUPLINGS, TIMES, WEIGHTINGS, both_signs, path_loss
from pofx.paths.predict import PREDICTIONS, Denoiser, point
from pofx.paths.samplers import sample
from pofx.paths.schedule import SCHEDULES
from pofx.transforms.base import Noise


class DiffusionHead(Emission):
    """Steps [N, L, d] of levels 0 .. levels - 1, each a diffusion on the cosine path, which starts at their Gaussian.

    Args:
        sites: d.
        levels: that a value may have.
        width: of the net whose outputs it is told.
        hidden, blocks: of its MLP.
        steps: of its sampler.
    """

    fill, pad = math.inf, -math.inf

    def __init__(self, sites: int, levels: int, width: int, *, hidden: int, blocks: int, steps: int) -> None:
        super().__init__()
        self.sites, self.levels, self.steps, self.has_eos = sites, levels, steps, False
        self.enter = nn.Linear(sites, width)
        self.net = NoisyMlp(sites, width, hidden, blocks)
        self.gaussian = Gaussian(sites)
        self.schedule = SCHEDULES["cosine"]()
        self.middle = (levels - 1) / 2  # levels are taken as numbers from -1 to 1

    def prepare(self, u: Tensor, ends: int) -> None:
        """The Gaussian of steps u [M, d], with the variance that the noise in their cells adds."""
        self.gaussian.fit(self._scaled(u))
        self.gaussian.variance.add_(1 / (12 * self.middle**2))

    def embed(self, u: Tensor) -> Tensor:
        return self.enter(self._scaled(u))

    def filled(self, u: Tensor) -> Tensor:
        return u[..., 0].isinf()  # none is: images are of one size

    def beginning(self, n: int) -> Tensor:
        return self.enter.weight.new_zeros(n, 1, self.sites)

    def loss(self, y: Tensor, u: Tensor, cell: Tensor, at: Tensor, eps: Tensor) -> Tensor:
        """What is lost along the path in nats [N, L], one draw: what training lowers.

        Args:
            y: outputs [N, L, width] of the net at the steps u [N, L, d].
            cell: uniform in [0, 1), eps: standard normal [N, L, d]; at: uniform [N, L], picks the noise level.
        """
        x, eps = self._spread(u, cell).flatten(0, 1), eps.flatten(0, 1)
        noises, denoiser = both_signs(x, eps, COUPLINGS["independent"]), self._denoiser(y.flatten(0, 1))
        each = path_loss(denoiser, x, noises, at.flatten().double(), TIMES["log-snr"], WEIGHTINGS["likelihood"])
        return each.view(at.shape) * (self.sites * self.schedule.range / 2)

    def bound(self, y: Tensor, u: Tensor, at: Tensor, noise: Noise, steps: int | None = None) -> Tensor:
        """One draw of a lower bound on log p [N] of the steps u [N, L, d], unbiased for uniform ``at`` [N]."""
        n, length = u.shape[:2]
        x = self._spread(u, noise.rand(length, self.sites)).double().flatten(0, 1)
        eps = noise.randn(length, self.sites).to(x).flatten(0, 1)
        # each step another noise level, evenly apart: together they are less uncertain
        shift = torch.arange(length, dtype=at.dtype, device=at.device) / length
        level = ((at[:, None] + shift) % 1).flatten()
        found = terms(self._denoiser(y.flatten(0, 1)), self.gaussian, self.schedule, x, level, eps, steps=steps)
        return found.sum(0).view(n, length).sum(1) - length * self.sites * math.log(self.middle)

    def complete(self, y: Tensor, given: Given | None, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        if temperature != 1:
            raise Unsupported("A temperature is of categories, not of numbers.", "Leave it at 1.")
        denoise, times = self._denoiser(y), self.schedule.times(self.steps)
        e, last = (
            torch.randn(len(y), self.sites, generator=generator, device=generator.device).to(y.device) for _ in range(2)
        )
        z = self.gaussian.noisy(e, *angles(self.schedule.ends[0]))
        z = sample("dpm++", denoise, self.schedule, times, z, generator)
        z = self.gaussian.posterior(z, last, point(self.schedule, times[-1], z))
        drawn = ((z + 1) * self.middle).round().clamp(0, self.levels - 1)
        return drawn if given is None else torch.where(given[1], given[0], drawn)

    def _scaled(self, u: Tensor) -> Tensor:
        return u.to(self.enter.weight.dtype) / self.middle - 1

    def _spread(self, u: Tensor, cell: Tensor) -> Tensor:
        """Scaled levels anywhere in their cells."""
        return (u.double() + cell.double() - 0.5).to(u.dtype) / self.middle - 1

    def _denoiser(self, y: Tensor) -> Denoiser:
        """Of steps [M, d] told the net's outputs y [M, width]."""

        def told(z: Tensor, log_snr: Tensor) -> Tensor:
            predicted: Tensor = self.net(z, log_snr, Encoded(y))
            return predicted

        return Denoiser(told, self.schedule, PREDICTIONS["v"], self.gaussian, self.enter.weight.dtype)

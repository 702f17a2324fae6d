"""Augmentations through which a critic sees real and generated images: few data it would else learn by heart.

Each is applied to an image with probability p, so that the distribution of augmented images still tells that of images
as long as p stays away from 1 (Karras et al. 2020, "Training GANs with limited data", section 2). All have derivatives,
through which a generator learns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST = 0.8  # p that stays well away from 1 (section 2.2)
SHIFT = 0.125  # largest translation, of a side
SCALE = 0.2  # standard deviation of log2 of the zoom
BRIGHTNESS = 0.2  # standard deviation, where pixels are from -1 to 1
CONTRAST = 0.5  # standard deviation of log2
CUTOUT = 0.5  # side of what is cut out, of the image's


class Augment(nn.Module):
    """Rotations by quarter turns, translation, zoom, brightness, contrast and a hole, each with probability p.

    Args:
        shape: (C, H, W) of the images; where H is not W, turns are half ones.
        flips: mirror images, too: only right where data are as likely mirrored.
    """

    uniforms = 16  # random numbers of one image

    def __init__(self, shape: tuple[int, int, int], flips: bool) -> None:
        super().__init__()
        self.shape, self.flips = shape, flips

    def forward(self, y: Tensor, u: Tensor, p: float) -> Tensor:
        """Images y [N, C, H, W] augmented, by uniform random numbers u [N, uniforms]."""
        flip, turn, shift, zoom, bright, contrast, hole = (u[:, :7] < p).to(y).unbind(1)
        place = u[:, 7:].to(y)
        normal = math.sqrt(2) * torch.erfinv((2 * place[:, :3] - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        size = torch.exp2(SCALE * normal[:, 0] * zoom)
        if self.shape[1] == self.shape[2]:
            quarters = (4 * place[:, 3]).floor()
        else:
            quarters = 2 * (2 * place[:, 3]).floor()
        angle = turn * quarters * (math.pi / 2)
        mirror = 1 - 2 * flip * (place[:, 4] < 0.5).to(y) if self.flips else torch.ones_like(size)
        # where each pixel of the result comes from, in coordinates from -1 to 1
        pixels = y.new_tensor([self.shape[2], self.shape[1]])
        move = shift[:, None] * ((2 * place[:, 5:7] - 1) * SHIFT * pixels).round() * 2 / pixels
        cos, sin = angle.cos() / size, angle.sin() / size
        rows = [torch.stack([cos * mirror, -sin * mirror, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(y.shape), align_corners=False)
        y = F.grid_sample(y, grid, padding_mode="reflection", align_corners=False)
        y = y * torch.exp2(CONTRAST * normal[:, 1] * contrast)[:, None, None, None]
        y = y + (BRIGHTNESS * normal[:, 2] * bright)[:, None, None, None]
        return y * (1 - hole[:, None, None, None] * self._hole(place[:, 7:9]))

    def _hole(self, at: Tensor) -> Tensor:
        """1 within CUTOUT / 2 of a centre ``at`` [N, 2], in sides of the image: [N, 1, H, W]."""
        inside = [
            ((torch.arange(n, device=at.device) + 0.5) / n - centre[:, None]).abs() < CUTOUT / 2
            for n, centre in zip(self.shape[1:], at.unbind(1), strict=True)
        ]
        return (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(at)


class Adaptive(nn.Module):
    """Augmentation at a probability p that is led so that the critic's signs of real images stay at a target.

    r_t = E sign D(x) of real images goes to 1 as the critic learns them by heart: every few batches p takes a step up
    where it is above the target, down where below (Karras et al. 2020, limited data, section 3.1 and eq. 1). Its state
    is kept with the weights.

    Args:
        shape, flips: of ``Augment``.
        target: of r_t; 0.6 in the paper.
        images: in which p goes from 0 to 1 at most.
    """

    EVERY = 4  # batches
    p: Tensor
    signs: Tensor  # their sum since the last step
    seen: Tensor  # images since then
    batches: Tensor

    def __init__(self, shape: tuple[int, int, int], *, flips: bool, target: float, images: int) -> None:
        super().__init__()
        self.augment, self.target, self.images = Augment(shape, flips), target, images
        for name in ("p", "signs", "seen", "batches"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        """Images y [N, C, H, W] augmented, by uniform random numbers u [N, Augment.uniforms]."""
        p = self.p.item()
        return self.augment(y, u, p) if p else y

    def look(self, sign: Tensor, images: int) -> None:
        """After a batch of so many images: the mean of the signs that its critic gave real ones."""
        self.signs += sign * images
        self.seen += images
        self.batches += 1
        if self.batches == self.EVERY:
            up = torch.where(self.signs > self.target * self.seen, 1.0, -1.0)
            self.p.add_(up * self.seen / self.images).clamp_(0.0, MOST)
            for count in (self.signs, self.seen, self.batches):
                count.zero_()

"""A learned palette: a pixel as one of K symbols, and what that symbol leaves open.

    log p(x) = log p(k(x)) - log |cell k(x)|

The palette parts the cube of colours (levels^channels of them) into cells: a colour belongs to the palette's nearest
(Chen et al. 2020, Image GPT), to the first of several. The cell k is a function of the colour, so with a uniform
distribution on each cell this is the exact likelihood of the image itself; it pays for what the palette throws away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pofx.codecs.steps import Patches
from pofx.core.errors import UsageError
from pofx.spaces import Image

PIXELS = 2**15  # that k-means looks at
ROUNDS = 20  # of k-means
CUBE = 2**24  # colours at most, all of which are counted


class Palette(Patches):
    """An image [C, H, W] as the cells of its pixels' colours [H W], in an order of pixels.

    Args:
        space: of the images; at most 2^24 colours.
        size: K, of the palette.
        order, order_seed: of the pixels.
    """

    colours: Tensor
    count: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: Image, size: int, order: str = "raster", order_seed: int = 0) -> None:
        super().__init__(space, 1, True, order, order_seed)
        c = space.channels
        self.register_buffer("colours", torch.zeros(size, c))  # [K, C], whole levels
        self.register_buffer("count", torch.zeros(size, dtype=torch.int64))  # of each cell's colours; 0: not learned
        self.register_buffer("low", torch.zeros(size, c))  # the box around each cell, to draw from it
        self.register_buffer("high", torch.zeros(size, c))

    def prepare(self, x: Tensor, generator: torch.Generator) -> None:
        """k-means (Lloyd 1982) over the pixels of images x [N, C, H, W]."""
        pixels, size = self._pixels(x).flatten(0, 1), len(self.colours)
        pixels = pixels[torch.randperm(len(pixels), generator=generator)[:PIXELS]].to(self.colours)
        found = pixels.unique(dim=0)
        found = found[torch.randperm(len(found), generator=generator)]  # rare ones may start as well
        centres, before = found[:size], None
        for _ in range(ROUNDS):
            near = nearest(pixels, centres)
            if before is not None and torch.equal(near, before):
                break
            members, before = near.bincount(minlength=len(centres))[:, None], near
            sums = torch.zeros_like(centres).index_add_(0, near, pixels)
            centres = torch.where(members > 0, sums / members, centres)  # an empty one stays where it is
        # centres that round to the same colour make room for others
        self.use(torch.cat([centres.round(), found, first_colours(size, self.space).to(found)]))

    def use(self, colours: Tensor) -> None:
        """Take the first K different ones of colours [M, C], and measure their cells."""
        size, (c, levels) = len(self.colours), (self.space.channels, self.space.levels)
        place = colours.double() @ levels ** torch.arange(c, dtype=torch.float64, device=colours.device)
        _, which = place.unique(return_inverse=True)
        first = torch.full((int(which.max()) + 1,), len(place), device=which.device)
        first.scatter_reduce_(0, which, torch.arange(len(place), device=which.device), "amin")
        self.colours.copy_(colours[first.sort().values[:size]])
        self.count.zero_()
        self.low.fill_(levels)
        self.high.fill_(-1)
        # block by block: nearest to a colour of a block is only what is about as near to its middle
        side = max(1, round(512 ** (1 / c)))
        inside = torch.cartesian_prod(*[torch.arange(side)] * c).view(-1, c).to(self.colours)
        corners = torch.cartesian_prod(*[torch.arange(0, levels, side)] * c).view(-1, c).to(self.colours)
        for corner in corners.split(32):
            distance = torch.cdist(corner + (side - 1) / 2, self.colours)
            reach = distance.amin(1, keepdim=True) + (side - 1) * math.sqrt(c) + 1  # and room for rounding
            some = distance.topk(int((distance <= reach).sum(1).max()), largest=False).indices.sort(1).values
            block = corner[:, None] + inside  # [blocks, colours of each, C]
            within = (block < levels).all(-1)
            cell, block = some.gather(1, nearest(block, self.colours[some]))[within], block[within]
            self.count += cell.bincount(minlength=size)
            places = cell[:, None].expand_as(block)
            self.low.scatter_reduce_(0, places, block, "amin")
            self.high.scatter_reduce_(0, places, block, "amax")

    def encode(self, x: Tensor) -> Tensor:
        pixels = self._pixels(x).float()
        return nearest(pixels.flatten(0, 1), self.colours).view(pixels.shape[:2])[:, self.order]

    def known(self, known: Tensor) -> Tensor:
        if not torch.equal(known.all(1), known.any(1)):
            raise UsageError("A colour cannot be known by some of its channels.", "Give whole pixels.")
        return super().known(known)

    def decode(self, u: Tensor) -> Tensor:
        """In the palette's own colours: the inverse as far as there is one, ``encode`` gives u again."""
        return self._image(self.colours[u])

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Data [N, C, H, W] of steps u [N, H W]: each pixel uniform on its cell."""
        self._check()
        flat = u.flatten()
        colours, open_ = self.colours[flat], torch.arange(len(flat), device=flat.device)
        while len(open_):  # uniform on the box around the cell, until it falls into the cell
            low, high = self.low[flat[open_]], self.high[flat[open_]]
            r = torch.rand(low.shape, generator=generator, device=generator.device, dtype=torch.float64).to(low.device)
            tried = low + (r * (high - low + 1)).floor().to(low)
            hit = nearest(tried, self.colours) == flat[open_]
            colours[open_[hit]], open_ = tried[hit], open_[~hit]
        return self._image(colours.view(*u.shape, -1))

    def log_volume(self, u: Tensor) -> Tensor:
        """log of the number of colours in the cells of u, shaped like u."""
        self._check()
        return self.count.double().log()[u]

    def _check(self) -> None:
        if not bool(self.count.all()):
            raise UsageError("The palette has not been learned yet.", "Fit the model, or call prepare.")

    def _pixels(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, H W, C]."""
        return x.flatten(2).mT

    def _image(self, colours: Tensor) -> Tensor:
        """Colours [N, H W, C] in the order of the steps -> [N, C, H, W]."""
        x = colours[:, self.back].mT.reshape(len(colours), *self.space.event_shape)
        return x.to(self.space.dtype)


def nearest(x: Tensor, colours: Tensor) -> Tensor:
    """The number [..., M] of the nearest of colours [..., K, C] to each of x [..., M, C], the first of several.

    Of whole levels below 256 the sums are exact in float32.
    """
    bias, pieces = (colours**2).sum(-1)[..., None, :], x.split(4096, -2)  # that fit a processor's cache
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat([(bias - 2 * piece @ colours.mT).argmin(-1) for piece in pieces], -1)


def first_colours(size: int, space: Image) -> Tensor:
    """The first so many colours [size, C], counted through."""
    number = torch.arange(size)
    return torch.stack([number // space.levels**k % space.levels for k in range(space.channels)], 1).float()

"""A U-Net as the steps of a sampler run it on one or two images: weights, buffers and views made once.

At one image a pass is bound by its calls, not by arithmetic: a convolution in PyTorch turns its weights, pads, unfolds
and multiplies, each in memory of its own. Here a map is a matrix [N H W, C], and a 3x3 convolution is

    pad into a buffer, copy its windows [N H W, 9 C], one product with the weights [9 C, O]

"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.encoders import Encoded, told
from pofx.nn.transformer import Memory
from pofx.nn.unet import Block, UNet, fold, unfold

FEW = 2  # images; of more, oneDNN's convolutions are as fast


class UNetSteps:
    """A U-Net for many passes at the same weights. Called as the net is, it gives the same.

    Passes on few images without a gradient, whose rows share the embedding, run on buffers of their shape; all others
    are the net's own.
    """

    def __init__(self, net: UNet) -> None:
        self.net = net
        self.fixed: dict[tuple[int, int, int], _Fixed] = {}

    def __call__(self, x: Tensor, log_snr: Tensor, h: Encoded | None = None) -> Tensor:
        """x [N, C, H, W], log_snr [N] or [1], h with a vector [N, context] -> [N, C, H, W]"""
        n, _, height, width = x.shape
        alone = n == 1 or (n <= FEW and len(log_snr) == 1 and h is None)
        if torch.is_grad_enabled() or not alone or x.device.type != "cpu":
            return self.net(x, log_snr, h)
        shape = n, height, width
        if shape not in self.fixed:
            self.fixed[shape] = _Fixed(self.net, *shape)
        return self.fixed[shape](x, log_snr, h)


class _Fixed:
    """The net on images of one shape [n, C, height, width]."""

    def __init__(self, net: UNet, n: int, height: int, width: int) -> None:
        self.net, self.n = net, n
        size = height, width = -(-height // net.patch), -(-width // net.patch)
        self.size = size
        self.first = _Conv(net.first, n, size)
        sizes = [size]
        self.down, self.up = list[Callable[..., Tensor]](), list[Callable[..., Tensor]]()
        for layer in net.down:
            if isinstance(layer, Block):
                self.down.append(_Block(layer, n, size))
            else:
                conv = _Conv(layer, n, size)
                size = conv.size
                self.down.append(conv)
            sizes.append(size)
        self.middle = [_Block(layer, n, size) for layer in net.middle]  # type: ignore[arg-type]
        for layer in net.up:
            if isinstance(layer, Block):
                self.up.append(_Block(layer, n, size))
                sizes.pop()
            else:
                near, size = _nearest(n, size, sizes[-1]), sizes[-1]
                self.up.append(_Enlarged(near, _Conv(layer, n, size)))
        self.norm, self.last = _Norm(net.last[0], n, size), _Conv(net.last[2], n, size)

    def __call__(self, x: Tensor, log_snr: Tensor, h: Encoded | None) -> Tensor:
        net, (height, width) = self.net, x.shape[2:]
        films, memory = net.films(log_snr, h), told(h)
        x = self.first(fold(x, net.patch).movedim(1, -1))
        kept = [x]
        for layer in self.down:
            kept.append(x := layer(x, next(films), *memory) if isinstance(layer, _Block) else layer(x))
        for layer in self.middle:
            x = layer(x, next(films), *memory)
        for layer in self.up:
            if isinstance(layer, _Block):
                x = layer(torch.cat([x, kept.pop()], 1), next(films), *memory)
            else:
                x = layer(x)
        x = self.last(F.silu(self.norm(x, self.norm.weight, self.norm.bias), inplace=True))
        return unfold(x.view(self.n, *self.size, -1).movedim(-1, 1), net.patch, height, width)


class _Conv:
    """A 3x3 convolution of maps [n, *size, C], flat or not, to [n H W, O]."""

    def __init__(self, conv: nn.Module, n: int, size: tuple[int, int]) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        weight, bias, step = conv.weight, conv.bias, conv.stride[0]
        c, (h, w) = weight.shape[1], size
        self.size = -(-h // step), -(-w // step)
        self.weight = weight.permute(2, 3, 1, 0).reshape(9 * c, -1).contiguous()
        self.bias: Tensor = bias
        padded = weight.new_zeros(n, h + 2, w + 2, c)
        self.inside = padded[:, 1:-1, 1:-1]
        a, b, d, _ = padded.stride()
        # three neighbours in a row of the image lie side by side in memory
        self.windows = padded.as_strided((n, *self.size, 3, 3 * c), (a, step * b, step * d, b, 1))
        self.columns = weight.new_empty(n, *self.size, 3, 3 * c)
        self.matrix = self.columns.view(-1, 9 * c)

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The convolution; ``onto`` [n H W, O]: what it is added to, with the bias in it."""
        self.inside.copy_(x.view_as(self.inside) if x.ndim == 2 else x)
        self.columns.copy_(self.windows)
        return torch.addmm(self.bias if onto is None else onto, self.matrix, self.weight)


class _Norm:
    """A group norm of maps [n H W, C]."""

    def __init__(self, norm: nn.Module, n: int, size: tuple[int, int]) -> None:
        assert isinstance(norm, nn.GroupNorm)
        self.groups, self.eps, self.weight, self.bias = norm.num_groups, norm.eps, norm.weight, norm.bias
        self.shape, c = (n, *size), norm.num_channels
        self.pixels = size[0] * size[1]
        self.channels = c

    def __call__(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        maps = x.view(*self.shape, -1).movedim(-1, 1)
        y: Tensor = torch.native_group_norm(
            maps, gain, shift, self.shape[0], self.channels, self.pixels, self.groups, self.eps
        )[0]
        return y.movedim(1, -1).reshape(x.shape)


class _Block:
    """``Block`` on maps [n H W, C]."""

    def __init__(self, block: Block, n: int, size: tuple[int, int]) -> None:
        self.norm1, self.norm2 = _Norm(block.norm1, n, size), _Norm(block.norm2, n, size)
        self.conv1, self.conv2 = _Conv(block.conv1, n, size), _Conv(block.conv2, n, size)
        self.bias, self.skip = self.conv2.bias, None
        if block.skip is not None:
            self.skip, self.bias = block.skip.weight.T.contiguous(), block.skip.bias + self.bias
        self.attention, self.shape = block.attention, (n, *size)

    def __call__(self, x: Tensor, film: tuple[Tensor, Tensor], memory: Memory | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, self.norm1.weight, self.norm1.bias), inplace=True))
        y = F.silu(self.norm2(y, film[0][0], film[1][0]), inplace=True)
        y = self.conv2(y, x + self.bias if self.skip is None else torch.addmm(self.bias, x, self.skip))
        if self.attention is None:
            return y
        maps = self.attention(y.view(*self.shape, -1).movedim(-1, 1), memory)
        return maps.movedim(1, -1).reshape(y.shape)


class _Enlarged:
    """Each pixel repeated, as ``near`` says, then a convolution."""

    def __init__(self, near: Tensor, conv: _Conv) -> None:
        self.near, self.conv = near, conv

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x.index_select(0, self.near))


def _nearest(n: int, size: tuple[int, int], larger: tuple[int, int]) -> Tensor:
    """For each pixel of n larger maps, the row of the smaller ones' [n H W, C] that it repeats."""
    rows = torch.arange(n * size[0] * size[1], dtype=torch.float64).view(n, 1, *size)
    return F.interpolate(rows, size=larger, mode="nearest").long().flatten()

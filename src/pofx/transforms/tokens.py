"""Images and rows as sequences: a causal convolution, and affine maps of tokens by a causal transformer (TarFlow).

    z_t = (x_t - mu_t) exp(-alpha_t),   (mu_t, alpha_t) = net(x_1, ..., x_{t-1}, h)      (Zhai et al. 2024, section 2.3)

over T tokens x_t of w entries each: patches of an image, or groups of columns. A density costs one pass. The inverse
goes token by token with the net's cache, or by rounds of a fixed-point iteration over many tokens at once (Song, Meng,
Liao & Ermon 2021; Liu & Qin 2025): a triangular system of T equations is solved exactly after T rounds at the latest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.mlp import at_least_single, zeroed
from pofx.nn.transformer import Shape, Transformer
from pofx.transforms.base import SHRINKAGE, Noise, Step, Transform, implicit

CLOSE = 32  # units of rounding: a token that moves by no more, relative to its size or 1, has arrived
LARGEST = 1e6  # of a guess: the first rounds may throw later tokens anywhere, and the net must bear them
REACH = 3  # R, of a prediction from the pixels before
PART = 64  # images at once, of those looked at to find it
BORDER = (REACH, REACH, REACH, 0)  # left, right, above, below


class CausalConv(Transform):
    """z = x - prediction from the pixels before, over its error: a convolution whose matrix is triangular.

    Pixels come in raster order, their channels one after the other; a prediction is a linear one from the pixels of the
    R rows above and the R pixels to the left (Hoogeboom et al. 2019, section 3.1: autoregressive convolutions).
    Beyond the border all is zero.

    Args:
        shape: (C, H, W) of a row.

    Example:
        >>> import torch
        >>> conv = CausalConv((1, 4, 4))
        >>> x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).cumsum(1)
        >>> conv.prepare(x)
        >>> torch.allclose(conv.inverse(conv(x).z), x, atol=1e-4)
        True
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, channels = shape, shape[0]
        # of channel, channel seen, row, column; the last row is the pixel's own
        seen = torch.ones(channels, channels, REACH + 1, 2 * REACH + 1)
        seen[:, :, -1, REACH:] = 0
        seen[:, :, -1, REACH] = torch.ones(channels, channels).tril(-1)
        self.register_buffer("mask", seen, persistent=False)
        self.weight = nn.Parameter(torch.zeros_like(seen))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def kernel(self) -> Tensor:
        """[C, C, R + 1, 2 R + 1], its diagonal positive."""
        own = F.pad(self.log_scale.exp().diag()[:, :, None, None], BORDER)
        return self.mask * self.weight + own

    @torch.no_grad()
    def prepare(self, x: Tensor, h: Tensor | None = None) -> None:
        """Start as the best prediction in rows x [N, d], by least squares."""
        moments, own = torch.zeros((), dtype=torch.float64), self.log_scale.new_zeros(self.mask.shape[1:])
        pixels = len(x) * self.shape[1] * self.shape[2]
        for part in x.double().reshape(-1, *self.shape).split(PART):
            patches = F.unfold(F.pad(part, BORDER), own.shape[1:]).mT.flatten(0, 1)  # what each pixel sees, and itself
            moments = moments + patches.T @ patches / pixels
        for c, mask in enumerate(self.mask.flatten(1)):
            seen = mask.nonzero()[:, 0]
            target = (c * (REACH + 1) + REACH) * (2 * REACH + 1) + REACH
            inner, cross = moments[seen][:, seen], moments[seen, target]
            inner = inner + SHRINKAGE * inner.diagonal().clamp(min=SHRINKAGE).diag()  # borders may be constant
            weight = torch.linalg.solve(inner, cross)
            scale = (moments[target, target] - weight @ cross).clamp(min=SHRINKAGE).rsqrt()
            self.weight[c] = own.flatten().index_copy(0, seen, -(weight * scale).to(own)).view_as(own)
            self.log_scale[c] = scale.log()

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        image = F.pad(x.reshape(-1, *self.shape), BORDER)
        z = F.conv2d(image, self.kernel(), self.bias).flatten(1)
        return Step(z, (self.log_scale.sum() * (x.shape[1] // self.shape[0])).expand(len(x)))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Row by row: what the rows above predict is taken off, and the rest is a triangular system of one row."""
        _, height, width = self.shape
        kernel, z = self.kernel(), z.reshape(-1, *self.shape)
        above, own = kernel[:, :, :-1], kernel[:, :, -1]
        gap = torch.arange(width) - torch.arange(width)[:, None] + REACH  # of column seen from column
        within = own[:, :, gap.clamp(0, 2 * REACH)] * ((gap >= 0) & (gap <= REACH)).to(own)
        within = within.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)  # [W C, W C]
        rows = [z.new_zeros(len(z), z.shape[1], width)] * REACH
        for i in range(height):
            seen = F.pad(torch.stack(rows[-REACH:], 2), (REACH, REACH))
            rest = z[:, :, i] - F.conv2d(seen, above, self.bias)[:, :, 0]
            row = torch.linalg.solve_triangular(within, rest.mT.flatten(1).T, upper=False).T
            rows.append(row.unflatten(1, (width, -1)).mT)
        return torch.stack(rows[REACH:], 2).flatten(1)


class CausalAffine(Transform):
    """z_t = (x_t - mu_t) exp(-alpha_t) with the parameters of token t from a transformer over the tokens before it.

    The first token's come from h alone.

    Args:
        dim: d.
        tokens: [T, w], which entry of x each entry of a token is, all d once; d itself stands for a zero that fills up.
        shape: of the transformer, but for its block, which is T.
        context: width of h; 0 for none.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[0, 1], [2, 3], [4, 5]])  # of five entries
        >>> layer = CausalAffine(5, tokens, Shape(width=8, layers=1, n_heads=1, positions="learned"), context=0)
        >>> _ = torch.nn.init.normal_(layer.leave.weight, std=0.1)
        >>> x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(layer.inverse(layer(x).z), x, atol=1e-5)
        True
    """

    there: Tensor
    order: Tensor
    place: Tensor

    def __init__(self, dim: int, tokens: Tensor, shape: Shape, *, context: int) -> None:
        super().__init__()
        self.count, self.size = tokens.shape
        self.register_buffer("there", tokens < dim, persistent=False)
        self.register_buffer("order", tokens.flatten(), persistent=False)
        self.register_buffer("place", tokens.flatten().argsort(stable=True)[:dim], persistent=False)
        self.net = Transformer(shape, self.count)
        self.begin = nn.Parameter(torch.zeros(shape.width))
        self.enter = nn.Linear(2 * self.size, shape.width)
        self.context = nn.Linear(context, shape.width) if context else None
        self.leave = zeroed(nn.Linear(shape.width, 2 * self.size))

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        u = self._tokens(x)
        mu, alpha = self._affine(self.net(self._inputs(u, h)))
        return Step(self._row((u - mu) * (-alpha).exp()), -self._row(alpha).sum(1))

    def inverse(
        self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """``window`` is how many tokens are solved at once: 1 is one after the other, T all; None what is faster."""
        if window is None:  # on a CPU only the steps of a single row cost more than rounds that repeat work
            window = 1 if z.device.type == "cpu" and len(z) > 1 else self.count

        def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
            u = self._tokens(x)
            mu, alpha = self._affine(self.net(self._inputs(u, h)))
            slope = (-alpha).exp()
            return self._row((u - mu) * slope), self._row(slope)

        return implicit(self._row(self._solved(self._tokens(z), h, window)), z, slopes)

    @torch.no_grad()
    def _solved(self, z: Tensor, h: Tensor | None, window: int) -> Tensor:
        """The tokens x [N, T, w] of z [N, T, w], in rounds over a window that moves along them.

        A round puts x_t = mu_t + z_t exp(alpha_t) for the tokens of the window, with mu and alpha of the last guess.
        Its first token then is right, since all before it are, and so is each further one as long as none before it
        has moved. These leave the window, the cache keeps what the net made of them, and as many new ones come in.
        """
        x, cache, first = z.clone(), self.net.cache(len(z), self.count), 0
        close = CLOSE * torch.finfo(z.dtype).eps
        while first < self.count:
            last = min(first + window, self.count)
            mu, alpha = self._affine(cache.extend(self._inputs(x, h, first, last)))
            new = torch.addcmul(mu, z[:, first:last], alpha.exp()) * self.there[first:last]
            right = 1
            if last - first > 1:
                near = (new - x[:, first:last]).abs() <= close * new.abs().clamp(min=1)
                right += int(near[:, : last - first - 1].all(2).all(0).long().cumprod(0).sum())
                x[:, first:last] = new.nan_to_num().clamp(-LARGEST, LARGEST)
            x[:, first : first + right] = new[:, :right]
            cache.rewind(last - first - right)
            first += right
        return x

    def _inputs(self, u: Tensor, h: Tensor | None, first: int = 0, last: int | None = None) -> Tensor:
        """The net's inputs ``first`` to ``last`` for tokens u [N, T, w]: each is the token before, after a beginning.

        Sizes are told beside numbers: how far the last tokens strayed tells how far the next one will.
        """
        last = self.count if last is None else last
        u = u[:, max(0, first - 1) : last - 1]
        seen = self.enter(torch.cat([u, u.abs()], 2))
        inputs = seen if first else torch.cat([self.begin.expand(len(u), 1, -1), seen], 1)
        if self.context is None:
            return inputs
        assert h is not None
        return inputs + self.context(h)[:, None]

    def _affine(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """mu and alpha, each [N, L, w], of the net's outputs."""
        mu, alpha = at_least_single(self.leave(y)).chunk(2, -1)
        return mu, alpha

    def _tokens(self, x: Tensor) -> Tensor:
        """[N, T, w] of [N, d]."""
        full = torch.cat([x.T, x.new_zeros(1, len(x))]) if len(self.place) < len(self.order) else x.T
        return full.index_select(0, self.order).T.reshape(-1, self.count, self.size)

    def _row(self, u: Tensor) -> Tensor:
        """[N, d] of [N, T, w]."""
        return u.flatten(1).T.index_select(0, self.place).T

"""Transforms of a row as a sequence of tokens: a causal transformer gives each token's affine map (TarFlow).

    z_t = (x_t - mu_t) exp(-alpha_t),   (mu_t, alpha_t) = net(x_1, ..., x_{t-1}, h)      (Zhai et al. 2024, eq. 4-6)

over T tokens x_t of w entries each: the patches of an image, or groups of columns. A density costs one pass. The
inverse is sequential by nature; ``CausalAffine`` solves a window of tokens at once by fixed-point rounds, since most
tokens hang on the last few before them only weakly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.nn.mlp import at_least_single, zeroed
from pofx.nn.transformer import Shape, Transformer
from pofx.transforms.base import LuLinear, Noise, Step, Transform, implicit

CLOSE = 32  # units of rounding: a token that moved by less, relative to 1 or its size, has arrived
LARGEST = 1e6  # of a guess: the first rounds may throw later tokens anywhere


class Patchwise(Transform):
    """Entries put into the order of their tokens, and one linear map of all tokens.

    Args:
        tokens: [T, w], which entry of x each entry of a token is: a permutation of all d.

    Example:
        >>> import torch
        >>> patches = Patchwise(torch.tensor([[0, 2], [1, 3]]))
        >>> _ = patches.linear.permutation.copy_(torch.arange(2))
        >>> patches(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).z
        tensor([[1., 3., 2., 4.]], grad_fn=<ViewBackward0>)
    """

    order: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.count, self.size = tokens.shape
        self.register_buffer("order", tokens.flatten(), persistent=False)
        self.linear = LuLinear(self.size)

    def whiten(self, x: Tensor) -> float:
        """Start as the map that gives the tokens of all places together mean 0 and covariance I; see ``LuLinear``."""
        return self.linear.whiten(self._tokens(x))

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        step = self.linear(self._tokens(x))
        return Step(step.z.reshape(x.shape), step.log_term.reshape(-1, self.count).sum(1))

    def inverse(self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        x = self.linear.inverse(z.reshape(-1, self.size)).reshape(z.shape)
        return x.T[self.order.argsort()].T

    def _tokens(self, x: Tensor) -> Tensor:
        """[N T, w] of [N, d]."""
        return x.T[self.order].T.reshape(-1, self.size)


class CausalAffine(Transform):
    """z_t = (x_t - mu_t) exp(-alpha_t) with the parameters of token t from a transformer over the tokens before it.

    The first token's come from h alone. Entries that do not fill the last token are filled up with zeros.

    Args:
        dim: d.
        size: w, entries of a token.
        shape: of the transformer, but for its block: T = d / w, rounded up.
        context: width of h; 0 for none.
        reverse: a token sees those after it, instead of those before.

    Example:
        >>> import torch
        >>> layer = CausalAffine(5, 2, Shape(width=8, layers=1, n_heads=1, positions="learned"), context=0)
        >>> _ = torch.nn.init.normal_(layer.leave.weight)
        >>> x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(layer.inverse(layer(x).z), x, atol=1e-5)
        True
    """

    def __init__(self, dim: int, size: int, shape: Shape, *, context: int, reverse: bool = False) -> None:
        super().__init__()
        self.dim, self.size, self.count, self.reverse = dim, size, -(-dim // size), reverse
        self.net = Transformer(shape, self.count)
        self.begin = nn.Parameter(torch.zeros(shape.width))
        self.enter = nn.Linear(size, shape.width)
        self.context = nn.Linear(context, shape.width) if context else None
        self.leave = zeroed(nn.Linear(shape.width, 2 * size))

    def forward(self, x: Tensor, h: Tensor | None = None, noise: Noise | None = None) -> Step:
        u = self._tokens(x)
        mu, alpha = self._affine(self.net(self._inputs(u, h)))
        return Step(self._row((u - mu) * (-alpha).exp()), -self._row(alpha).sum(1))

    def inverse(
        self, z: Tensor, h: Tensor | None = None, out: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """``window`` is how many tokens are solved at once: 1 is one after the other, None what is fastest."""

        def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
            u = self._tokens(x)
            mu, alpha = self._affine(self.net(self._inputs(u, h)))
            slope = (-alpha).exp()
            return self._row((u - mu) * slope), self._row(slope)

        return implicit(self._row(self._solved(self._tokens(z), h, window or self.window(len(z)))), z, slopes)

    def window(self, n: int) -> int:
        return self.count

    @torch.no_grad()
    def _solved(self, z: Tensor, h: Tensor | None, window: int) -> Tensor:
        """The tokens x [N, T, w] of z, by fixed-point rounds over a window that moves along.

        A round puts x_t = mu_t + z_t exp(alpha_t) under the current guess. The first token of a window then is right,
        since all before it are; so is each further one as long as none before it has moved. They leave the window,
        the cache keeps what the net made of them, and as many new ones come in: T rounds at the most.
        """
        x, cache, first, rounds = z.clone(), self.net.cache(len(z), self.count), 0, 0
        close = CLOSE * torch.finfo(z.dtype).eps
        while first < self.count:
            last = min(first + window, self.count)
            mu, alpha = self._affine(cache.extend(self._inputs(x, h, first, last)))
            new = torch.addcmul(mu, z[:, first:last], alpha.exp())
            if last - first == 1:
                kept = 1
            else:
                new = new.nan_to_num().clamp(-LARGEST, LARGEST)
                moved = ((new - x[:, first:last]).abs() > close * new.abs().clamp(min=1)).any(2).any(0)
                kept = 1 + int((~moved[:-1]).long().cumprod(0).sum())
            x[:, first:last] = new
            cache.rewind(last - first - kept)
            first, rounds = first + kept, rounds + 1
        self.rounds = rounds
        return x

    def _inputs(self, u: Tensor, h: Tensor | None, first: int = 0, last: int | None = None) -> Tensor:
        """The net's inputs ``first`` to ``last`` for tokens u [N, T, w]: each is the token before, after a beginning."""
        last = self.count if last is None else last
        seen = self.enter(u[:, max(0, first - 1) : last - 1])
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
        """[N, T, w] of [N, d], in the order that the net sees."""
        u = F.pad(x, (0, self.count * self.size - self.dim)).reshape(-1, self.count, self.size)
        return u.flip(1) if self.reverse else u

    def _row(self, u: Tensor) -> Tensor:
        """[N, d] of [N, T, w]."""
        return (u.flip(1) if self.reverse else u).flatten(1)[:, : self.dim]

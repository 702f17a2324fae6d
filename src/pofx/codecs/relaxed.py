"""Raw data <-> numbers that a net puts out with a gradient: what a generator makes and a critic judges.

Levels, grids, categories and missing entries are made discrete on the way out, as data are, and their gradient passes
straight through (Bengio et al. 2013); choices are drawn by the Gumbel-softmax (Jang et al. 2017; Maddison et al. 2017).
Numbers of several modes may be told by their mode, and their place in it (Xu et al. 2019).
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.columns import Columns, as_event
from pofx.core.space import Space
from pofx.nn.numbers import on_grid
from pofx.spaces import Image
from pofx.transforms.entrywise import Standardise

FIT_ROWS = 2000  # rows that mixtures are fitted to, drawn where there are more or where they have weights
LEAST = math.log(0.005)  # weight of a component that counts


class Relaxed(nn.Module):
    """The map of one space.

    Attributes:
        size: numbers of a row as the critic sees it, and of the generator's output.
        uniforms: random numbers that making one row discrete takes.
    """

    size: int
    uniforms: int

    def prepare(self, x: Tensor, weight: Tensor | None) -> None:
        """Look at the training rows once: scales, where there are any."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Real rows [N, *E] as the critic sees them [N, size]."""

    @abstractmethod
    def emit(self, raw: Tensor, u: Tensor) -> Tensor:
        """Outputs of the generator's net [N, size] -> what the critic sees; u [N, uniforms] in (0, 1)."""

    @abstractmethod
    def rows(self, y: Tensor) -> Tensor:
        """The inverse of ``encode``."""


class RelaxedLevels(Relaxed):
    """Levels 0 .. n-1 as numbers in [-1, 1], flat; the generator's outputs go through tanh onto them.

    Two levels are a choice, not a rounded number: the output is its log-odds, drawn by the binary case of the
    Gumbel-softmax (Maddison et al. 2017, appendix B). A deterministic threshold would soon be stuck on one side.
    """

    def __init__(self, space: Image, temperature: float) -> None:
        super().__init__()
        self.space, self.top, self.temperature = space, space.levels - 1, temperature
        self.size, self.uniforms = space.dims, space.dims if space.levels == 2 else 0

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(torch.get_default_dtype()) * (2 / self.top) - 1

    def emit(self, raw: Tensor, u: Tensor) -> Tensor:
        if self.uniforms:
            raw = (raw + u.clamp(1e-7, 1 - 1e-7).logit()) / (2 * self.temperature)  # tanh(r / 2) = 2 sigma(r) - 1
        y = raw.tanh()
        return straight_through(((y + 1) * (self.top / 2)).round() * (2 / self.top) - 1, y)

    def rows(self, y: Tensor) -> Tensor:
        return as_event(self.space, ((y + 1) * (self.top / 2)).round())


class Modes(nn.Module):
    """Standardised numbers as the component of a mixture that each most likely is of, and its place in there.

    The mode-specific normalisation of Xu et al. 2019 (section 4.2) with the likeliest component, not a drawn one, so
    that a number is seen in one way only.
    """

    mean: Tensor
    scale: Tensor
    log_weight: Tensor

    def __init__(self, numbers: int, modes: int) -> None:
        super().__init__()
        self.numbers, self.most = numbers, modes
        self.register_buffer("mean", torch.zeros(numbers, modes, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(numbers, modes, dtype=torch.float64))
        self.register_buffer("log_weight", torch.zeros(numbers, modes, dtype=torch.float64))

    def fit(self, z: Tensor, weight: Tensor | None) -> None:
        """Fit the mixtures to numbers z [N, numbers], NaN where missing; components that hold next to none have no
        weight."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import BayesianGaussianMixture

        rows = torch.arange(len(z))
        if weight is not None or len(z) > FIT_ROWS:
            mass = torch.ones(len(z)) if weight is None else weight.float().cpu()
            rows = torch.multinomial(mass, FIT_ROWS, True, generator=torch.Generator().manual_seed(0))
        for j, column in enumerate(z[rows.to(z.device)].cpu().unbind(1)):
            seen = column[column.isfinite()]
            most = min(self.most, len(seen.unique()))
            if most < 2:
                self.log_weight[j, 1:] = -torch.inf  # one component, at 0 with scale 1
                continue
            mixture = BayesianGaussianMixture(
                n_components=most, covariance_type="spherical", weight_concentration_prior=1e-3,
                mean_precision_prior=1e-3, covariance_prior=1e-4, reg_covar=1e-6, random_state=0,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # any mixture will do
                mixture.fit(seen[:, None].numpy())
            held = torch.from_numpy(mixture.weights_).log()
            self.log_weight[j, :most] = held.where(held > LEAST, -torch.inf)
            self.log_weight[j, most:] = -torch.inf
            self.mean[j, :most] = torch.from_numpy(mixture.means_[:, 0])
            self.scale[j, :most] = torch.from_numpy(mixture.covariances_).sqrt()

    def encode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Places [N, numbers] (standardised within the component) and components [N, numbers] of z; missing: 0, 0."""
        place = (z[..., None] - self.mean) / self.scale
        code = (self.log_weight - self.scale.log() - 0.5 * place.square()).nan_to_num(nan=-torch.inf).argmax(-1)
        return place.gather(-1, code[..., None])[..., 0].nan_to_num(nan=0.0), code

    def decode(self, place: Tensor, code: Tensor) -> Tensor:
        """The inverse of ``encode`` for numbers that are there."""
        mean, scale = (t.expand(*code.shape, -1).gather(-1, code[..., None])[..., 0] for t in (self.mean, self.scale))
        return mean + scale * place


class RelaxedColumns(Relaxed):
    """A row as numbers, then one-hot choices: of each number the mode, of each category, and missing or not.

    A number is its place in its mode (see ``Modes``), where ``modes`` is 2 or more; else it is standardised.
    """

    slot: Tensor

    def __init__(self, space: Space, temperature: float, modes: int = 1) -> None:
        super().__init__()
        self.space, self.temperature, self.columns = space, temperature, Columns(space, atoms=False)
        self.numbers = len(self.columns.reals)
        self.modes = Modes(self.numbers, modes) if modes > 1 and self.numbers else None
        self.of_modes = self.numbers if self.modes is not None else 0  # the first of all choices
        sizes = [modes] * self.of_modes + [code.size for code in self.columns.codes]
        slot = torch.arange(max(sizes, default=1)) < torch.tensor(sizes).view(-1, 1)
        self.register_buffer("slot", slot, persistent=False)
        # of the numbers that may be missing: the place of the choice, and of the number
        codes = enumerate(self.columns.codes, self.of_modes)
        self.nullable = [(k, code.real) for k, code in codes if code.real >= 0]
        self.uniforms = sum(sizes)
        self.size = self.numbers + self.uniforms
        self.standard = Standardise(self.numbers)

    def prepare(self, x: Tensor, weight: Tensor | None) -> None:
        v = self.columns.split(x)[0]
        self.standard.fit(v, weight)
        if self.modes is not None:
            self.modes.fit(self.standard(v).z, weight)

    def encode(self, x: Tensor) -> Tensor:
        v, codes = self.columns.split(x)
        z = self.standard(v).z
        if self.modes is None:
            chosen = F.one_hot(codes, self.slot.shape[1])
        else:
            there = z.isfinite()
            z, code = self.modes.encode(z)
            chosen = F.one_hot(torch.cat([code, codes], 1), self.slot.shape[1])
            chosen[:, : self.of_modes] *= there[..., None]
        return torch.cat([z.nan_to_num(nan=0.0), chosen[:, self.slot]], 1).to(torch.get_default_dtype())

    def emit(self, raw: Tensor, u: Tensor) -> Tensor:
        y, logits = raw.split([self.numbers, self.uniforms], 1)
        gumbel = -(-u.clamp(1e-7, 1 - 1e-7).log()).log()
        padded = self._padded((logits + gumbel) / self.temperature)
        if self.modes is not None:
            unused = self.modes.log_weight.isinf()
            padded[:, : self.of_modes, : self.modes.most].masked_fill_(unused, -torch.inf)
        soft = padded.softmax(-1)
        code = soft.argmax(-1)
        z = y.double() if self.modes is None else self.modes.decode(y.double(), code[:, : self.of_modes])
        loc, scale = self.standard.loc, self.standard.scale
        z = on_grid(z, self.columns.step / scale, (self.columns.origin - loc) / scale)
        if self.modes is not None:  # a number near another mode is seen as that one's
            z, code[:, : self.of_modes] = self.modes.encode(z)
        y = straight_through(z.to(y.dtype), y)
        chosen = straight_through(F.one_hot(code, soft.shape[-1]).to(soft), soft)
        if self.nullable:
            there = torch.ones_like(y)
            for choice, number in self.nullable:
                there[:, number] = chosen[:, choice, 0]
            y = y * there
            rest = torch.ones_like(chosen[:, self.of_modes :, 0])  # what is no mode stands as it is
            chosen = chosen * torch.cat([there[:, : self.of_modes], rest], 1)[..., None]
        return torch.cat([y, chosen[:, self.slot]], 1)

    def rows(self, y: Tensor) -> Tensor:
        z, chosen = y.split([self.numbers, self.uniforms], 1)
        code, z = self._padded(chosen).argmax(-1), z.double()
        z = z if self.modes is None else self.modes.decode(z, code[:, : self.of_modes])
        return as_event(self.space, self.columns.join(self.standard.inverse(z), code[:, self.of_modes :]))

    def _padded(self, choices: Tensor) -> Tensor:
        """[N, uniforms] as [N, choices, widest]."""
        padded = choices.new_full((len(choices), *self.slot.shape), -torch.inf)
        padded[:, self.slot] = choices
        return padded


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """``value`` forwards, the gradient of ``gradient`` backwards."""
    return value.detach() + (gradient - gradient.detach())


@singledispatch
def relaxed(space: Space, temperature: float, modes: int = 1) -> Relaxed:
    """The map of ``space``, which has columns unless it has a map of its own."""
    return RelaxedColumns(space, temperature, modes)


@relaxed.register
def _(space: Image, temperature: float, modes: int = 1) -> Relaxed:
    return RelaxedLevels(space, temperature)

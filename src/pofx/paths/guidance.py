"""Guidance: what is drawn of a path model is made to agree with something else, by Bayes' rule.

A sampler sees a denoiser alone, and with it the slope of the noised data's log-density (Tweedie's formula):

    E[x | z] = (z + sigma^2 grad_z log p(z)) / alpha,      log p(z | y) = log p(z) + log p(y | z) + const, so that
    E[x | z, y] = E[x | z] + sigma^2 / alpha grad_z log p(y | z)

Every guidance turns a denoiser into another by this rule:

    ClassifierFree  p(y | z) ~ p(z | y) / p(z) of one model         Ho & Salimans 2022; Kynkaanniemi et al. 2024
    ByClassifier    p(y | z) of a classifier of noised data         Dhariwal & Nichol 2021
    Autoguidance    the ratio of the model to a weaker one          Karras et al. 2024
    Linear          p(y | z) of y = A x + noise in raw units        Chung 2023, Song 2023, Rozet 2024 and others
    Inpainting      some values of x                                the same; Song et al. 2021, appendix I.2
    From            begins at a noised datum                        Meng et al. 2022

A scale other than 1 weighs the last term. Above 1 samples are sharper, and of no posterior: noised, p(x) p(y | x)^scale
is not what the guided denoiser is of. Of ``Linear`` and ``Inpainting`` p(y | z) is unknown, and each method says what
it takes for it: "gaussian" where it is fitted, and "jacobian", are exact for Gaussian data, the others for none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from pofx.core.errors import BadValue, Unsupported, UsageError, WrongShape
from pofx.core.noise import RowNoise
from pofx.core.options import Options, Range
from pofx.core.space import Space, take
from pofx.nn.encoders import Encoded
from pofx.paths.predict import Denoise, point
from pofx.paths.schedule import Point


@dataclass(frozen=True)
class Drawing:
    """n rows that ``model``, a ``families.path.PathModel``, draws at once given h."""

    model: Any
    h: Encoded | None
    n: int
    generator: torch.Generator

    @cached_property
    def noise(self) -> RowNoise:
        """What is random in data that guide: what draws nothing leaves the generator alone."""
        return RowNoise.by_place(self.n, self.generator)

    def point(self, t: Tensor, like: Tensor) -> Point:
        return point(self.model.schedule, t, like)

    def each(self, x: Tensor, event: tuple[int, ...], what: str) -> Tensor:
        """x [*E], or one for each draw [n, *E], as [n, *E]. Raises WrongShape."""
        if tuple(x.shape) not in (event, (self.n, *event)):
            raise WrongShape(
                f"{what} has shape {tuple(x.shape)}; it must be {event}, or so for each of {self.n} rows.",
                "Give one for all, or one for each row that is drawn at once.",
            )
        return x.to(self.model.device).expand(self.n, *event)

    def standardised(self, x: Tensor) -> Tensor:
        """Raw rows x [n, *E] as the path has them [n, *shape], their cells filled at random."""
        y: Tensor = self.model.split(x, self.noise).y
        return y.reshape(-1, *self.model.shape)


class Guidance(Options, ABC):
    """Base: changes the denoiser, or where sampling begins. Data given to it are in raw units."""

    @abstractmethod
    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        """The denoiser E[x | z, y] for that of E[x | z]. Raises UsageError or Unsupported where it does not fit."""

    def start(self, times: Tensor, z: Tensor, on: Drawing) -> tuple[Tensor, Tensor]:
        """The times [steps + 1] to go through, and z [n, *E] at the first of them."""
        return times, z


def guidances(asked: Any) -> tuple[Guidance, ...]:
    """What a sampler's ``guidance`` stands for: none, a scale of classifier-free guidance, one, or several in order."""
    if asked is None:
        return ()
    every = asked if isinstance(asked, tuple) else (asked,)
    found = tuple(ClassifierFree(float(g)) if isinstance(g, int | float) else g for g in every)
    if wrong := [g for g in found if not isinstance(g, Guidance)]:
        raise UsageError(f"{wrong[0]!r} is no guidance.", "Give a scale, or one of pofx.paths.guidance.")
    return found


def beyond(x: Tensor, origin: Tensor, scale: float) -> Tensor:
    """From ``origin`` towards x, ``scale`` times as far."""
    return origin + scale * (x - origin)


# -- by a label, a context, or a weaker model ----------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """E[x | z] + scale (E[x | z, c] - E[x | z]): p(c | z) is the ratio of what one model knows with c and without.

    Of a model of p(x | c) that was fitted with ``context_dropout``. Scale 1 is the model of p(x | c) itself, 0 that of
    p(x); w of Ho & Salimans 2022 (eq. 6) is scale - 1.

    Attributes:
        scale: how far.
        low, high: guided only where the noise, in standard deviations of the data, is above ``low`` and at most
            ``high`` [default: any]; p(x | c) is followed elsewhere (Kynkaanniemi et al. 2024).
    """

    scale: float
    low: float = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high is not None and self.high <= self.low:
            raise UsageError(f"No noise is above {self.low:g} and at most {self.high:g}.", "Swap low and high.")

    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        if on.h is None:
            raise UsageError(
                f"This {on.model.name} takes no context, so there is none to guide by.",
                "Fit one with a context (--given) and --options.context-dropout, or leave out guidance.",
            )
        without = on.model.denoiser(on.model.null_context(on.n))
        high = math.inf if self.high is None else self.high

        def guide(z: Tensor, t: Tensor) -> Tensor:
            x, p = denoise(z, t), on.point(t, z)
            inside = (p.sigma > self.low * p.alpha) & (p.sigma <= high * p.alpha)
            return torch.where(inside, beyond(x, without(z, t), self.scale), x) if inside.any() else x

        return guide


@dataclass(frozen=True)
class ByClassifier(Guidance):
    """E[x | z] + scale sigma^2 / alpha grad_z log p(label | z), by a classifier of noised data.

    At scale 1, with both nets perfect, exactly the posterior p(x | label).

    Attributes:
        model: a ``classifier`` of what the path model is of, fitted on the same rows with the option ``noised``.
        label: that samples are to have, one for all [] or one for each [n], or its spelling.
        scale: how far.
    """

    model: Any
    label: Any
    scale: float = 1.0

    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        guide_of: Any = getattr(self.model, "noised_log_probs", None)
        if guide_of is None or self.model.preprocess is None:
            raise Unsupported(
                f"This {getattr(self.model, 'name', 'guide')} has seen no noised data, so it knows nothing of what "
                "a sampler goes through.",
                "Fit a classifier with --options.noised.",
            )
        _in_the_same_units(self.model, self.model.context, on)
        path = on.model.schedule
        if path.largest > self.model.config.largest or path.smallest < self.model.config.smallest:
            raise UsageError(
                f"The classifier has seen noise from {self.model.config.smallest:g} to {self.model.config.largest:g}; "
                f"the path goes from {path.smallest:g} to {path.largest:g}.",
                "Fit it with smallest and largest around these.",
            )
        label = take(self.model.space, self.label)
        self.model.space.check(label)
        rows = on.each(label, (), "label")

        def guide(z: Tensor, t: Tensor) -> Tensor:
            p = on.point(t, z)
            log_snr = 2 * (p.alpha.log() - p.sigma.log()).flatten().expand(len(z))

            def log_prob(z: Tensor) -> Tensor:
                every: Tensor = guide_of((z / p.scale).flatten(1), log_snr)
                return every.gather(1, rows[:, None])

            return denoise(z, t) + self.scale * p.sigma**2 / p.alpha * _gradient(log_prob, z)

        return guide


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """D_weak + scale (D - D_weak): away from what a weaker model of the same data gets wrong (Karras et al. 2024).

    At scale 1 the model itself. Else it has no posterior: what it draws is sharper, and as good as it looks.

    Attributes:
        weaker: a path model of the same data, fitted on the same rows, smaller or for less time; of any schedule.
        scale: how far.
    """

    weaker: Any
    scale: float

    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        weaker = self.weaker
        if not hasattr(weaker, "denoiser"):
            raise Unsupported(f"A {getattr(weaker, 'name', 'guide')} denoises nothing.", "Guide by a path model.")
        _in_the_same_units(weaker, weaker.space, on)
        if (weaker.context is None) != (on.h is None) or (on.h is not None and weaker.context != on.model.context):
            raise UsageError(f"The weaker {weaker.name} has another context.", "Fit both with the same.")
        h = None
        if on.h is not None:
            h = weaker.null_context(on.n) if on.h.raw is None else weaker.encode_context(on.h.raw)
        of_weaker, path = weaker.denoiser(h), weaker.schedule

        def guide(z: Tensor, t: Tensor) -> Tensor:
            here, at = on.point(t, z), path.time(on.model.schedule.log_snr(t.double()).clamp(*path.ends))
            there = point(path, at, z)  # the same noise, in other units
            origin = of_weaker((z / here.scale * there.scale).reshape(-1, *weaker.shape), at).reshape(z.shape)
            return beyond(denoise(z, t), origin, self.scale)

        return guide


# -- by a measurement ----------------------------------------------------------------------------------------

Method = Literal["gaussian", "jacobian", "dps"]


@dataclass(frozen=True)
class Measurement:
    """What a denoised x [n, *E] leaves unexplained, and the measurement's linear part there and its adjoint."""

    residual: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def posterior(
    denoise: Denoise,
    measure: Callable[[Tensor], Measurement],
    variance: float,
    method: Method,
    iterations: int,
    on: Drawing,
) -> Denoise:
    """The denoiser given y = A x + noise of a variance, with p(x | z) taken for a Gaussian about D = E[x | z]:

        p(y | z) = N(y; A D, A C A' + variance I),     E[x | z, y] = D + C A' (A C A' + variance I)^-1 (y - A D)

    where C = Cov[x | z] = sigma^2 / alpha dD/dz (Tweedie's formula, once more). ``method`` is what stands for C between
    A and A': that of the data's Gaussian (Song et al. 2023, section 3.2, there of N(0, I)), the denoiser's own Jacobian
    (Rozet et al. 2024, section 3), or nothing (Chung et al. 2023, eq. 11, whose step is then 1 / variance). C before A'
    is the denoiser's own in all, one pass back. The system is solved by conjugate gradients.

    A Jacobian that a network has learned is not quite symmetric: with many ``iterations`` it leads astray.
    """

    def guide(z: Tensor, t: Tensor) -> Tensor:
        p = on.point(t, z)
        with torch.enable_grad():
            at = z if z.requires_grad else z.detach().requires_grad_()
            x = denoise(at, t)

            def jacobian(u: Tensor) -> Tensor:  # symmetric, so that a pass back is one ahead
                return torch.autograd.grad(x, at, u, retain_graph=True, create_graph=z.requires_grad)[0]

            m = measure(x if z.requires_grad else x.detach())

            def system(v: Tensor) -> Tensor:  # everything is divided by sigma^2 / alpha
                rest = (variance * p.alpha / p.sigma**2).view(-1, *[1] * (v.ndim - 1)) * v
                if method == "dps":
                    return rest
                u = m.adjoint(v)
                return m.forward(jacobian(u) if method == "jacobian" else on.model.gaussian.gain(u, p)) + rest

            return x + jacobian(m.adjoint(conjugate_gradients(system, m.residual, iterations)))

    return lambda z, t: guide(z, t) if z.requires_grad else guide(z, t).detach()


def conjugate_gradients(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """v with system(v) = b, row by row [n, ...], for a symmetric positive map (Hestenes & Stiefel 1952).

    A row stops where it is solved to rounding, or where the map curves downwards, as a network's may.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, 2.0]])
        >>> (conjugate_gradients(lambda v: v @ a, b, 2) @ a).round(decimals=5)
        tensor([[1., 2.]])
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    v, rest, along = torch.zeros_like(b), b, b
    square = first = dot(b, b)
    for _ in range(iterations):
        unsolved = square > torch.finfo(b.dtype).eps ** 2 * first
        if not unsolved.any():
            break
        moved = system(along)
        curvature = dot(along, moved)
        going = unsolved & (curvature > 0)
        step = torch.where(going, square / torch.where(going, curvature, 1), 0)
        v, rest = v + step * along, rest - step * moved
        new = dot(rest, rest)
        along, square = rest + torch.where(going, new / torch.where(going, square, 1), 0) * along, new
    return v


@dataclass(frozen=True)
class Linear(Guidance):
    """Samples of p(x | y) for y = A x + noise n, n ~ N(0, I), all in raw units: a blur, a sum of columns, fewer pixels.

    Attributes:
        matrix: A [m, d] of flattened x (pixels channel by channel).
        y: [m], or one for each draw [n, m].
        noise: of y, in its units; "dps" needs some.
        method: what stands for the covariance of x given z (``posterior``).
        iterations: of conjugate gradients; "jacobian" takes a pass back in each.
    """

    matrix: Tensor
    y: Tensor
    noise: float = 0.0
    method: Method = "gaussian"
    iterations: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _noise_of_dps(self.method, self.noise)

    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        matrix = torch.as_tensor(self.matrix, dtype=torch.float64, device=on.model.device)
        if matrix.ndim != 2 or matrix.shape[1] != on.model.space.dims:
            raise WrongShape(
                f"The matrix has shape {tuple(matrix.shape)}; x has {on.model.space.dims} numbers.",
                "Give one row for each number of y, and one column for each of x.",
            )
        y = on.each(torch.as_tensor(self.y, dtype=torch.float64), (len(matrix),), "y")
        if not (matrix.isfinite().all() and y.isfinite().all()):
            raise BadValue("The matrix or y holds what is no finite number.", "Measure what is there.")

        def measure(x: Tensor) -> Measurement:
            flat = x.flatten(1)
            values = on.model.preprocess.values(flat.double())
            # every value depends on its own number alone: their slopes are the diagonal of a Jacobian
            slope = _gradient(on.model.preprocess.values, flat.double())
            seen = slope[:, None] * matrix  # [n, m, d]
            return Measurement(
                (y - values @ matrix.T).to(x),
                lambda u: torch.einsum("nmd,nd->nm", seen.to(u), u.flatten(1)),
                lambda v: torch.einsum("nmd,nm->nd", seen.to(v), v).reshape(x.shape),
            )

        return posterior(denoise, measure, self.noise**2, self.method, self.iterations, on)


@dataclass(frozen=True)
class Inpainting(Guidance):
    """Samples of p(rest | known) of a datum that is known in part, approximately.

    Known values come out as they are to the path's smallest noise; ``Conditional.complete`` keeps them as they are.

    Attributes:
        x: a datum [*E], or one for each draw [n, *E]; what is not known may hold anything.
        known: booleans [*E] or [n, *E].
        method: "gaussian", "jacobian": by ``posterior`` without noise. "replacement": known values alone are put in
            their places, noised, and the denoiser makes the rest fit (Song et al. 2021, appendix I.2): no pass back,
            but what is drawn early does not know them well.
        iterations: of conjugate gradients.
    """

    x: Any
    known: Tensor
    method: Literal["gaussian", "jacobian", "replacement"] = "gaussian"
    iterations: int = 8

    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        model, event = on.model, tuple(on.model.space.event_shape)
        if self.known.dtype != torch.bool:
            raise WrongShape(f"known has dtype {self.known.dtype}.", "Give one boolean for each value.")
        x = on.each(take(model.space, self.x), event, "x")
        known = on.each(self.known, event, "known")
        middle = model.preprocess.join(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, model.dim)).to(x)
        x = torch.where(known, x, middle)
        model.space.check(x)
        y, mask = on.standardised(x), known.reshape(-1, *model.shape)
        if self.method == "replacement":
            return lambda z, t: torch.where(mask, y.to(z), denoise(z, t))

        def measure(x: Tensor) -> Measurement:
            return Measurement(mask * (y.to(x) - x), lambda u: mask * u, lambda v: mask * v)

        return posterior(denoise, measure, 0.0, self.method, self.iterations, on)


# -- from a datum --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class From(Guidance):
    """Sampling begins at a datum with noise added (SDEdit, Meng et al. 2022, algorithm 1): what is drawn resembles it.

    The less noise, the more. Where the noise is the largest that the path has, it is forgotten.

    Attributes:
        x: a datum [*E], or one for each draw [n, *E].
        noise: in standard deviations of the data.
    """

    x: Any
    noise: float

    ranges = {"noise": Range(0, above=True)}

    def guided(self, denoise: Denoise, on: Drawing) -> Denoise:
        return denoise

    def start(self, times: Tensor, z: Tensor, on: Drawing) -> tuple[Tensor, Tensor]:
        path = on.model.schedule
        if not path.smallest < self.noise <= path.largest:
            raise UsageError(
                f"The path goes through noise from {path.smallest:g} to {path.largest:g}, not {self.noise:g}.",
                "Begin within.",
            )
        x = take(on.model.space, self.x)
        on.model.space.check(x)
        y = on.standardised(on.each(x, tuple(on.model.space.event_shape), "x")).to(z)
        first = path.time(torch.tensor([-2 * math.log(self.noise)], dtype=torch.float64))
        p = on.point(first, z)
        eps = on.noise.randn(*z.shape[1:]).to(z)
        return torch.cat([first, times[times < first]]), p.alpha * y + p.sigma * eps


# -- what they share -----------------------------------------------------------------------------------------


def _gradient(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Of the sum of f(z), shaped like z."""
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        return torch.autograd.grad(f(at).sum(), at, create_graph=z.requires_grad)[0]


def _in_the_same_units(guide: Any, space: Space | None, on: Drawing) -> None:
    """Raises Unsupported unless a guide of the space standardises its data as the model does."""
    model = on.model
    if space != model.space:
        raise Unsupported(
            f"The guide is of {space}, the model of {model.space}.", "Guide by a model of the same space."
        )
    one, other = guide.preprocess.state_dict(), model.preprocess.state_dict()
    same = one.keys() == other.keys() and all(
        torch.allclose(one[k], other[k], rtol=1e-4, atol=1e-8, equal_nan=True) for k in one
    )
    if not same:
        raise Unsupported(
            f"The {guide.name} standardises its data otherwise than the {model.name}: their noise is not the same.",
            "Fit both on the same rows, with the same options for the data.",
        )


def _noise_of_dps(method: str, noise: float) -> None:
    if method == "dps" and noise == 0:
        raise UsageError("dps divides by the variance of the noise, which is 0.", "Give noise, or another method.")

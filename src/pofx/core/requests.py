"""What may be asked of a model: an estimator of its likelihood (``Request``) and a way to draw (``Sampler``).

Each is a frozen dataclass with fields of its own, checked where it is made. A family lists the classes that it answers,
the default first; what it claims, the flags of the command line and their help follow (so nothing here imports torch).
A request is complete: of a class alone ``Model.default_request`` and ``default_sampler`` know the model's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from pofx.core.errors import UsageError
from pofx.core.options import AMOUNT, POSITIVE, SHARE, Options, Range, at_least

KindName: TypeAlias = Literal["Exact", "LowerBound", "UpperBound", "Estimate", "Unavailable"]


@dataclass(frozen=True)
class Request(Options):
    """How to compute a likelihood: ``name`` on the command line, and the ``kind`` of every number that answers it.

    Example:
        >>> Elbo(draws=1)
        Traceback (most recent call last):
        ...
        pofx.core.errors.UsageError: draws is 1; it must be a finite number, 2 or more.
    """

    name: ClassVar[str]
    kind: ClassVar[KindName]

    def __init_subclass__(cls, name: str | None = None, kind: KindName | None = None) -> None:
        if name is not None and kind is not None:
            cls.name, cls.kind = name, kind


class ExactLikelihood(Request, name="exact", kind="Exact"):
    """In closed form."""


class NoLikelihood(Request, name="none", kind="Unavailable"):
    """There is none: the answer says why, and what to do instead."""


@dataclass(frozen=True)
class Windowed(Request, name="windowed", kind="Exact"):
    """Exact, of a net of limited context: each step given those before it in a window that moves over long data.

    Attributes:
        stride: by which the window moves: fewer steps are dearer and see more [default: half the window].
    """

    stride: int


class Tokenised(Request, name="tokenised", kind="LowerBound"):
    """A bound, by the one tokenisation of a text that the tokeniser chooses of many (Cao & Rimell 2021)."""


class WindowedTokens(Windowed, name="windowed-tokens", kind="LowerBound"):
    """Both: a bound by one tokenisation, in a window."""


@dataclass(frozen=True)
class Drawn(Request):
    """Base of estimators whose Monte Carlo error is told by the spread of independent draws.

    Attributes:
        draws: Monte Carlo draws per row [default: the model's own].
    """

    draws: int

    ranges = {"draws": at_least(2)}  # one has no standard error


class Dequantised(Drawn, name="dequantised", kind="LowerBound"):
    """A bound on log P(x) of discrete data by a density: E log p(x + u) / q(u), u in a cell (Theis et al. 2016)."""


class Elbo(Drawn, name="elbo", kind="LowerBound"):
    """E_q log p(x, z) / q(z | x), the evidence lower bound (Kingma & Welling 2014)."""


class Iwae(Drawn, name="iwae", kind="LowerBound"):
    """log of the mean of p(x, z) / q(z | x) over draws of z: tighter with each (Burda et al. 2016)."""


@dataclass(frozen=True)
class VariationalBound(Drawn, name="vlb", kind="LowerBound"):
    """The bound of a diffusion path (Ho et al. 2020; Kingma et al. 2021).

    Attributes:
        steps: of the chain whose bound it is, looser with fewer [default: the limit of many, continuous time].
    """

    steps: int | None = None


@dataclass(frozen=True)
class OdeLikelihood(Request, name="ode", kind="Estimate"):
    """An estimate: the density of the probability flow ODE (Song et al. 2021), as good as its solver.

    Attributes:
        steps: of the solver [default: the model's own].
        probes: Hutchinson's, of the divergence; 0: its exact trace, in as many passes as there are dimensions
            [default: 0 in few dimensions].
        draws: of the noise that dequantises discrete data, 0 of data that need none.
    """

    steps: int
    probes: int = 0
    draws: int = 0

    ranges = {"probes": AMOUNT, "draws": AMOUNT}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws == 1 or (self.probes == 1 and self.draws == 0):
            raise UsageError(f"One draw has no standard error: {self}.", "Give 0, or 2 or more.")


@dataclass(frozen=True)
class Sampler(Options):
    """How to draw: ``name`` on the command line; ``searches`` where it finds the likeliest instead."""

    name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            cls.name = name

    @property
    def searches(self) -> bool:
        return False


class Direct(Sampler, name="direct"):
    """Each datum as the model says that it comes about."""


@dataclass(frozen=True)
class StepByStep(Sampler, name="step-by-step"):
    """Each step given those before it, to the end.

    Attributes:
        length: the most steps that are drawn (of excerpts: exactly so many) [default: those of the longest datum that
            was trained on].
    """

    length: int | None = None


@dataclass(frozen=True)
class Decoding(StepByStep, name="decoding"):
    """Symbol by symbol, in ways of ``pofx.decode`` that change the distribution, search, or draft.

    Attributes:
        temperature: below 1 sharper, above 1 flatter.
        top_k: draw among the so many likeliest symbols only.
        top_p: draw among the fewest likeliest symbols that hold this probability.
        min_p: draw among symbols that are at least this share as likely as the likeliest.
        typical: draw among symbols of typical surprise that hold this probability.
        repetition_penalty: above 1: symbols that have occurred are less likely.
        greedy: the likeliest symbol each time.
        beams: search with so many; the best texts that are found are given, best first.
        length_penalty: of beams: log p is divided by length ** this [default: 1].
        stop: a text ends after this string; several times for several.
        draft: a smaller model of the same symbols that writes ahead: the same distribution in fewer passes.
        draft_symbols: how many symbols the draft writes ahead [default: 4].

    Raises UsageError for options that have no effect beside others.
    """

    temperature: float | None = field(default=None, metadata={"remedy": "Use greedy decoding instead."})
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    repetition_penalty: float | None = None
    greedy: bool = False
    beams: int | None = None
    length_penalty: float | None = None
    stop: tuple[str, ...] = ()
    draft: Any = None
    draft_symbols: int | None = None

    ranges = {
        "length_penalty": Range(),
        "temperature": POSITIVE,
        "top_p": Range(0, 1, above=True),
        "min_p": SHARE,
        "typical": Range(0, 1, above=True, below=True),
        "repetition_penalty": POSITIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.stop):
            raise UsageError(f"A stop string needs at least one character; got {list(self.stop)}.", "Leave it out.")
        for way in (w for w in ("greedy", "beams") if getattr(self, w)):
            idle = [k for k in ("temperature", "top_k", "top_p", "min_p", "typical") if getattr(self, k) is not None]
            if idle:
                raise UsageError(f"{way} takes the likeliest, which {', '.join(idle)} cannot change.", "Leave one out.")
        for one, other in (("beams", "greedy"), ("beams", "stop"), ("beams", "draft")):
            if getattr(self, one) and getattr(self, other):
                raise UsageError(f"{one} and {other} do not go together.", f"Leave out {one} or {other}.")
        for option, needs in (("length_penalty", "beams"), ("draft_symbols", "draft")):
            if getattr(self, option) is not None and getattr(self, needs) is None:
                raise UsageError(f"{option}={getattr(self, option)} has no effect without {needs}.", "Leave it out.")

    @property
    def searches(self) -> bool:
        return self.beams is not None


@dataclass(frozen=True)
class Solver(Sampler):
    """Base of those that go from noise to data in steps (``paths.samplers``).

    Attributes:
        steps: of the solver [default: the model's own].
    """

    steps: int


class DpmSolver(Solver, name="dpm++"):
    """DPM-Solver++(2M), without noise (Lu et al. 2022)."""


class Heun(Solver, name="heun"):
    """Trapezoids, two passes a step (Karras et al. 2022)."""


class SdeSolver(Solver, name="sde"):
    """The noisy twin of dpm++ (Lu et al. 2022)."""


class Ddim(Solver, name="ddim"):
    """Without noise, of first order (Song, Meng & Ermon 2021)."""


class Euler(Solver, name="euler"):
    """The same step as ddim's; on straight lines it is Euler's."""


class Ancestral(Solver, name="ancestral"):
    """The posterior of each step at the denoised datum (Ho et al. 2020)."""


AnyRequest: TypeAlias = Request | type[Request] | None
AnySampler: TypeAlias = Sampler | type[Sampler] | None
SOLVERS: tuple[type[Solver], ...] = (DpmSolver, Heun, SdeSolver, Ddim, Euler, Ancestral)
SAMPLERS: tuple[type[Sampler], ...] = (Direct, StepByStep, Decoding, *SOLVERS)
ESTIMATORS: tuple[type[Request], ...] = (
    ExactLikelihood, Windowed, Tokenised, WindowedTokens, Dequantised, Elbo, Iwae, VariationalBound, OdeLikelihood,
)  # fmt: skip

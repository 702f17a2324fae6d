"""What may be asked of a model: an estimator of its likelihood (``Request``) and a way to draw (``Sampler``).

Each is a frozen dataclass with fields of its own, checked where it is made. A family lists the classes that it answers,
the default first; the kinds of likelihood that it claims follow from these, and so do flags and help of the command
line (which is why nothing here imports torch). A request is complete; where a class stands in place of one,
``Model.default_request`` and ``default_sampler`` fill in the model's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from pofx.core.errors import UsageError
from pofx.core.options import AMOUNT, POSITIVE, SHARE, Options, Range, at_least

KindName: TypeAlias = Literal["Exact", "LowerBound", "UpperBound", "Estimate", "Unavailable"]


# -- likelihoods -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request(Options):
    """How to compute a likelihood.

    A subclass has a ``name`` (on the command line) and the ``kind`` of every number that answers it.
    """

    name: ClassVar[str]
    kind: ClassVar[KindName]


@dataclass(frozen=True)
class ExactLikelihood(Request):
    """In closed form."""

    name = "exact"
    kind = "Exact"


@dataclass(frozen=True)
class NoLikelihood(Request):
    """There is none: the answer says why, and what to do instead."""

    name = "none"
    kind = "Unavailable"


@dataclass(frozen=True)
class Windowed(Request):
    """Exact, of a net of limited context: each step given those before it in a window that moves over long data.

    Attributes:
        stride: by which the window moves: fewer steps are dearer and see more [default: half the window].

    Example:
        >>> Windowed(stride=0)
        Traceback (most recent call last):
        ...
        pofx.core.errors.UsageError: stride is 0; it must be a finite number, 1 or more.
    """

    name = "windowed"
    kind: ClassVar[KindName] = "Exact"
    stride: int


@dataclass(frozen=True)
class Tokenised(Request):
    """A bound, by the one tokenisation of a text that the tokeniser chooses of many.

    Cao & Rimell 2021, You should evaluate your language model on marginal likelihood over tokenisations.
    """

    name = "tokenised"
    kind = "LowerBound"


@dataclass(frozen=True)
class WindowedTokens(Windowed):
    """The bound of ``tokenised`` in the window of ``windowed``."""

    name = "windowed-tokens"
    kind = "LowerBound"


@dataclass(frozen=True)
class Drawn(Request):
    """Base of estimators whose Monte Carlo error is told by the spread of independent draws.

    Attributes:
        draws: Monte Carlo draws per row [default: the model's own].
    """

    draws: int

    ranges = {"draws": at_least(2)}  # one has no standard error


@dataclass(frozen=True)
class Dequantised(Drawn):
    """A bound on log P(x) of discrete data by a density: E log p(x + u), u uniform (Theis et al. 2016)."""

    name = "dequantised"
    kind = "LowerBound"


@dataclass(frozen=True)
class Elbo(Drawn):
    """E_q log p(x, z) / q(z | x), the evidence lower bound (Kingma & Welling 2014)."""

    name = "elbo"
    kind = "LowerBound"


@dataclass(frozen=True)
class Iwae(Drawn):
    """log of the mean of p(x, z) / q(z | x) over draws of z: tighter with each (Burda et al. 2016)."""

    name = "iwae"
    kind = "LowerBound"


@dataclass(frozen=True)
class VariationalBound(Drawn):
    """The bound of a diffusion path (Ho et al. 2020; Kingma et al. 2021).

    Attributes:
        steps: of the chain whose bound it is, looser with fewer; None: the limit of many, continuous time.
    """

    name = "vlb"
    kind = "LowerBound"
    steps: int | None = None


@dataclass(frozen=True)
class OdeLikelihood(Request):
    """An estimate: the density of the probability flow ODE (Song et al. 2021, section 4.3), as good as its solver.

    Attributes:
        steps: of the solver [default: the model's own].
        probes: Hutchinson's, of the divergence; 0: its exact trace, in as many passes as there are dimensions
            [default: 0 in few dimensions].
        draws: of the noise that dequantises discrete data, 0 of data that need none [default: the model's own].
    """

    name = "ode"
    kind = "Estimate"
    steps: int
    probes: int = 0
    draws: int = 0

    ranges = {"probes": AMOUNT, "draws": AMOUNT}

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = "draws" if self.draws == 1 else "probes" if (self.probes, self.draws) == (1, 0) else None
        if alone:
            raise UsageError(f"{alone} is 1, which has no standard error.", "Give 0, or 2 or more.")


# -- samples -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler(Options):
    """How to draw. A subclass has a ``name`` (on the command line)."""

    name: ClassVar[str]

    @property
    def searches(self) -> bool:
        """Does it find the likeliest instead of drawing?"""
        return False


@dataclass(frozen=True)
class Direct(Sampler):
    """Each datum by itself as the model says that it comes about."""

    name = "direct"


@dataclass(frozen=True)
class StepByStep(Sampler):
    """Each step given those before it, to the end.

    Attributes:
        length: the most steps that are drawn (of excerpts: exactly so many) [default: those of the longest datum that
            was trained on].
    """

    name = "step-by-step"
    length: int | None = None


@dataclass(frozen=True)
class Decoding(StepByStep):
    """Symbol by symbol: from a changed distribution, by a search, or with a draft.

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

    See ``decode.processors`` for the mathematics. Raises UsageError for options that have no effect beside others.

    Example:
        >>> Decoding(greedy=True, top_k=3)
        Traceback (most recent call last):
        ...
        pofx.core.errors.UsageError: greedy takes the likeliest, which top_k cannot change. Leave one out.
    """

    name = "decoding"
    temperature: float | None = None
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
    """Base of those that go from noise to data in steps; ``paths.samplers`` has them.

    Attributes:
        steps: of the solver [default: the model's own].
    """

    steps: int


@dataclass(frozen=True)
class DpmSolver(Solver):
    """DPM-Solver++(2M), without noise (Lu et al. 2022)."""

    name = "dpm++"


@dataclass(frozen=True)
class Heun(Solver):
    """Trapezoids, two passes a step (Karras et al. 2022)."""

    name = "heun"


@dataclass(frozen=True)
class SdeSolver(Solver):
    """The noisy twin of dpm++ (Lu et al. 2022)."""

    name = "sde"


@dataclass(frozen=True)
class Ddim(Solver):
    """Without noise, of first order (Song, Meng & Ermon 2021)."""

    name = "ddim"


@dataclass(frozen=True)
class Euler(Solver):
    """The same step as ddim's; on straight lines it is Euler's."""

    name = "euler"


@dataclass(frozen=True)
class Ancestral(Solver):
    """The posterior of each step at the denoised datum (Ho et al. 2020)."""

    name = "ancestral"


def _named(base: type) -> tuple[Any, ...]:
    return tuple(c for c in globals().values() if isinstance(c, type) and issubclass(c, base) and "name" in vars(c))


ESTIMATORS: tuple[type[Request], ...] = _named(Request)
SAMPLERS: tuple[type[Sampler], ...] = _named(Sampler)

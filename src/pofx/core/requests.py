"""What may be asked of a model: an estimator of its likelihood (``Request``) and a way to draw (``Sampler``).

Each is a frozen dataclass with fields of its own, checked where it is made. A family lists the classes that it answers,
the default first; what it claims, the flags of the command line and their help follow (so nothing here imports torch).
A request is complete: of a class alone ``Model.default_request`` and ``default_sampler`` know the model's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeAlias

from pofx.core.errors import UsageError
from pofx.core.options import AMOUNT, POSITIVE, SHARE, Options, Range, at_least, check

KindName: TypeAlias = Literal["Exact", "LowerBound", "UpperBound", "Estimate", "Unavailable"]
GridName: TypeAlias = Literal["schedule", "log-snr", "karras"]


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
    differentiable: ClassVar[bool] = True  # may its number carry a gradient?
    may_lack: ClassVar[bool] = False  # is the answer Unavailable where what it rests on does not hold?

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


class OneCode(Request, name="one-code", kind="LowerBound"):
    """A bound without noise, log p(x, z) with the one code z that the encoder gives of many (van den Oord et al.
    2017)."""


@dataclass(frozen=True)
class PerDatum(Drawn, name="per-datum", kind="LowerBound"):
    """The ELBO of a q(z) that is fitted to each datum by itself, where an encoder serves all at once.

    Attributes:
        fits: steps by which it is fitted.
        start: from what the encoder says of the datum (semi-amortised inference, Kim et al. 2018), or from N(0, I), as
            before there were encoders (Hoffman et al. 2013).
    """

    fits: int = 200
    start: Literal["encoder", "normal"] = "encoder"

    differentiable = False


@dataclass(frozen=True)
class VariationalBound(Drawn, name="vlb", kind="LowerBound"):
    """The bound of a diffusion path (Ho et al. 2020; Kingma et al. 2021).

    Attributes:
        steps: of the chain whose bound it is, looser with fewer [default: the limit of many, continuous time].
    """

    steps: int | None = None


@dataclass(frozen=True)
class InOrder(Request, name="in-order", kind="Exact"):
    """Exact, of the model that reveals one value after the other in a stated order, in as many passes as values.

    Attributes:
        order: of the values: from the first to the last, or back.
    """

    order: Literal["raster", "reverse"] = "raster"


@dataclass(frozen=True)
class ByChainRule(Request, name="chain-rule", kind="Exact"):
    """Exact, of the model of pairs that begins with one part, log p(a) + log p(b | a) or log p(b) + log p(a | b), where
    its own answer is of both orders, mixed.

    Attributes:
        first: the part that it begins with.
    """

    first: Literal["a", "b"] = "a"


class AnyOrder(Drawn, name="any-order", kind="LowerBound"):
    """log of the mean, over orders by lot, of the exact probability in each: a bound, tighter with each draw, on the
    model that reveals one value after the other in any order (Hoogeboom et al. 2022)."""


@dataclass(frozen=True)
class OdeLikelihood(Request, name="ode", kind="Estimate"):
    """An estimate: the density of a differential equation's flow (Chen et al. 2018; Song et al. 2021).

    Attributes:
        steps: of the solver [default: the model's own].
        tolerance: rows with a larger error of the solver, in nats, take twice as many steps until it is smaller
            [default: none, its error is told].
        probes: Hutchinson's, of the divergence; 0: its exact trace, in as many passes as there are dimensions
            [default: 0 in few dimensions].
        draws: of the noise that dequantises discrete data, 0 of data that need none.
    """

    steps: int
    probes: int = 0
    draws: int = 0
    tolerance: float | None = None

    ranges = {"probes": AMOUNT, "draws": AMOUNT, "tolerance": POSITIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws == 1 or (self.probes == 1 and self.draws == 0):
            raise UsageError(f"One draw has no standard error: {self}.", "Give 0, or 2 or more.")


@dataclass(frozen=True)
class Annealed(Request):
    """Base of estimators that go from a density which is known to one which is not, or back, in small steps of
    temperature (Neal 2001). A model that answers one of each side has its likelihood between them.

    Attributes:
        temperatures: on the way: more are dearer and tighter.
        chains: of each number, whose spread is its error.
        transitions: steps of the kernel at each temperature.
    """

    temperatures: int = 100
    chains: int = 16
    transitions: int = 1

    differentiable = False
    ranges = {"temperatures": at_least(2), "chains": at_least(2)}  # one chain has no standard error


class Ais(Annealed, name="ais", kind="LowerBound"):
    """A bound: from the encoder's guess of the latents to their posterior (Neal 2001; Wu et al. 2017)."""


class ReverseAis(Annealed, name="reverse-ais", kind="UpperBound"):
    """A bound: back from exact draws of the posterior, which few models have (Grosse et al. 2015)."""


@dataclass(frozen=True)
class ReverseAisOfChains(Annealed, name="reverse-ais-of-chains", kind="Estimate"):
    """Back from draws that chains make of the posterior: a bound from above as far as those have mixed.

    Attributes:
        warmup: steps of each chain in which it finds its step size, before as many that tell whether it has mixed.
    """

    warmup: int = 200

    ranges = {"warmup": at_least(4)}


class PartitionAis(Annealed, name="partition-ais", kind="UpperBound"):
    """minus the energy, minus an estimate of log Z by annealing, too low on average: its error is shared by all data
    (Salakhutdinov & Murray 2008). Its gradient is that of the energy, less its mean over the annealed states."""

    differentiable = True


class ReversePartitionAis(Annealed, name="reverse-partition-ais", kind="LowerBound"):
    """The same with log Z by annealing back from draws of the model, too high on average: a bound where the chains
    that draw have mixed; where not, there is none (Burda et al. 2015)."""

    differentiable = True
    may_lack = True


@dataclass(frozen=True)
class DequantisedPartitionAis(Annealed, name="dequantised-partition-ais", kind="Estimate"):
    """The same of discrete data by a density: the noise within cells bounds log P(x) from below, and log Z by annealing
    bounds that from above, so this is no bound.

    Attributes:
        draws: of the noise within cells, per row [default: the model's own].
    """

    draws: int = field(kw_only=True)

    differentiable = True
    ranges = {"draws": at_least(2)}


@dataclass(frozen=True)
class DequantisedReversePartitionAis(Annealed, name="dequantised-reverse-partition-ais", kind="LowerBound"):
    """The same with log Z by annealing back, which leaves a bound where the chains that draw have mixed.

    Attributes:
        draws: of the noise within cells, per row [default: the model's own].
    """

    draws: int = field(kw_only=True)

    differentiable = True
    ranges = {"draws": at_least(2)}
    may_lack = True


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
class Styled(Sampler, name="styled"):
    """By styles that are drawn in, mixed, or both, of a family that has styles (Karras et al. 2019).

    Attributes:
        truncation: share of the way from the mean style to the one drawn: below 1 more typical and less varied.
        crossover: layer from which on a second style is used: features below it are those of the first, finer ones of
            the second [default: one style].
    """

    truncation: float = 0.7
    crossover: int | None = None

    ranges = {"truncation": SHARE}


@dataclass(frozen=True)
class StepByStep(Sampler, name="step-by-step"):
    """Each step given those before it, to the end.

    Attributes:
        length: the most steps that are drawn (of excerpts: exactly so many) [default: those of the longest datum that
            was trained on].
    """

    length: int | None = None


@dataclass(frozen=True)
class GriffinLim(StepByStep, name="griffin-lim"):
    """Sounds from a spectrum that is drawn, by phases that fit it (Griffin & Lim 1984): no density has a part in it.

    Attributes:
        iterations: from phases by lot to those that fit.
        momentum: of an iteration: 0 never gets worse, more ends nearer (Perraudin et al. 2013).
        temperature: of the levels of the spectrum: below 1 sharper, above 1 flatter.
    """

    iterations: int = 60
    momentum: float = 0.99
    temperature: float = 1.0

    ranges = {"temperature": POSITIVE}


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
        hasty: of beams: a search is over once no beginning would beat what is found if it ended now; else once none can
            at any length, which takes far longer where length is divided by.
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
    hasty: bool = False
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
        for option, needs in (("length_penalty", "beams"), ("hasty", "beams"), ("draft_symbols", "draft")):
            if (value := getattr(self, option)) is not None and value is not False and getattr(self, needs) is None:
                raise UsageError(f"{option}={value} has no effect without {needs}.", "Leave it out.")

    @property
    def searches(self) -> bool:
        return self.beams is not None


@dataclass(frozen=True)
class PathSearch(Sampler, name="path-search"):
    """The likeliest texts of a model that sums over paths, by prefixes that are kept (Graves et al. 2006).

    Attributes:
        beams: how many; the best texts that are found are given, best first [default: 8].
        greedy: the text of the likeliest path instead, which need not be the likeliest text.
    """

    beams: int | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beams and self.greedy:
            raise UsageError("beams and greedy do not go together.", "Leave out beams or greedy.")

    @property
    def searches(self) -> bool:
        return not self.greedy

    @property
    def width(self) -> int:
        """Prefixes that are kept."""
        return self.beams or 8


@dataclass(frozen=True)
class Solver(Sampler):
    """Base of those that go from noise to data in steps (``paths.samplers``, whose keywords are each one's own fields).

    Attributes:
        steps: from noise to data [default: the model's own].
        grid: where its steps end: even in the time of the model's schedule, even in the log SNR, or as Karras et al.
            2022 have it (eq. 5), denser where there is little noise.
        guidance: the scale of classifier-free guidance, of a model that was fitted with context_dropout: above 1 what
            is drawn is more typical of what is given (Ho & Salimans 2022) [default: 1, none].
    """

    group: ClassVar[str] = "solvers"  # what help calls all of them
    falls: ClassVar[tuple[str, ...]] = ()  # fields of noise, of which each is below the one before

    steps: int
    grid: GridName = "schedule"
    guidance: float | Any = None  # a scale, or (several of) what ``paths.guidance`` has

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance is not None and not (isinstance(self.guidance, tuple) or hasattr(self.guidance, "guided")):
            check("guidance", self.guidance, float, remedy="Give a scale, or (several of) pofx.paths.guidance.")
        for start, end in pairwise(self.falls):
            high, low = getattr(self, start), getattr(self, end)
            if not low < high:
                raise UsageError(
                    f"{start} is {high:g} and {end} is {low:g}: noise must fall.", f"Swap {start} and {end}."
                )

    @property
    def own(self) -> dict[str, Any]:
        """The fields that only this one has."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in Solver.__dataclass_fields__}


class DpmSolver(Solver, name="dpm++"):
    """DPM-Solver++(2M), without noise (Lu et al. 2022)."""


class DpmSolver3(Solver, name="dpm++3m"):
    """DPM-Solver++(3M), the same of third order."""


class Heun(Solver, name="heun"):
    """Trapezoids, two passes a step (Karras et al. 2022)."""


class SdeSolver(Solver, name="sde"):
    """The noisy twin of dpm++ (Lu et al. 2022)."""


@dataclass(frozen=True)
class Ddim(Solver, name="ddim"):
    """Without noise, of first order (Song, Meng & Ermon 2021).

    Attributes:
        eta: share of the ancestral sampler's noise, from none (0) to all (1).
    """

    eta: float = 0.0

    ranges = {"eta": SHARE}


class Euler(Solver, name="euler"):
    """The same step as ddim's; on straight lines it is Euler's."""


class Ancestral(Solver, name="ancestral"):
    """The posterior of each step at the denoised datum (Ho et al. 2020)."""


@dataclass(frozen=True)
class Adaptive(Solver, name="adaptive"):
    """Of third order, in steps as long as a tolerance allows (Lu et al. 2022).

    Attributes:
        steps: the fewest; each is divided where the tolerance asks for it.
        tolerance: of the error of a step, in standard deviations of what it moves.
    """

    steps: int = 4
    tolerance: float = 0.01

    ranges = {"tolerance": POSITIVE}


@dataclass(frozen=True)
class KarrasSolver(Solver, name="karras"):
    """Heun's trapezoids after fresh noise, where churn asks for it (Karras et al. 2022, algorithm 2).

    Noise is counted in standard deviations of the data; the paper's numbers are for a deviation of 0.5. Its choice for
    ImageNet is churn 40 from 100 to 0.1, inflation 1.003.

    Attributes:
        churn: how much noise is added, over all steps; none: the noise only falls.
        churn_from: the largest noise to which some is added.
        churn_to: the smallest.
        inflation: factor of the added noise, against what the network takes away too much.
    """

    falls = ("churn_from", "churn_to")

    grid: GridName = "karras"
    churn: float = 0.0
    churn_from: float = 100.0
    churn_to: float = 0.1
    inflation: float = 1.0

    ranges = {"churn_from": POSITIVE, "inflation": POSITIVE}


@dataclass(frozen=True)
class Restart(Solver, name="restart"):
    """Heun's trapezoids, and some of the way again from fresh noise (Xu et al. 2023).

    Noise is counted in standard deviations of the data; the paper's numbers are for a deviation of 0.5.

    Attributes:
        restarts: how often.
        restart_from: noise from which that way leads.
        restart_to: noise to which it leads: to the first step that ends there or below.
        restart_steps: in so many steps.
    """

    falls = ("restart_from", "restart_to")

    grid: GridName = "karras"
    restarts: int = 2
    restart_from: float = 0.6
    restart_to: float = 0.12
    restart_steps: int = 3

    ranges = {"restart_from": POSITIVE, "restart_to": POSITIVE}


@dataclass(frozen=True)
class PredictorCorrector(Solver, name="predictor-corrector"):
    """Steps of reverse diffusion, each corrected by Langevin steps at its noise level (Song et al. 2021).

    Attributes:
        corrector_steps: after each step, 0 for none.
        corrector_snr: signal-to-noise ratio r of a corrector's step, on which its length depends.
    """

    corrector_steps: int = 1
    corrector_snr: float = 0.16

    ranges = {"corrector_steps": AMOUNT, "corrector_snr": POSITIVE}


@dataclass(frozen=True)
class AnnealedLangevin(Solver, name="annealed-langevin"):
    """Langevin steps only, at one falling noise level after the other (Song & Ermon 2019, 2020).

    Attributes:
        langevin_steps: at each level.
        langevin_step: length of a step over the variance of the level's noise [default: as it loses most of what the
            level before had more].
    """

    langevin_steps: int = 5
    langevin_step: float | None = None

    ranges = {"langevin_step": Range(0, 1, above=True)}


@dataclass(frozen=True)
class FewStep(Sampler, name="few-step"):
    """By a student that learned to leap where the other solvers step (Song et al. 2023; Liu et al. 2023).

    Attributes:
        steps: of the student [default: 2].
    """

    steps: int = 2


@dataclass(frozen=True)
class ByChains(Sampler):
    """Base of Markov chains: after a warm-up, states of each are drawn, so many steps apart.

    Attributes:
        chains: that run side by side.
        warmup: steps of each before its first draw, in which it finds its step size.
        thin: steps between two draws of a chain.
    """

    group: ClassVar[str] = "Markov chains"

    chains: int = 16
    warmup: int = 500
    thin: int = 5

    ranges = {"chains": at_least(2), "warmup": AMOUNT}  # one chain agrees with none


@dataclass(frozen=True)
class LangevinChains(ByChains, name="langevin"):
    """Steps down the energy with noise, none rejected: near the distribution for small steps only.

    Attributes:
        step_size: of a step, in standard deviations of its noise.
    """

    step_size: float = 0.1

    ranges = {"step_size": POSITIVE}


class MalaChains(ByChains, name="mala"):
    """Langevin's steps, each accepted or rejected so that the chain has the right distribution (Roberts & Tweedie
    1996)."""


@dataclass(frozen=True)
class HmcChains(ByChains, name="hmc"):
    """Hamiltonian trajectories, their step size found in the warm-up (Neal 2011; Hoffman & Gelman 2014).

    Attributes:
        leapfrog: steps of each trajectory.
    """

    leapfrog: int = 10


class GibbsChains(ByChains, name="gibbs"):
    """All values of one layer given those of the other, by turns."""


@dataclass(frozen=True)
class Unmasking(Sampler, name="unmasking"):
    """Hidden values are revealed, equally many in each step.

    Attributes:
        steps: in which all are revealed; those of one step do not know of each other [default: one value a step].
        order: any, from the first to the last, or those first of which the model is most sure (Chang et al. 2022).
        temperature: below 1 sharper, above 1 flatter.
    """

    steps: int | None = None
    order: Literal["any", "raster", "confidence"] = "any"
    temperature: float | None = None

    ranges = {"temperature": POSITIVE}


AnyRequest: TypeAlias = Request | type[Request] | None
AnySampler: TypeAlias = Sampler | type[Sampler] | None
SOLVERS: tuple[type[Solver], ...] = (
    DpmSolver, DpmSolver3, Heun, SdeSolver, Ddim, Euler, Ancestral, Adaptive, KarrasSolver, Restart, PredictorCorrector,
    AnnealedLangevin,
)  # fmt: skip
SAMPLERS: tuple[type[Sampler], ...] = (
    Direct, Styled, StepByStep, Decoding, PathSearch, GriffinLim, *SOLVERS, FewStep, LangevinChains, MalaChains,
    HmcChains, GibbsChains, Unmasking,
)  # fmt: skip
ESTIMATORS: tuple[type[Request], ...] = (
    ExactLikelihood, Windowed, Tokenised, WindowedTokens, Dequantised, Elbo, Iwae, OneCode, VariationalBound,
    OdeLikelihood, InOrder, ByChainRule, AnyOrder, PerDatum, Ais, ReverseAis, ReverseAisOfChains, PartitionAis,
    ReversePartitionAis, DequantisedPartitionAis, DequantisedReversePartitionAis,
)  # fmt: skip

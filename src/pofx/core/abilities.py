"""What some families can do beyond what every family has: abilities, small abstract classes that a family inherits.

    class Flow(Continuous, Encodes, HasScore): ...

An ability is its hooks on flat rows, which ``Conditional`` calls, and the words of tables and errors. A family of which
only some spaces have one says so in ``lacks``. Whoever asks what can be done asks here: ``why_not`` about a family,
``can`` and ``ability_of`` about a model, ``able`` about all families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from pofx.core.errors import Unsupported
from pofx.core.likelihood import Likelihood, Number
from pofx.core.noise import RowNoise
from pofx.core.requests import Annealed, ExactLikelihood, Request, Sampler
from pofx.core.space import Space
from pofx.core.verdict import Verdict

if TYPE_CHECKING:
    from typing_extensions import TypeIs

A = TypeVar("A", bound="Ability")
T = TypeVar("T")

PartName: TypeAlias = Literal["a", "b"]
FAMILIES = "pofx.core.registry"  # met by its own name, as families are by theirs: it knows models, which know abilities


class Ability(ABC):
    """Base of the abilities; a family inherits those it has, and writes their hooks."""

    title: ClassVar[str]  # in a table of families
    asked: ClassVar[str]  # what a user calls
    without: ClassVar[str]  # of a family that has it not: "NAME ..."

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        """Why this family, which has the ability, has it not over the space (a sentence with the remedy), or None."""
        return None


class Encodes(Ability):
    """Has a latent variable z, and a posterior of it."""

    title, asked = "latents", "encode"
    without = "has no latent variable to encode into"

    @abstractmethod
    def rows_encode(self, x: Tensor, c: Any) -> Distribution:
        """q(z | x, c) with batch shape [N] and event shape [latent], of rows x [N, *E]."""


class FromLatents(Ability):
    """Makes a datum of its latent vector: the way back of ``Encodes``."""

    title, asked = "data from latents", "from_latents"
    without = "makes no datum of a latent vector that is given"

    @abstractmethod
    def rows_from_latents(self, z: Tensor, c: Any) -> Tensor:
        """The datum x [N, *E] that stands for p(x | z, c) best, of z [N, L]: means of numbers, likeliest symbols."""

    @property
    def latent_dims(self) -> int:
        """L, how many numbers make up a latent vector."""
        raise NotImplementedError


class HasScore(Ability):
    """Has a score: the gradient of its log-density."""

    title, asked = "score", "score"
    without = "has no score (gradient of the log-density)"

    @abstractmethod
    def rows_score(self, x: Tensor, c: Any) -> Tensor:
        """grad_x log p(x | c) [N, *E]."""


class HasNoisedScore(Ability):
    """Has the score of data with noise added, which it was learned from."""

    title, asked = "score of noised data", "noised_score"
    without = "has no score of noised data"

    @abstractmethod
    def rows_noised_score(self, x: Tensor, c: Any, noise: float | None) -> Tensor:
        """Score [N, *E] of data with noise added (see ``Conditional.noised_score``)."""


class Continues(Ability):
    """Goes through a datum step by step, and on from what comes before it."""

    title, asked = "goes on from a beginning", "log_probs"
    without = "does not go through its data step by step, so it cannot go on from a beginning"

    @abstractmethod
    def rows_log_probs(self, x: Tensor, c: Any, before: Tensor | None, request: Request) -> Tensor:
        """log p of each symbol or step of rows x [N, L, ...] given those before it: [N, L + 1], the last the end's.

        ``before`` [N, K, ...] (or None) is what precedes each row.
        """

    @abstractmethod
    def rows_sample_after(self, before: Tensor, c: Any, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """One continuation [N, L, ...] of each row of ``before`` [N, K, ...]."""

    @property
    def window(self) -> int | None:
        """How many steps a net of limited context sees at a time."""
        return None


class Decodes(Ability):
    """Draws symbol by symbol, by rules that may change the distribution (``decode.Decoding``)."""

    title, asked = "decoding of symbols", "stream"
    without = "does not draw symbol by symbol, so there is nothing to decode"

    @abstractmethod
    def rows_stream(self, before: Tensor, c: Any, sampler: Sampler, generator: torch.Generator) -> Iterator[str]:
        """One draw of a text after ``before`` [1, K], in pieces as they are drawn."""

    @abstractmethod
    def rows_spans(self, x: Tensor) -> list[list[tuple[int, int]]]:
        """Of each text of x [N, L], which characters (first, after the last) each of its ``rows_log_probs`` is of."""


class Searches(Ability):
    """Finds the likeliest data instead of drawing (where a sampler ``searches``)."""

    title, asked = "search for the likeliest", "sample"
    without = "searches for no likeliest data"

    @abstractmethod
    def rows_best(self, n: int, before: Tensor, c: Any, sampler: Sampler) -> Tensor:
        """The n best continuations [N, n, L] that a search finds of each ``before`` [N, K]; K = 0: of no beginning."""


class Completes(Ability):
    """Draws the rest of a datum that is known in part: value by value, or guided by what is known."""

    title, asked = "completion", "complete"
    without = "draws a datum all at once, neither value by value nor guided by what is known"
    approximation: ClassVar[str | None] = None  # what is drawn instead of p(rest | known), in a sentence

    @abstractmethod
    def rows_complete(self, x: Tensor, known: Tensor, c: Any, generator: torch.Generator) -> Tensor:
        """Rows x [N, *E] with what is not ``known`` [N, *E] drawn."""


class ClassesAtOnce(Ability):
    """Finds the probabilities of all classes in one pass; others take one for each class."""

    title, asked = "classes in one pass", "classes"
    without = "goes through its data once for each class"

    @abstractmethod
    def rows_classes(self, n: int, c: Any, request: Request, noise: RowNoise) -> Likelihood:
        """log p(y | c) of every class y of a space of labels, for n rows: nats [N, K]."""


class Classifies(Ability):
    """Knows the class of data without the frequencies of classes: a model given labels that is also a classifier."""

    title, asked = "classes of what it models", "classify"
    without = "tells no class of its data by itself"

    @abstractmethod
    def rows_classify(self, x: Tensor) -> Tensor:
        """log p(y | x) [N, K] of every class y of the context, for rows x [N, *E]: exact, float64."""


class DrawsWithDensity(Ability):
    """Finds a draw's likelihood on the way to it; others ask for it after they have drawn."""

    title, asked = "draws with their density in one solution", "sample_with_log_prob"
    without = "solves once for a draw and once for its density"

    @abstractmethod
    def rows_sample_log_prob(
        self, n: int, c: Any, request: Request, generator: torch.Generator
    ) -> tuple[Tensor, Likelihood]:
        """n rows [n, *E], row i given c[i], and log p of each: nats [n]."""


class HasBoundTerms(Ability):
    """Has a bound that is a sum of terms, each of which says something."""

    title, asked = "terms of its bound", "bound_terms"
    without = "has no bound in terms"
    in_terms: ClassVar[type[Request]]  # what asks for that bound

    @abstractmethod
    def rows_bound_terms(self, x: Tensor, c: Any, request: Request, noise: RowNoise) -> dict[str, Number[Tensor]]:
        """Of rows x [N, *E] the terms by name, nats [N] of each, whose sum is the bound."""


class ShowsWay(Ability):
    """Draws by going from noise to data, through what can be shown as rows."""

    title, asked = "way from noise to data", "trajectories"
    without = "goes no way from noise to data that could be shown"

    @abstractmethod
    def rows_trajectories(self, n: int, c: Any, generator: torch.Generator) -> Tensor:
        """The way of n draws, row i given c[i], in raw units [K, n, *E]: first the noise, last the draws."""


class HasJoint(Ability):
    """Has the joint density of a datum and its latent vector, and draws both."""

    title, asked = "joint density of data and latents", "log_joint"
    without = "has no joint density of data and latents"

    @abstractmethod
    def rows_log_joint(self, x: Tensor, z: Tensor, c: Any) -> Tensor:
        """log p(x, z | c) [N, K] of rows x [N, *E], each with K latent vectors z [N, K, L]; differentiable in z."""

    @abstractmethod
    def rows_sample_joint(self, n: int, c: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n rows x [n, *E] and their z [n, L] from p(x, z | c), row i given c[i]: z is a draw of p(z | x, c)."""

    @abstractmethod
    def rows_posterior(self, x: Tensor, c: Any, n: int, sampler: Sampler, noise: RowNoise) -> tuple[Tensor, Verdict]:
        """n draws of p(z | x, c) for each of the rows [n, N, L], by chains, and what these say of the worst row."""

    @abstractmethod
    def rows_reverse_ais(self, x: Tensor, z: Tensor, c: Any, request: Annealed, noise: RowNoise) -> Likelihood:
        """The UpperBound on log p(x | c) [N] of rows whose z [N, K, L] are exact draws of p(z | x, c)."""


class HasParts(Ability):
    """Models pairs, and from the same weights each part of a pair alone and given the other."""

    title, asked = "each part of a pair, alone and given the other", "part_model"
    without = "has no parts of pairs to give one by one"

    @abstractmethod
    def rows_part_log_prob(
        self, part: PartName, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise
    ) -> Likelihood:
        """log p [N] of rows x [N, *E] of this part, alone (c is None) or given those of the other c [N, *Ec]."""

    @abstractmethod
    def rows_part_sample(self, part: PartName, n: int, c: Tensor | None, generator: torch.Generator) -> Tensor:
        """n rows [n, *E] of this part, alone or row i given c[i]."""

    def part_estimators(self, part: PartName) -> tuple[type[Request], ...]:
        """What the likelihood of this part, alone or given the other, is asked for by; the first is the default."""
        return (ExactLikelihood,)


class HasEnergy(Ability):
    """Has an energy: minus the log-density, up to a constant that is the same for all data."""

    title, asked = "energy", "energy"
    without = "has no energy"

    @abstractmethod
    def rows_energy(self, x: Tensor, c: Any) -> Tensor:
        """-log p(x | c) + log Z(c) [N] of rows x [N, *E]."""


class DrawsByChains(Ability):
    """Draws by Markov chains, which say whether they have mixed."""

    title, asked = "Markov chains with a verdict", "sample_with_verdict"
    without = "draws without Markov chains, so there is no mixing to judge"

    @abstractmethod
    def rows_chains(self, n: int, c: Any, sampler: Sampler, generator: torch.Generator) -> tuple[Tensor, Verdict]:
        """n rows [n, *E], row i given c[i], and what the chains say of them."""


class Inverts(Ability):
    """Makes data of noise z by a map without an inverse: the noise that gives a datum most nearly is searched for."""

    title, asked = "search for the noise of a datum", "invert"
    without = "makes no data by a map of noise whose preimage could be searched for"

    @abstractmethod
    def rows_invert(self, x: Tensor, c: Any, steps: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """z [N, L] of rows x [N, *E], and how far what it gives is from each [N] (see ``Conditional.invert``)."""


class InBlocks(Ability):
    """Takes the x and c of ``prepare`` and of sweeps as ``Rows``, which memory may not hold all at once."""

    title, asked = "data beyond memory", "fit"
    without = "needs all of its training rows in memory"


class Rows(Protocol):
    """Rows that are made when they are asked for: what a tensor [N, *E] is to data that fit no tensor.

    Those of a table give a single column [N] as well: ``rows[:, j]``.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Tensor:
        """The rows at ``index`` (a slice, or numbers) as one tensor."""
        ...


ABILITIES: tuple[type[Ability], ...] = tuple(Ability.__subclasses__())


def titles(cls: type) -> list[str]:
    """What a family can do, over some space."""
    return [a.title for a in ABILITIES if issubclass(cls, a)]


def why_not(cls: Any, ability: type[Ability], space: Space) -> str | None:
    """Why models of the family ``cls`` over the space have not the ability (a sentence), or None where they have.

    Example:
        >>> from pofx.core.registry import family
        >>> from pofx.spaces import Label
        >>> why_not(family("histogram"), Encodes, Label(("a", "b")))
        'histogram has no latent variable to encode into.'
    """
    if not issubclass(cls, ability):
        return f"{cls.name} {ability.without}."
    reason = cls.lacks(ability, space)
    return reason and f"{cls.name} {ability.without} over {space}: {reason}"


def can(model: Any, ability: type[A]) -> TypeIs[A]:
    """Has the model the ability?"""
    return why_not(type(model), ability, model.space) is None


def beginnings(model: Any, before: T) -> T | None:
    """What is before excerpts, where the model goes on from it; others take each excerpt for itself."""
    return before if can(model, Continues) else None


def ability_of(model: Any, ability: type[A], instead: type[Ability] | None = None) -> A:
    """The model, which has the ability. Raises Unsupported with the remedy: ``instead`` where it has that."""
    reason = why_not(type(model), ability, model.space)
    if reason is None:
        found: A = model
        return found
    remedy = "See 'pofx families'."
    if isinstance(model, ability):
        remedy = ""  # is in the reason
    elif instead is not None and can(model, instead):
        remedy = f"Ask for {instead.asked}."
    elif names := able(model.space, model.context, ability):
        remedy = f"Fit one of {', '.join(names)}."
    raise Unsupported(reason, remedy)


def able(space: Space, context: Space | None, ability: type[Ability] | None = None) -> list[str]:
    """The names of all families that serve these spaces, and have the ability over them.

    Example:
        >>> from pofx.spaces import Text
        >>> able(Text("ab"), None, Decodes)
        ['gpt', 'rnn', 'wavenet']
    """
    registry, found = import_module(FAMILIES), []
    for name in registry.families():
        with suppress(Exception):  # one of another package that is broken has another error of its own
            cls = registry.family(name)
            unable = ability is not None and why_not(cls, ability, space)
            if not (unable or cls.refuses(space, context, cls.Config())):
                found.append(name)
    return found

"""The contract of every family: a Model, and p(x | c) as a Conditional.

Shapes: ``*S`` sample batch, ``*C`` context batch, ``*E`` one event, ``N`` flat rows. A family writes the
``rows_*`` hooks on flat rows; ``Conditional`` does the rest for all of them: checks, broadcasting of
contexts, chunking, eval mode.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pofx.core.abilities import (
    ClassesAtOnce,
    Completes,
    Continues,
    Decodes,
    DrawsWithDensity,
    Encodes,
    HasBoundTerms,
    HasNoisedScore,
    HasScore,
    ShowsWay,
    ability_of,
    able,
    can,
)
from pofx.core.errors import EmptyData, NotANumber, Unsupported, UsageError, WrongShape
from pofx.core.likelihood import KINDS, Kind, Likelihood, Number, Unavailable, cat, make, per_row, stack
from pofx.core.noise import Copies, RowNoise, given_or_fresh, row_keys, seed_of
from pofx.core.requests import AnyRequest, AnySampler, Direct, Request, Sampler
from pofx.core.space import Space, join, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pofx.core.learner import Learner, Recipe, Stage, TrainingSet


R = TypeVar("R", Request, Sampler)
T = TypeVar("T")


class Model(nn.Module):
    """p(x | c) of one family over one space. A family is one final subclass.

    Class attributes describe the family to ``pofx families``; hooks below do the mathematics.

    Args:
        config: the family's own frozen dataclass of plain values.
        space: what one x is.
        context: what x is conditioned on; None for p(x).
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line: how the family models p(x)
    taxonomy: ClassVar[str]  # its place, e.g. "explicit density / tractable / autoregressive"
    paper: ClassVar[str]
    estimators: ClassVar[tuple[type[Request], ...]]  # what it answers of its likelihood, over one space or another
    samplers: ClassVar[tuple[type[Sampler], ...]] = (Direct,)  # how it draws, over one space or another
    known_failures: ClassVar[dict[str, str]] = {}  # "check" or "check:case" of the conformance suite -> reason
    Config: ClassVar[type]

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__()
        if reason := self.refuses(space, context, config):
            others = able(space, context)  # itself among them: its options are what cannot be
            remedy = f"These do: {', '.join(others)}." if others and self.name not in others else "See 'pofx families'."
            raise Unsupported(f"{self.name} does not serve {space}: {reason}", remedy)
        self.config, self.space, self.context = config, space, context
        self.remarks: list[str] = []  # of ``prepare``: what the data made it do that nobody asked for, in sentences

    # -- what a family declares ---------------------------------------------------------------------

    @classmethod
    def claims(cls) -> frozenset[Kind]:
        """The kinds of likelihood that it may return: those of its estimators."""
        return frozenset(KINDS[request.kind] for request in cls.estimators)

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        """Does this model, over its own space, answer this one of ``estimators`` or ``samplers``?"""
        return True

    @property
    def own_estimators(self) -> tuple[type[Request], ...]:
        """Those that this model answers; the first is its default."""
        return tuple(kind for kind in self.estimators if self.answers(kind))

    @property
    def own_samplers(self) -> tuple[type[Sampler], ...]:
        return tuple(kind for kind in self.samplers if self.answers(kind))

    def default_request(self, kind: type[Request] | None = None) -> Request:
        """A request of this class (None: the first of ``own_estimators``). What it must be told, the config says."""
        kind = kind or self.own_estimators[0]
        needs = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        return kind(**{name: getattr(self.config, name) for name in needs})

    def quick_request(self) -> Request:
        """The cheapest useful likelihood: what validation during training asks for."""
        return self.default_request()

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        return (kind or self.own_samplers[0])()

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        """Why this family cannot serve the space and context (a sentence with the remedy), or None."""
        raise NotImplementedError

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        """Options that change nothing on this space, beside the others: ``fit`` refuses them where they are set."""
        return ()

    @classmethod
    def tiny(cls, space: Space) -> Any:
        """A Config that trains in seconds on ``space``: the size the conformance suite uses."""
        raise NotImplementedError

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        """Further Configs of that size, by name, whose options change the mathematics: the suite checks them, too."""
        return {}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        """How this family is trained on ``space`` unless the user says otherwise."""
        raise NotImplementedError

    def prepare(self, x: Any, c: Any, weight: Tensor | None, generator: torch.Generator) -> None:
        """Look at the training data once, before training: scales, bins, start values into buffers.

        x and c are tensors; of data beyond memory Rows where the family is ``InBlocks``, else a sample of rows.
        """

    def learner(self, recipe: Recipe) -> Learner:
        """Everything that differs between families in training."""
        raise NotImplementedError

    def stages(self, recipe: Recipe) -> list[Stage]:
        """What a fit goes through, one after the other: the learner on the training data, unless a family has more."""
        from pofx.core.learner import Stage

        return [Stage("model", recipe, partial(self.learner, recipe))]

    def training_set(self, x: Any) -> TrainingSet:
        """What minibatches are drawn from: the training data x as they are, or what is made of them once."""
        from pofx.core.learner import RowDataset

        return RowDataset(x)

    # -- the mathematics, on flat rows; c is what ``encode_context`` makes of contexts -----------------

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Any:
        """What the hooks below take in the place of contexts c [N, *Ec]: themselves, or what an encoder makes of them.

        Rows can be taken of it by ``[index]``, and batches of it joined by its own ``cat`` where it is no tensor. Each
        row follows from its own context alone: it is made once, whatever is asked of it. In training, a family that
        has a null context puts that in the place of rows ``dropped`` [N].
        """
        return c

    def null_context(self, n: int) -> Any:
        """n rows of what ``encode_context`` makes, which stand for no context."""
        raise Unsupported(
            f"{self.name} learns no p(x | no context).",
            "Fit a family with the option context_dropout, or fit this one without a context.",
        )

    def rows_log_prob(self, x: Tensor, c: Any, request: Request, noise: RowNoise) -> Likelihood:
        """log p(x | c) of rows x [N, *E] given N contexts or None; nats [N].

        What it draws comes from ``noise``, so that a row's number does not depend on the batch.
        """
        raise NotImplementedError

    def rows_sample(self, n: int, c: Any, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """n rows [n, *E] (of ``space.dtype``), row i given c[i]."""
        raise NotImplementedError

    def rows_per_pass(self) -> int:
        """How many rows one pass may hold: about 2^22 numbers of data, at most 8192 rows."""
        return max(1, min(8192, 2**22 // max(1, self.space.dims)))

    def rows_per_draw(self) -> int:
        """How many rows are drawn at once."""
        return self.rows_per_pass()

    # -- what a user calls ------------------------------------------------------------------------------

    def given(self, c: Any = None, *, before: Any = None, null: bool = False) -> Conditional:
        """p(. | c) for c [*C, *Ec], or p(.) for a model without context; c is an array, a frame, ... (``space.take``).

        ``before`` [*C, K, ...] are beginnings (of the space of x, their ends not meant): what is evaluated or
        sampled then comes after them. Without a context they alone make up the batch *C.

        ``null`` asks for p(x | no context) of a model of p(x | c) that was trained with some contexts left out (its
        option ``context_dropout``); what guidance starts from.

        Raises UsageError where a context is missing or is not taken, WrongShape or BadValue where c is
        not of the context space, Unsupported where the family cannot go on from a beginning or knows no null context.
        """
        return Conditional(
            self,
            c if c is None or self.context is None else take(self.context, c),
            None if before is None else take(self.space, before),
            null,
        )

    def log_prob(self, x: Any, *, request: AnyRequest = None, generator: torch.Generator | None = None) -> Likelihood:
        """Short for ``given().log_prob(x)``: log p(x), x [*S, *E], nats [*S]."""
        return self.given().log_prob(x, request=request, generator=generator)

    def sample(self, n: int, *, generator: torch.Generator | None = None, sampler: AnySampler = None) -> Tensor:
        """Short for ``given().sample(n)``: n draws [n, *E]."""
        return self.given().sample(n, generator=generator, sampler=sampler)

    @property
    def device(self) -> torch.device:
        tensors: list[Tensor] = [*self.parameters(), *self.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    def parts(self) -> dict[str, Model]:
        """The models inside this one by their names in it; what is inside them is theirs."""
        found: dict[str, Model] = {}
        for name, module in self.named_modules():
            if name and isinstance(module, Model) and not any(name.startswith(f"{other}.") for other in found):
                found[name] = module
        return found

    def parameter_count(self) -> int:
        """Fitted numbers: trainable parameters, or what a counting family counts."""
        parts = self.parts().values()
        others = {id(p) for part in parts for p in part.parameters()}
        own = sum(p.numel() for p in self.parameters() if id(p) not in others)
        return own + sum(part.parameter_count() for part in parts)

    def __repr__(self) -> str:
        """One line; ``model.children()`` are its parts."""
        of = f"p(x), x: {self.space}" if self.context is None else f"p(x | c), x: {self.space}, c: {self.context}"
        return f"{self.name}: {of}; {self.parameter_count():,} fitted numbers"


@dataclass(frozen=True, repr=False)
class Conditional:
    """p(x | c) for a context batch c [*C, *Ec] (or p(x) when the model takes none): light, immutable.

    Data x (and contexts c) are a tensor, array or nested lists of any dtype whose values the space holds unchanged;
    frames and dictionaries with the columns by name; strings, of texts and labels (``space.take``).

    Each distinct context is encoded once, when it is first needed, and what that gives is kept as long as the model's
    weights stay as they are. Where a gradient is asked for, each call encodes anew.
    """

    model: Model
    c: Tensor | None = None
    before: Tensor | None = None
    null: bool = False

    def __post_init__(self) -> None:
        context, name = self.model.context, self.model.name
        if context is None:
            if self.c is not None or self.null:
                raise UsageError(f"This {name} models p(x) and takes no context.", "Fit it with a context (--given).")
        elif self.c is not None:
            if self.null:
                raise UsageError("A context is given, and no context is asked for (null).", "Give one of them.")
            context.check(self.c)
        elif not self.null:
            raise UsageError(f"This {name} models p(x | c) with c a {context}; no c was given.", "Call model.given(c).")
        if self.before is not None:
            ability_of(self.model, Continues)
            self.model.space.check(self.before)

    def __repr__(self) -> str:
        given = ["no c"] if self.null else [] if self.c is None else ["c"]
        given += [] if self.before is None else ["before"]
        of = f"p(x | {', '.join(given)}) of batch shape {list(self.batch_shape)}" if given else "p(x)"
        return f"{of}, by {self.model!r}"

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """*C"""
        given, space = (self.before, self.model.space) if self.c is None else (self.c, self.model.context)
        assert space is not None
        return () if given is None else tuple(given.shape[: given.ndim - len(space.event_shape)])

    def log_prob(
        self,
        x: Any,
        *,
        request: AnyRequest = None,
        generator: torch.Generator | None = None,
        copies: Copies | None = None,
    ) -> Likelihood:
        """log p(x | c) in nats per datum in raw data space.

        The nats carry a gradient where x, c or a parameter asks for one (``requires_grad``), as everywhere in torch.
        The models of runs ask for none, so that ``.nats.numpy()`` works; ``model.requires_grad_()`` makes their
        parameters ask. What is drawn does not move with x. Monte Carlo errors, samples and scores carry no gradient.

        Args:
            x: [*S, *C, *E], checked against the space.
            request: how it is estimated: one of ``core.requests``, or its class for the model's own numbers (None: the
                first of ``model.own_estimators``).
            generator: gives the seed of Monte Carlo draws; a fixed seed 0 where none is given. What is drawn for
                a datum follows from that seed, the datum and its context, whatever else is evaluated with it.
            copies: of data that are evaluated in several calls with one seed, what tells equal ones apart.

        Returns:
            A Likelihood with nats [*S, *C], of the kind that the request promises.

        Raises UsageError where the model does not answer the request over its space.
        """
        model = self.model
        request = _in_full(model, request, model.own_estimators, model.default_request)
        if self.before is not None:
            nats = self.log_probs(x, request=request).sum(-1, dtype=torch.float64)
            _check_nats(model, nats.flatten())
            return make(KINDS[request.kind], nats, model.space.measure)
        flat, c, batch = self._flat(x)
        if len(flat) == 0:
            raise EmptyData("There are no rows.", "Give at least one datum.")
        copies = Copies() if copies is None else copies
        return self._likelihood(model.rows_log_prob, flat, c, request, generator, copies, batch)

    def classes(self, *, request: AnyRequest = None, generator: torch.Generator | None = None) -> Likelihood:
        """log p(y | c) of every class y, nats [*C, K]; of a model of labels (raises Unsupported of any other).

        It is ``log_prob`` of all classes, in one pass where the family can.
        """
        model = self.model
        if model.space.classes is None:
            raise Unsupported(f"{model.name} models a {model.space}, not a label.", "See pofx.predict.")
        request = _in_full(model, request, model.own_estimators, model.default_request)
        c, batch = self._contexts(self.batch_shape), self.batch_shape
        same = torch.zeros(math.prod(batch), dtype=torch.int64, device=model.device)  # contexts alone tell rows apart
        if not len(same):
            raise EmptyData("There are no rows to classify.", "Give at least one context.")
        every = partial(_every_class, model)
        return self._likelihood(every, same, c, request, generator, Copies(), (*batch, model.space.classes))

    def log_probs(self, x: Any, *, request: AnyRequest = None) -> Tensor:
        """log p of each symbol or step of x [*S, *C, L, ...] given what is before it, in nats [*S, *C, L + 1].

        The last is that of the end; zero at and after the end of a shorter datum, and at the end of an excerpt.
        Their sum is ``log_prob``. Raises Unsupported where the family does not go step by step.
        """
        model, steps = self.model, ability_of(self.model, Continues)
        request = _in_full(model, request, model.own_estimators, model.default_request)
        flat, c, batch = self._flat(x)
        if len(flat) == 0:
            raise EmptyData("There are no rows.", "Give at least one datum.")
        before = self._befores(batch)

        def some(rows: slice) -> Tensor:
            return steps.rows_log_probs(flat[rows], c[rows], None if before is None else before[rows], request)

        parts = self._passes(some, len(flat), model.rows_per_pass())
        longest = max(p.shape[1] for p in parts)  # in steps of the model's own, they may differ
        parts = [torch.nn.functional.pad(p, (0, longest - p.shape[1])) for p in parts]
        return torch.cat(parts).reshape(*batch, -1)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None, sampler: AnySampler = None) -> Tensor:
        """n draws for every context: [n, *C, *E], of ``space.dtype``, without gradient.

        Where the ``sampler`` searches, these are the n best that are found, best first.
        """
        model = self.model
        if n < 0:
            raise UsageError(f"Cannot draw {n} samples.", "Ask for 0 or more.")
        sampler = _in_full(model, sampler, model.own_samplers, model.default_sampler)
        if sampler.searches:
            return self._best(n, sampler)
        batch = (n, *self.batch_shape)
        rows = math.prod(batch)
        c, before = self._contexts(batch), self._befores(batch)
        gen = given_or_fresh(generator, model.device)
        if rows == 0:
            return torch.empty(*batch, *(max(0, size) for size in model.space.event_shape), dtype=model.space.dtype)

        def some(part: slice) -> Tensor:
            if before is None:
                return model.rows_sample(part.stop - part.start, c[part], sampler, gen)
            return ability_of(model, Continues).rows_sample_after(before[part], c[part], sampler, gen)

        x = join(model.space, self._passes(some, rows, model.rows_per_draw()))
        if problem := model.space.check_draws(x):  # what a fitted model draws is of its space
            raise NotANumber(f"{model.name} draws {problem}.", "Its weights are no longer numbers: fit again.")
        return x.reshape(*batch, *x.shape[1:])

    @torch.no_grad()
    def sample_with_log_prob(
        self, n: int, *, request: AnyRequest = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Likelihood]:
        """n draws for every context [n, *C, *E], and log p(x | c) of each, nats [n, *C].

        By one solution of both where the family draws by the equation that the ``request`` solves (``OdeLikelihood`` of
        real columns); else by ``sample`` and then ``log_prob``. Raises what these raise.
        """
        model = self.model
        request = _in_full(model, request, model.own_estimators, model.default_request)
        gen, batch = given_or_fresh(generator, model.device), (n, *self.batch_shape)
        if n < 1 or self.before is not None or not can(model, DrawsWithDensity):
            x = self.sample(n, generator=gen)
            return x, self.log_prob(x, request=request, generator=gen)
        c = self._contexts(batch)

        def some(part: slice) -> tuple[Tensor, Likelihood]:
            return model.rows_sample_log_prob(part.stop - part.start, c[part], request, gen)

        found = self._passes(some, math.prod(batch), model.rows_per_draw())
        x, lik = torch.cat([rows for rows, _ in found]), cat([nats for _, nats in found])
        x = x.reshape(*batch, *x.shape[1:])
        if isinstance(lik, Unavailable):
            return x, lik
        _check_nats(model, lik.nats)
        return x, per_row(lambda t: t.reshape(batch), lik)

    @torch.no_grad()
    def trajectories(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws for every context with their way from noise: [K, n, *C, *E] in raw units, the draws last.

        All that is on the way is rescaled to noise and data of one size: x is a_k data + b_k noise, both standardised,
        with a_k^2 + b_k^2 = 1. Raises Unsupported where the family goes no such way.
        """
        model, batch = ability_of(self.model, ShowsWay), (n, *self.batch_shape)
        if n < 1:
            raise UsageError(f"Cannot draw {n} trajectories.", "Ask for 1 or more.")
        gen, c = given_or_fresh(generator, self.model.device), self._contexts(batch)
        parts = self._passes(
            lambda rows: model.rows_trajectories(rows.stop - rows.start, c[rows], gen),
            math.prod(batch),
            self.model.rows_per_draw(),
        )
        x = torch.cat(parts, 1)
        return x.reshape(len(x), *batch, *x.shape[2:])

    def bound_terms(
        self, x: Any, *, request: AnyRequest = None, generator: torch.Generator | None = None
    ) -> dict[str, Number[Tensor]]:
        """Terms of a bound of ``log_prob`` by name, nats [*S, *C] of each with its errors; they add up to the bound.

        By default that of the family's ``in_terms``. Raises Unsupported where the family's bound has no terms,
        UsageError where the request is none of that bound.
        """
        model, (flat, c, batch) = ability_of(self.model, HasBoundTerms), self._flat(x)
        asked = model.in_terms if request is None else request
        request = _in_full(self.model, asked, self.model.own_estimators, self.model.default_request)
        if not isinstance(request, model.in_terms):
            raise UsageError(f"{request} is no bound in terms.", f"Ask for {model.in_terms.__name__}.")
        if len(flat) == 0:
            raise EmptyData("There are no rows.", "Give at least one datum.")
        seed, copies = seed_of(given_or_fresh(generator, self.model.device)), Copies()

        def some(rows: slice) -> dict[str, Number[Tensor]]:
            keys = partial(self._keys, copies, flat[rows], c.raw(rows))
            with torch.no_grad():
                return model.rows_bound_terms(flat[rows], c[rows], request, RowNoise(seed, keys))

        parts = self._passes(some, len(flat), self.model.rows_per_pass())

        def whole(of: Callable[[Number[Tensor]], Any], name: str) -> Tensor:
            return torch.cat([of(part[name]) for part in parts]).reshape(batch)

        return {
            name: dataclasses.replace(
                first, nats=whole(lambda v: v.nats, name), se=whole(lambda v: v.se, name),
                mc_se=whole(lambda v: v.mc_se, name),
            )
            for name, first in parts[0].items()
        }  # fmt: skip

    @torch.no_grad()
    def stream(self, *, generator: torch.Generator | None = None, sampler: AnySampler = None) -> Iterator[str]:
        """One draw of a text, in pieces as they are drawn: together what ``sample(1)`` spells.

        Raises Unsupported where the model does not draw symbol by symbol, UsageError where contexts are many.
        """
        model, symbols = self.model, ability_of(self.model, Decodes)
        sampler = _in_full(model, sampler, model.own_samplers, model.default_sampler)
        if sampler.searches:
            raise UsageError("A search has nothing to stream before it ends.", "Call sample.")
        c, before = self._contexts(self.batch_shape), self._beginnings()
        if len(before) != 1:
            raise UsageError(f"One text is drawn at a time, not {len(before)}.", "Give one context, or call sample.")
        with evaluating(model):
            yield from symbols.rows_stream(before, c[:], sampler, given_or_fresh(generator, model.device))

    def _best(self, n: int, sampler: Sampler) -> Tensor:
        """[n, *C, *E]"""
        model, symbols = self.model, ability_of(self.model, Decodes)
        c, before = self._contexts(self.batch_shape), self._beginnings()
        with evaluating(model):
            found = [symbols.rows_best(n, before[i : i + 1], c[i : i + 1], sampler) for i in range(len(before))]
        x = join(model.space, found)
        return x.reshape(len(before), n, *x.shape[1:]).transpose(0, 1).reshape(n, *self.batch_shape, *x.shape[1:])

    def _beginnings(self) -> Tensor:
        """``before`` flat [N, K, ...], K = 0 where nothing is given."""
        before = self._befores(self.batch_shape)
        if before is None:
            space = self.model.space
            event = [max(0, size) for size in space.event_shape]
            before = torch.full((math.prod(self.batch_shape), *event), -1, dtype=space.dtype, device=self.model.device)
        return before

    @torch.no_grad()
    def complete(self, x: Any, known: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """x [*S, *C, *E] with the values that are not ``known`` (booleans, shaped like x) drawn.

        Of a family that goes value by value each is drawn given all before it in the model's order, known or drawn.
        What comes later in that order is not looked at: where the known values are the first ones (the upper rows of an
        image), this is a draw from p(rest | known); else the known values stay, and the drawn ones do not know of those
        behind them. A family that reveals values in any order looks at all that are known. A model of noised data is
        guided by all that is known, wherever it is, to an approximation of p(rest | known).
        Raises Unsupported where the family does none of these, WrongShape where shapes differ.
        """
        values, x = ability_of(self.model, Completes), take(self.model.space, x)
        if known.shape != x.shape or known.dtype != torch.bool:
            raise WrongShape(
                f"known has shape {tuple(known.shape)} and dtype {known.dtype}; x has shape {tuple(x.shape)}.",
                "Give one boolean for each value.",
            )
        flat, c, _ = self._flat(x)
        known = known.reshape(flat.shape).to(flat.device)
        gen = given_or_fresh(generator, self.model.device)
        parts = self._passes(
            lambda rows: values.rows_complete(flat[rows], known[rows], c[rows], gen),
            len(flat),
            self.model.rows_per_draw(),
        )
        return torch.cat(parts).reshape(x.shape) if parts else x

    def encode(self, x: Any) -> Distribution:
        """q(z | x, c) for x [*C or N, *E]; raises Unsupported where the family has no latent."""
        latents, (flat, c, _) = ability_of(self.model, Encodes), self._flat(x)
        with evaluating(self.model):
            return latents.rows_encode(flat, c[:])

    @torch.no_grad()
    def score(self, x: Any) -> Tensor:
        """grad_x log p(x | c), shaped like x; raises Unsupported where it does not exist."""
        model, (flat, c, batch) = ability_of(self.model, HasScore, HasNoisedScore), self._flat(x)
        with evaluating(self.model):
            return model.rows_score(flat, c[:]).reshape(*batch, *flat.shape[1:])

    @torch.no_grad()
    def noised_score(self, x: Any, noise: float | None = None) -> Tensor:
        """grad_x log p_noise(x | c), shaped like x: the score of the data plus Gaussian noise, not of the data.

        ``noise`` is its standard deviation in each column's own standard deviations (None: the family's default). The
        smaller it is, the nearer is p_noise to p, and the worse a network knows its score (Song & Ermon 2019, section
        3). Raises Unsupported where the family is not learned from noised data, UsageError for noise that it has not
        seen.
        """
        model, (flat, c, batch) = ability_of(self.model, HasNoisedScore, HasScore), self._flat(x)
        with evaluating(self.model):
            return model.rows_noised_score(flat, c[:], noise).reshape(*batch, *flat.shape[1:])

    def _passes(self, some: Callable[[slice], T], n: int, size: int) -> list[T]:
        """What ``some`` makes of n rows, so many at a time, in eval mode."""
        with evaluating(self.model):
            return [some(slice(i, min(i + size, n))) for i in range(0, n, size)]

    def _likelihood(
        self,
        ask: Callable[[Tensor, Any, Request, RowNoise], Likelihood],
        x: Tensor,
        c: _Given,
        request: Request,
        generator: torch.Generator | None,
        copies: Copies,
        shape: tuple[int, ...],
    ) -> Likelihood:
        """What ``ask`` answers of flat rows x [N, ...] and their contexts, nats of this shape."""
        seed = seed_of(given_or_fresh(generator, self.model.device))

        def some(rows: slice) -> Likelihood:
            given, raw = x[rows], c.raw(rows)
            lik = ask(given, c[rows], request, RowNoise(seed, partial(self._keys, copies, given, raw)))
            return _carrying(lik, given, raw)

        lik = cat(self._passes(some, len(x), self.model.rows_per_pass()))
        if isinstance(lik, Unavailable):
            return lik
        _check_nats(self.model, lik.nats)
        return per_row(lambda t: t.reshape(shape), lik)

    def _flat(self, x: Any) -> tuple[Tensor, _Given, tuple[int, ...]]:
        """Flat rows x [N, *E] and their contexts [N, *Ec], and the batch shape *S, *C that they are of."""
        space = self.model.space
        x = take(space, x)
        space.check(x)
        batch = tuple(x.shape[: x.ndim - len(space.event_shape)])
        flat = x.reshape(math.prod(batch), *x.shape[len(batch) :]).to(self.model.device)
        return flat, self._contexts(batch), batch

    def _keys(self, copies: Copies, x: Tensor, c: Tensor | None) -> Tensor:
        """What flat rows are told apart by, int64 [N]."""
        keys = row_keys(x.detach(), self.model.space.fill)
        if c is not None:
            assert self.model.context is not None
            keys = row_keys(torch.stack([keys, row_keys(c.detach(), self.model.context.fill)], 1))
        return copies.apart(keys)

    def _befores(self, batch: tuple[int, ...]) -> Tensor | None:
        """The beginning of each flat row [N, K, ...]."""
        if self.before is None:
            return None
        event = self.before.shape[self.before.ndim - len(self.model.space.event_shape) :]
        return self.before.expand(*batch, *event).reshape(math.prod(batch), *event).to(self.model.device)

    def _contexts(self, batch: tuple[int, ...] | torch.Size) -> _Given:
        """The context of each entry of the batch shape [*S, *C], flat."""
        want = self.batch_shape
        if tuple(batch[len(batch) - len(want) :]) != want:
            raise WrongShape(
                f"A batch of shape {tuple(batch)} does not end in the context batch {want}.",
                "Shapes are x [*S, *C, *E] for contexts [*C, *Ec].",
            )
        if self.c is None and not self.null:
            return _Given(self, None)
        each = (1,) if self.c is None else want
        places = torch.arange(math.prod(each), device=self.model.device).view(each)
        return _Given(self, places.expand(*batch or (1,)).flatten())

    @property
    def flat_contexts(self) -> Tensor:
        """c [C, *Ec], where the model is."""
        assert self.c is not None
        batch = self.batch_shape
        return self.c.reshape(math.prod(batch), *self.c.shape[len(batch) :]).to(self.model.device)

    def encoded(self) -> tuple[Any, Tensor]:
        """The distinct contexts encoded, and which of them each of c is [C]."""
        model, weights = self.model, [*self.model.parameters(), *self.model.buffers()]
        if type(model).encode_context is Model.encode_context and self.c is not None:  # there is nothing to encode
            return self.flat_contexts, torch.arange(math.prod(self.batch_shape), device=model.device)
        asked = self.c is not None and self.c.requires_grad
        if torch.is_grad_enabled() and (asked or any(w.requires_grad for w in weights)):
            return self._encode(distinct=not asked)
        stamp = [(w.data_ptr(), w._version) for w in weights]
        if self.__dict__.get("_stamp") != stamp:
            with torch.no_grad():
                self.__dict__.update(_kept=self._encode(distinct=True), _stamp=stamp)
        kept: tuple[Any, Tensor] = self.__dict__["_kept"]
        return kept

    def _encode(self, distinct: bool) -> tuple[Any, Tensor]:
        model = self.model
        with evaluating(model):
            if self.c is None:
                return model.null_context(1), torch.zeros(1, dtype=torch.int64, device=model.device)
            raw = self.flat_contexts
            which = torch.arange(len(raw), device=raw.device)
            if distinct and len(raw) > 1:
                assert model.context is not None
                which = torch.unique(row_keys(raw.detach(), model.context.fill), return_inverse=True)[1]
                first = which.new_empty(int(which.max()) + 1)
                first[which] = torch.arange(len(raw), device=raw.device)
                raw = raw[first]
            parts = [model.encode_context(part) for part in torch.split(raw, model.rows_per_pass())]
        return (torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0].cat(parts)), which


class _Given:
    """The contexts of flat rows: ``[rows]`` of them as the hooks take them, and ``raw``; None where there are none.

    Args:
        places: in p.c, of each flat row [N].
    """

    def __init__(self, p: Conditional, places: Tensor | None) -> None:
        self.p, self.places = p, places

    @cached_property
    def encoded(self) -> tuple[Any, Tensor]:
        return self.p.encoded()

    def __getitem__(self, rows: slice) -> Any:
        if self.places is None:
            return None
        encoded, which = self.encoded
        return encoded[which[self.places[rows]]]

    def raw(self, rows: slice) -> Tensor | None:
        return None if self.places is None or self.p.c is None else self.p.flat_contexts[self.places[rows]]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the former mode after."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _every_class(model: Model, rows: Tensor, c: Any, request: Request, noise: RowNoise) -> Likelihood:
    """log p(y | c) of every class y for N rows, nats [N, K]: one pass a class, or better."""
    if can(model, ClassesAtOnce):
        return model.rows_classes(len(rows), c, request, noise)
    assert model.space.classes is not None
    every = [torch.full_like(rows, k) for k in range(model.space.classes)]
    return stack([model.rows_log_prob(y, c, request, noise) for y in every])


def _carrying(lik: Likelihood, *asking: Tensor | None) -> Likelihood:
    """A gradient also by what asks for one and moves no number, such as where in its bin a value is: zero."""
    for t in asking:
        if t is not None and t.requires_grad and not isinstance(lik, Unavailable):
            zero = 0.0 * t.nan_to_num(0.0, 0.0, 0.0).reshape(len(t), -1).sum(1)
            lik = dataclasses.replace(lik, nats=lik.nats + zero.view(-1, *[1] * (lik.nats.ndim - 1)))
    return lik


def _check_nats(model: Model, nats: Tensor) -> None:
    """A row may be impossible (-inf); NaN and +inf are no log-probabilities."""
    bad = nats.isnan() | (nats == math.inf)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise NotANumber(
            f"{model.name} answers {nats[row].item()} nats for row {row} ({int(bad.sum())} of {len(nats)} alike).",
            "Its weights are no longer numbers, or the row is too extreme for them: look at it, or fit again.",
        )


def _in_full(
    model: Model, asked: R | type[R] | None, own: tuple[type[R], ...], default: Callable[[type[R] | None], R]
) -> R:
    """What is asked for, in the model's own numbers where only its class is named."""
    if asked is None:
        return default(None)
    kind = asked if isinstance(asked, type) else type(asked)
    if kind not in own:
        answered = ", ".join(k.__name__ for k in own)
        raise UsageError(f"This {model.name} over {model.space} does not answer {kind.__name__}, but {answered}.")
    return default(kind) if isinstance(asked, type) else asked


def idle(cls: type[Model], space: Space, context: Space | None, config: Any) -> list[str]:
    """The options of ``config`` that are not at their default and change nothing on this space."""
    default = {f.name: f.default for f in dataclasses.fields(config)}
    return [name for name in cls.idle(space, context, config) if getattr(config, name) != default[name]]


def serving(cls: type[Model], space: Space, **options: Any) -> Any:
    """A Config of the options that mean something on this space."""
    config = cls.Config(**options)
    unset = set(idle(cls, space, None, config))
    return cls.Config(**{name: value for name, value in options.items() if name not in unset})


def replace_config(config: Any, changes: dict[str, Any]) -> Any:
    """``dataclasses.replace`` with a named error for an unknown option, or a number that tensors cannot hold."""
    known = {f.name for f in dataclasses.fields(config)}
    if unknown := sorted(set(changes) - known):
        raise UsageError(f"Unknown option {unknown[0]!r}; this family has: {', '.join(sorted(known))}.")
    if large := [f"{k}={v}" for k, v in changes.items() if isinstance(v, int) and abs(v) >= 2**63]:
        raise UsageError(f"{large[0]} is beyond 64 bits.", "Give a smaller number.")
    return dataclasses.replace(config, **changes)

"""p(x | c) as users meet it, of every family: checks, broadcasting of contexts, chunking, eval mode."""

from __future__ import annotations

import dataclasses
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pofx.core.abilities import (
    ClassesAtOnce,
    Classifies,
    Completes,
    Continues,
    Decodes,
    DrawsByChains,
    DrawsWithDensity,
    Encodes,
    FromLatents,
    HasBoundTerms,
    HasEnergy,
    HasJoint,
    HasNoisedScore,
    HasScore,
    Inverts,
    Searches,
    ShowsWay,
    ability_of,
    can,
)
from pofx.core.errors import EmptyData, NotANumber, Unsupported, UsageError, WrongShape
from pofx.core.family import Family
from pofx.core.likelihood import KINDS, Exact, Likelihood, Number, Unavailable, cat, make, per_row, stack
from pofx.core.measure import Measure
from pofx.core.noise import Copies, RowNoise, given_or_fresh, row_keys, seed_of
from pofx.core.options import check
from pofx.core.requests import Annealed, AnyRequest, AnySampler, HmcChains, Request, ReverseAis, Sampler
from pofx.core.space import join, take
from pofx.core.verdict import NotMixed, Verdict, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


R = TypeVar("R", Request, Sampler)
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Conditional:
    """p(x | c) for a context batch c [*C, *Ec] (or p(x) when the model takes none): light, immutable.

    Data x (and contexts c) are a tensor, array or nested lists of any dtype whose values the space holds unchanged;
    frames and dictionaries with the columns by name; strings, of texts and labels (``space.take``).

    Each distinct context is encoded once, when it is first needed, and what that gives is kept as long as the model's
    weights stay as they are. Where a gradient is asked for, each call encodes anew.
    """

    model: Family
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
        parameters ask. What is drawn does not move with x. Monte Carlo errors, samples, scores and numbers by chains
        (of requests that are not ``differentiable``) carry no gradient.

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

    @torch.no_grad()
    def classify(self, x: Any) -> Exact:
        """log p(y | x) of every class y of x [*S, *C, *E], nats [*S, *C, K], by a model that is a classifier, too.

        Whatever it is given: it is the class that is asked for. Raises Unsupported where the family tells none.
        """
        model, (flat, _, batch) = ability_of(self.model, Classifies), self._flat(x)
        if len(flat) == 0:
            raise EmptyData("There are no rows to classify.", "Give at least one datum.")
        parts = self._passes(lambda rows: model.rows_classify(flat[rows]), len(flat), self.model.rows_per_pass())
        return Exact(torch.cat(parts).reshape(*batch, -1), Measure.counting(1))

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

        Where the ``sampler`` searches, these are the n best that are found, best first. Where it runs Markov chains, a
        warning (``core.verdict.NotMixed``) says so if they have not mixed; ``sample_with_verdict`` always tells.
        """
        if can(self.model, DrawsByChains):
            x, verdict = self.sample_with_verdict(n, generator=generator, sampler=sampler)
            if verdict is not None and not verdict.mixed:
                warnings.warn(f"The chains of this {self.model.name} have {verdict}.", NotMixed, stacklevel=3)
            return x
        return self._sample(n, generator, sampler, [])

    @torch.no_grad()
    def sample_with_verdict(
        self, n: int, *, generator: torch.Generator | None = None, sampler: AnySampler = None
    ) -> tuple[Tensor, Verdict | None]:
        """What ``sample`` gives, and whether the Markov chains that drew it have mixed (None where n is 0).

        Raises Unsupported where the family draws without chains.
        """
        ability_of(self.model, DrawsByChains)
        verdicts = list[Verdict]()
        x = self._sample(n, generator, sampler, verdicts)
        return x, worst(verdicts) if verdicts else None

    def _sample(
        self, n: int, generator: torch.Generator | None, sampler: AnySampler, verdicts: list[Verdict]
    ) -> Tensor:
        """[n, *C, *E]; ``verdicts`` gets those of chains."""
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
            if before is None and can(model, DrawsByChains):
                drawn, verdict = model.rows_chains(part.stop - part.start, c[part], sampler, gen)
                verdicts.append(verdict)
                return drawn
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
        model, symbols = self.model, ability_of(self.model, Searches)
        c, before = self._contexts(self.batch_shape), self._beginnings()

        def some(rows: slice) -> Tensor:
            return symbols.rows_best(n, before[rows], c[rows], sampler).flatten(0, 1)

        x = join(model.space, self._passes(some, len(before), max(1, model.rows_per_draw() // max(1, n))))
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
        latents, (flat, c, _) = ability_of(self.model, Encodes, Inverts), self._flat(x)
        with evaluating(self.model):
            return latents.rows_encode(flat, c[:])

    @torch.no_grad()
    def from_latents(self, z: Tensor) -> Tensor:
        """The data [*S, *C, *E] that latents z [*S, *C, L] stand for: means of numbers, likeliest symbols.

        What ``encode`` has made of data comes back as their reconstruction. Raises Unsupported where the family makes
        no data of latents that are given, WrongShape for those of another model.
        """
        model, batch = ability_of(self.model, FromLatents), tuple(z.shape[:-1])
        if z.shape[-1:] != (model.latent_dims,) or not len(z):
            raise WrongShape(
                f"Latents have shape {tuple(z.shape)}; those of this {self.model.name} are [..., {model.latent_dims}].",
                "Give at least one, as encode makes them.",
            )
        flat, c = z.reshape(-1, model.latent_dims).to(self.model.device), self._contexts(batch)
        size = self.model.rows_per_pass()
        x = torch.cat(self._passes(lambda rows: model.rows_from_latents(flat[rows], c[rows]), len(flat), size))
        return x.reshape(*batch, *x.shape[1:])

    @torch.no_grad()
    def log_joint(self, x: Any, z: Tensor) -> Tensor:
        """log p(x, z | c) for x [*S, *C, *E] and latent vectors z [*S, *C, L]: nats [*S, *C].

        Raises Unsupported where the family has no latent vector, WrongShape where the two do not go together.
        """
        joint, (flat, c, batch) = ability_of(self.model, HasJoint), self._flat(x)
        if z.shape[:-1] != batch:
            raise WrongShape(
                f"z has shape {tuple(z.shape)}; the data are a batch of shape {batch}.", "Give a z for each."
            )
        z = z.reshape(len(flat), 1, z.shape[-1]).to(flat.device)
        parts = self._passes(
            lambda rows: joint.rows_log_joint(flat[rows], z[rows], c[rows]), len(flat), self.model.rows_per_pass()
        )
        return torch.cat(parts).reshape(batch) if parts else torch.empty(batch)

    @torch.no_grad()
    def sample_joint(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n draws of (x, z) for every context: x [n, *C, *E] and z [n, *C, L], an exact draw of p(z | x, c).

        Raises Unsupported where the family has no latent vector.
        """
        joint, batch = ability_of(self.model, HasJoint), (n, *self.batch_shape)
        if n < 1:
            raise UsageError(f"Cannot draw {n} samples.", "Ask for 1 or more.")
        gen, c = given_or_fresh(generator, self.model.device), self._contexts(batch)
        found = self._passes(
            lambda rows: joint.rows_sample_joint(rows.stop - rows.start, c[rows], gen),
            math.prod(batch),
            self.model.rows_per_draw(),
        )
        x, z = join(self.model.space, [x for x, _ in found]), torch.cat([z for _, z in found])
        return x.reshape(*batch, *x.shape[1:]), z.reshape(*batch, -1)

    @torch.no_grad()
    def posterior_sample(
        self, x: Any, n: int = 64, *, sampler: HmcChains | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Verdict]:
        """n draws of p(z | x, c) for every datum x [*S, *C, *E]: z [n, *S, *C, L], and whether the chains have mixed.

        By Hamiltonian Monte Carlo, ``sampler.chains`` for each datum; the verdict is that of the worst datum. What is
        drawn for a datum follows from the generator's seed and the datum. Raises Unsupported where the family has no
        latent vector.
        """
        joint, (flat, c, batch) = ability_of(self.model, HasJoint), self._flat(x)
        if n < 1 or not len(flat):
            raise UsageError(f"{n} draws for {len(flat)} rows are none.", "Ask for 1 or more, of 1 or more rows.")
        seed, copies = seed_of(given_or_fresh(generator, self.model.device)), Copies()
        asked = HmcChains() if sampler is None else sampler

        def some(rows: slice) -> tuple[Tensor, Verdict]:
            noise = RowNoise(seed, partial(self._keys, copies, flat[rows], c.raw(rows)))
            return joint.rows_posterior(flat[rows], c[rows], n, asked, noise)

        found = self._passes(some, len(flat), self.model.rows_per_pass())
        return torch.cat([z for z, _ in found], 1).reshape(n, *batch, -1), worst([verdict for _, verdict in found])

    def reverse_ais(
        self, x: Any, z: Tensor, *, request: Annealed | None = None, generator: torch.Generator | None = None
    ) -> Likelihood:
        """An UpperBound on log p(x | c), nats [*S, *C], of data x [*S, *C, *E] whose z is an exact draw of p(z | x, c).

        Of simulated data it is: ``x, z = sample_joint(n)``. With the lower bound of ``Ais`` on the same data it has
        log p(x | c) between (bidirectional Monte Carlo: Grosse et al. 2015). The chains of a datum all start at its
        z [*S, *C, L], which their error does not know; that of a mean over data does.
        """
        joint, (flat, c, batch) = ability_of(self.model, HasJoint), self._flat(x)
        if z.shape[:-1] != batch:
            raise WrongShape(
                f"z has shape {tuple(z.shape)}; the data are a batch of shape {batch}.", "Give a z for each."
            )
        asked, codes = request or ReverseAis(), z.reshape(len(flat), 1, z.shape[-1]).to(flat.device)
        places = torch.arange(len(flat), device=flat.device)

        def ask(rows: Tensor, given: Any, request: Any, noise: RowNoise) -> Likelihood:
            return joint.rows_reverse_ais(flat[rows], codes[rows], given, request, noise)

        return self._likelihood(ask, places, c, asked, generator, Copies(), batch)

    @torch.no_grad()
    def invert(self, x: Any, *, steps: int = 200, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The noise z [*S, *C, L] that gives x [*S, *C, *E] most nearly, found by ``steps`` of descent; and how nearly.

        The distance [*S, *C] is the root of the mean square between x and what z gives, as the model's nets see both:
        levels of pixels in [-1, 1], columns standardised, choices 0 or 1. It is 0 where z gives x itself; where it is
        large, either the search has failed or the model draws no such x. Raises Unsupported where the family has no map
        to invert.
        """
        maps, (flat, c, batch) = ability_of(self.model, Inverts, Encodes), self._flat(x)
        check("steps", steps, int)
        seed, copies = seed_of(given_or_fresh(generator, self.model.device)), Copies()
        if not len(flat):
            raise EmptyData("There are no rows to invert.", "Give at least one datum.")

        def some(rows: slice) -> tuple[Tensor, Tensor]:
            noise = RowNoise(seed, partial(self._keys, copies, flat[rows], c.raw(rows)))
            return maps.rows_invert(flat[rows], c[rows], steps, noise)

        found = self._passes(some, len(flat), self.model.rows_per_pass())
        z, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
        return z.reshape(*batch, -1), distance.reshape(batch)

    @torch.no_grad()
    def energy(self, x: Any) -> Tensor:
        """-log p(x | c) up to a constant of all x [*S, *C, *E]: nats [*S, *C], lower for likelier data.

        It ranks data (outliers stand highest), but is no likelihood. Raises Unsupported where the family has none.
        """
        energies, (flat, c, batch) = ability_of(self.model, HasEnergy), self._flat(x)
        parts = self._passes(
            lambda rows: energies.rows_energy(flat[rows], c[rows]), len(flat), self.model.rows_per_pass()
        )
        return torch.cat(parts).reshape(batch) if parts else torch.empty(batch)

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
            noise = RowNoise(seed, partial(self._keys, copies, given, raw))
            if request.differentiable:
                return _carrying(ask(given, c[rows], request, noise), given, raw)
            with torch.no_grad():
                return ask(given, c[rows], request, noise)

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
        if type(model).encode_context is Family.encode_context and self.c is not None:  # there is nothing to encode
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


def _every_class(model: Family, rows: Tensor, c: Any, request: Request, noise: RowNoise) -> Likelihood:
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


def _check_nats(model: Family, nats: Tensor) -> None:
    """A row may be impossible (-inf); NaN and +inf are no log-probabilities."""
    bad = nats.isnan() | (nats == math.inf)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise NotANumber(
            f"{model.name} answers {nats[row].item()} nats for row {row} ({int(bad.sum())} of {len(nats)} alike).",
            "Its weights are no longer numbers, or the row is too extreme for them: look at it, or fit again.",
        )


def _in_full(
    model: Family, asked: R | type[R] | None, own: tuple[type[R], ...], default: Callable[[type[R] | None], R]
) -> R:
    """What is asked for, in the model's own numbers where only its class is named."""
    if asked is None:
        return default(None)
    kind = asked if isinstance(asked, type) else type(asked)
    if kind not in own:
        answered = ", ".join(k.__name__ for k in own)
        raise UsageError(f"This {model.name} over {model.space} does not answer {kind.__name__}, but {answered}.")
    return default(kind) if isinstance(asked, type) else asked

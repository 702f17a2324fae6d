"""Guidance on mixtures whose noised densities, and so all posteriors, are known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pofx.cli import main
from pofx.core.errors import BadValue, PofxError, Unsupported, UsageError, WrongShape
from pofx.core.learner import Batch, Recipe
from pofx.core.registry import family
from pofx.core.requests import SOLVERS, Ancestral, AnnealedLangevin, Ddim, DpmSolver, Heun, SdeSolver, Solver
from pofx.families.diffusion import Vdm
from pofx.families.discriminative import Classifier
from pofx.families.path import PathConfig
from pofx.nn.encoders import Encoded
from pofx.paths.guidance import (
    Autoguidance,
    ByClassifier,
    ClassifierFree,
    Drawing,
    From,
    Guidance,
    Inpainting,
    Linear,
    conjugate_gradients,
)
from pofx.spaces import Category, Image, Integer, Label, Real, Table

PLANE, SIDES = Table((Real("a"), Real("b"))), Label(("left", "right"))
LOC, SCALE = torch.tensor([3.0, -7.0]).double(), torch.tensor([2.0, 0.5]).double()  # of raw units
WEIGHTS = torch.tensor([0.5, 0.3, 0.2]).double()
MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]]).double()
COVS = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.3]], [[0.2, 0.0], [0.0, 0.1]]]).double()
SIDE_OF = torch.tensor([[0.95, 0.05], [0.4, 0.6], [0.1, 0.9]]).double()  # P(side | component)
N = 3000


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Mixture:
    """Sum of weight N(mean, cov) [K], [K, 2], [K, 2, 2], standardised."""

    def __init__(self, weights: Tensor = WEIGHTS, means: Tensor = MEANS, covs: Tensor = COVS) -> None:
        self.weights, self.means, self.covs = weights, means, covs

    def parts(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log N(z; alpha mean, alpha^2 cov + sigma^2 I) [N, K] and E[x | z, component] [N, K, 2] at one noise level."""
        wide = alpha**2 * self.covs + sigma**2 * torch.eye(2).double()
        off = z[:, None] - alpha * self.means
        solved = torch.linalg.solve(wide, off[..., None])[..., 0]
        log_prob = -((off * solved).sum(-1) + torch.logdet(wide)) / 2
        return log_prob, self.means + alpha * torch.einsum("kij,nkj->nki", self.covs, solved)

    def denoise(self, z: Tensor, alpha: Tensor, sigma: Tensor, weights: Tensor | None = None) -> Tensor:
        log_prob, each = self.parts(z, alpha, sigma)
        share = (log_prob + (self.weights if weights is None else weights).log()).softmax(1)
        return (share[..., None] * each).sum(1)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.weights @ self.means
        off = self.means - mean
        return mean, torch.einsum("k,kij->ij", self.weights, self.covs + off[:, :, None] * off[:, None])

    def given(self, matrix: Tensor, y: Tensor, variance: float) -> Mixture:
        """p(x | matrix x + noise = y)"""
        wide = matrix @ self.covs @ matrix.T + variance * torch.eye(len(matrix)).double()
        gain = self.covs @ matrix.T @ torch.linalg.inv(wide)
        off = y - self.means @ matrix.T
        fit = -(torch.einsum("ki,kij,kj->k", off, torch.linalg.inv(wide), off) + torch.logdet(wide)) / 2
        means = self.means + torch.einsum("kij,kj->ki", gain, off)
        return Mixture((self.weights.log() + fit).softmax(0), means, self.covs - gain @ matrix @ self.covs)

    def of_side(self, side: int) -> Mixture:
        weights = self.weights * SIDE_OF[:, side]
        return Mixture(weights / weights.sum(), self.means, self.covs)


GAUSSIAN = Mixture(torch.ones(1).double(), torch.tensor([[0.3, -0.2]]).double(), COVS[:1] * 3)


class Known(Vdm):
    """A path model whose net is the closed form: of p(x | side) where it has a context."""

    mixture: Mixture

    def denoiser(self, h: Encoded | None) -> Any:
        weights = None if h is None else h.vector

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            p = self.schedule(t.reshape(-1)[0].double())
            return self.mixture.denoise(z.double(), p.alpha, p.sigma, weights).to(z.dtype)

        return denoise

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        return Encoded(torch.stack([self.mixture.of_side(k).weights for k in (0, 1)])[c], raw=c)

    def null_context(self, n: int) -> Encoded:
        return Encoded(self.mixture.weights.expand(n, -1))


def known(mixture: Mixture | None = None, context: Label | None = None, cls: type[Known] = Known, **options) -> Known:
    model = cls(PathConfig(hidden=8, blocks=1, **options), PLANE, context)
    model.mixture = mixture or Mixture()
    model.preprocess.standard.loc.copy_(LOC)
    model.preprocess.standard.scale.copy_(SCALE)
    mean, cov = model.mixture.moments()
    variance, basis = torch.linalg.eigh(cov)
    model.gaussian.mean.copy_(mean)
    model.gaussian.variance.copy_(variance)
    model.gaussian.factors[0].copy_(basis)
    return model


def knows_sides(model: Known, **changes: Any) -> SimpleNamespace:
    """A classifier of noised data in closed form."""
    mixture = model.mixture

    def log_probs(z: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = log_snr[0].double().sigmoid().sqrt(), (-log_snr[0].double()).sigmoid().sqrt()
        share = (mixture.parts(z.double(), alpha, sigma)[0] + mixture.weights.log()).softmax(1)
        return (share @ SIDE_OF).log().to(z)

    config = SimpleNamespace(smallest=1e-4, largest=1e3)
    guide = {"name": "known", "space": SIDES, "context": PLANE, "preprocess": model.preprocess, "config": config}
    return SimpleNamespace(**guide | {"noised_log_probs": log_probs} | changes)


def drawing(model: Known, n: int, c: Tensor | None = None) -> Drawing:
    h = None if model.context is None else model.null_context(n) if c is None else model.encode_context(c)
    return Drawing(model, h, n, gen())


def guided(guidance: Guidance, model: Known, z: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
    on = drawing(model, len(z), c)
    return guidance.guided(model.denoiser(on.h), on)(z, t)


def places(model: Known, n: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Points [n, 2] of the path at several noise levels."""
    found = []
    for noise in (0.02, 0.3, 1.0, 20.0):
        t = model.schedule.time(torch.tensor(-2 * math.log(noise)).double())
        p = model.schedule(t)
        found.append((p.scale * torch.randn(n, 2, generator=gen(3), dtype=torch.float64), t))
    return found


def agrees(x: Tensor, truth: Mixture, slack: float = 0.0) -> None:
    """Mean and covariance of raw samples within four standard errors, and ``slack``."""
    y = (x - LOC) / SCALE
    mean, cov = truth.moments()
    off = (y - mean)[:, :, None] * (y - mean)[:, None]
    assert ((y.mean(0) - mean).abs() < 4 * y.std(0) / len(y) ** 0.5 + slack).all(), (y.mean(0), mean)
    assert ((off.mean(0) - cov).abs() < 4 * off.std(0) / len(y) ** 0.5 + slack).all(), (off.mean(0), cov)


def drawn(model: Known, guidance: Any, sampler: type[Solver] = DpmSolver, steps: int = 40, **given: Any) -> Tensor:
    return model.given(**given).sample(N, sampler=sampler(steps, guidance=guidance), generator=gen(1))


# -- by a label --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [DpmSolver, Heun, SdeSolver], ids=lambda s: s.name)
def test_a_perfect_classifier_guides_to_the_posterior(sampler: type[Solver]) -> None:
    model = known()
    for side, label in enumerate(("left", torch.tensor(1))):
        agrees(drawn(model, ByClassifier(knows_sides(model), label), sampler), model.mixture.of_side(side), 0.02)


def test_each_draw_may_have_a_label_of_its_own() -> None:
    model, labels = known(), torch.arange(N) % 2
    x = drawn(model, ByClassifier(knows_sides(model), labels))
    for side in (0, 1):
        agrees(x[side::2], model.mixture.of_side(side), 0.02)


def test_guidance_applied_twice_is_caught() -> None:
    """By the posterior that it misses: scale 1 twice is scale 2."""

    class Twice(Known):
        def draw(self, n: int, h: Any, sampler: Any, *how: Any) -> Tensor:
            return super().draw(n, h, replace(sampler, guidance=(sampler.guidance, sampler.guidance)), *how)

    model = known(cls=Twice)
    with pytest.raises(AssertionError):
        agrees(drawn(model, ByClassifier(knows_sides(model), 1)), model.mixture.of_side(1), 0.02)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_guidance_is_classifier_guidance_by_bayes_rule(scale: float) -> None:
    """D + scale (D_c - D) and D + scale sigma^2 / alpha grad log p(c | z) are one function."""
    model, c = known(context=SIDES), torch.tensor([0, 1, 0, 1, 0, 1])
    for z, t in places(model):
        free = guided(ClassifierFree(scale), model, z, t, c)
        by_gradient = guided(ByClassifier(knows_sides(model), c, scale), model, z, t)
        assert torch.allclose(free, by_gradient, atol=1e-6)


@pytest.mark.parametrize("scale", [0, 1])
def test_scale_one_is_the_conditional_and_none_the_unconditional(scale: int) -> None:
    model = known(context=SIDES)
    plain = drawn(model, None, c=torch.tensor(1)) if scale else drawn(model, None, null=True)
    assert torch.allclose(drawn(model, float(scale), c=torch.tensor(1)), plain, atol=1e-4)
    agrees(plain, model.mixture.of_side(1) if scale else model.mixture, 0.02)


def test_guidance_within_an_interval() -> None:
    """Outside it p(x | c) is followed (Kynkaanniemi et al. 2024)."""
    model, c = known(context=SIDES), torch.zeros(6, dtype=torch.int64)
    for (z, t), inside in zip(places(model), (False, True, True, False), strict=True):
        some = guided(ClassifierFree(3.0, low=0.1, high=5.0), model, z, t, c)
        elsewhere = model.denoiser(model.encode_context(c))(z, t)
        assert torch.equal(some, guided(ClassifierFree(3.0), model, z, t, c) if inside else elsewhere)


# -- by a weaker model -------------------------------------------------------------------------------------


def test_autoguidance_leads_away_from_the_weaker_model() -> None:
    model, weaker = known(), known(Mixture(WEIGHTS.flip(0)))
    for z, t in places(model):
        own, other = (m.denoiser(None)(z, t) for m in (model, weaker))
        assert torch.allclose(guided(Autoguidance(weaker, 1.0), model, z, t), own)
        assert torch.allclose(guided(Autoguidance(weaker, 0.0), model, z, t), other)
        assert torch.allclose(guided(Autoguidance(weaker, 2.5), model, z, t), own + 1.5 * (own - other))


@pytest.mark.parametrize("schedule", ["linear", "exploding"])
def test_a_weaker_model_may_go_along_another_path(schedule: str) -> None:
    """Of the same data it denoises alike, so that there is nothing to lead away from."""
    model, weaker = known(), known(schedule=schedule)
    for z, t in places(model):
        assert torch.allclose(guided(Autoguidance(weaker, 4.0), model, z, t), model.denoiser(None)(z, t), atol=1e-6)


def test_a_weaker_model_is_given_the_same_context() -> None:
    model, weaker, c = known(context=SIDES), known(context=SIDES), torch.tensor([0, 1] * 3)
    for z, t in places(model):
        own = model.denoiser(model.encode_context(c))(z, t)
        assert torch.allclose(guided(Autoguidance(weaker, 3.0), model, z, t, c), own)
    agrees(drawn(model, Autoguidance(weaker, 2.0), c=torch.tensor(1)), model.mixture.of_side(1), 0.02)


# -- by a measurement --------------------------------------------------------------------------------------

SUM = torch.tensor([[1.0, 2.0]]).double()  # of standardised values
RAW_SUM, RAW_Y = SUM / SCALE, torch.tensor([0.7]).double() + (SUM / SCALE) @ LOC
BOTH = torch.tensor([[1.0, 2.0], [-0.5, 1.0]]).double()
RAW_BOTH = BOTH / SCALE


@pytest.mark.parametrize("method", ["jacobian", "gaussian"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_linear_measurement_of_gaussian_data_is_exact(method: Any, noise: float) -> None:
    """The guided denoiser is that of the posterior, itself a Gaussian, in raw units that are not the model's."""
    model, y = known(GAUSSIAN), torch.tensor([0.7, -0.4]).double()
    for matrix, raw, value in ((SUM, RAW_SUM, y[:1]), (BOTH, RAW_BOTH, y)):
        truth = GAUSSIAN.given(matrix, value, max(noise, 1e-9) ** 2)
        for z, t in places(model):
            p = model.schedule(t)
            found = guided(Linear(raw, value + raw @ LOC, noise, method), model, z, t)
            assert torch.allclose(found, truth.denoise(z, p.alpha, p.sigma), atol=1e-4)


@pytest.mark.parametrize("sampler", SOLVERS, ids=lambda s: s.name)
def test_samples_given_a_measurement_of_gaussian_data(sampler: type[Solver]) -> None:
    model = known(GAUSSIAN)
    x = drawn(model, Linear(RAW_SUM, RAW_Y, 0.3, "gaussian"), sampler, 60)
    slack = 0.06 if sampler is AnnealedLangevin else 0.03  # Langevin's steps, of finite length, widen what they draw
    agrees(x, GAUSSIAN.given(SUM, torch.tensor([0.7]).double(), 0.09), slack)


@pytest.mark.parametrize("method", ["jacobian", "gaussian", "dps"])
def test_each_method_is_the_gradient_that_it_says(method: Any) -> None:
    """Of log N(y; A D(z), A C A' + noise^2) with C held fixed: by autograd and dense matrices, of a mixture."""
    model, noise = known(), 0.3
    for z, t in places(model):
        p = model.schedule(t)

        def log_prob(one: Tensor, wide: Tensor, p: Any = p) -> Tensor:
            off = torch.tensor([0.7]).double() - SUM @ model.mixture.denoise(one[None], p.alpha, p.sigma)[0]
            return -off @ torch.linalg.solve(wide, off) / 2

        found = guided(Linear(RAW_SUM, RAW_Y, noise, method), model, z, t)
        for one, denoised in zip(z, found, strict=True):
            of = lambda v, p=p: model.mixture.denoise(v[None], p.alpha, p.sigma)[0]  # noqa: E731
            jacobian = torch.autograd.functional.jacobian(of, one)
            if method == "gaussian":
                _, cov = model.mixture.moments()
                jacobian = p.alpha * cov @ torch.linalg.inv(p.alpha**2 * cov + p.sigma**2 * torch.eye(2).double())
            spread = p.sigma**2 / p.alpha * (SUM @ jacobian @ SUM.T) * (method != "dps")
            slope = torch.autograd.functional.jacobian(lambda v, w=spread: log_prob(v, w + noise**2), one)
            assert torch.allclose(denoised, of(one) + p.sigma**2 / p.alpha * slope, rtol=1e-4, atol=1e-5)


def shares(x: Tensor, truth: Mixture) -> Tensor:
    """Of each component, by which it is likeliest of [K]."""
    log_prob, _ = truth.parts((x - LOC) / SCALE, torch.ones(()).double(), torch.full((), 0.05).double())
    return (log_prob + truth.weights.log()).argmax(1).bincount(minlength=3) / len(x)


@pytest.mark.parametrize(
    ("method", "share", "place"), [("gaussian", 0.12, 0.1), ("jacobian", 0.12, 0.1), ("replacement", 0.14, 0.2)]
)
def test_in_painting_a_mixture_misses_its_weights_by_so_much(method: Any, share: float, place: float) -> None:
    """What is known stays; each component's share of what is drawn, and the mean of one, are off by at most this."""
    model, at = known(), torch.tensor([0.9]).double()
    truth = model.mixture.given(torch.tensor([[1.0, 0.0]]).double(), at, 1e-9)
    datum = torch.tensor([LOC[0] + at[0] * SCALE[0], math.nan])
    x = drawn(model, Inpainting(datum, torch.tensor([True, False]), method), steps=60)
    assert ((x[:, 0] - datum[0]).abs() < 0.03 * SCALE[0]).all()
    assert (shares(x, model.mixture) - truth.weights).abs().max() < share
    upper = (x[:, 1] - LOC[1]) / SCALE[1]
    assert upper[upper > 0].mean() == pytest.approx(truth.means[1, 1].item(), abs=place)


def test_completion_keeps_known_values_to_the_last_digit() -> None:
    model = known(GAUSSIAN)
    x = LOC + SCALE * torch.randn(300, 2, generator=gen(2), dtype=torch.float64)
    mask = torch.rand(300, 2, generator=gen(3)) < 0.5
    done = model.given().complete(x, mask, generator=gen(4))
    assert torch.equal(done[mask], x[mask])
    row = x[:1].expand(N, 2)
    done = model.given().complete(row, torch.tensor([True, False]).expand(N, 2), generator=gen(5))
    at = (row[0, :1] - LOC[0]) / SCALE[0]
    truth = GAUSSIAN.given(torch.tensor([[1.0, 0.0]]).double(), at, 1e-9)
    y = (done[:, 1] - LOC[1]) / SCALE[1]
    assert y.mean() == pytest.approx(truth.means[0, 1].item(), abs=0.05)
    assert y.var() == pytest.approx(truth.covs[0, 1, 1].item(), rel=0.1)


def test_conjugate_gradients_solve_each_row_and_stop_where_there_is_nothing_to_do() -> None:
    root = torch.randn(5, 4, 4, generator=gen(), dtype=torch.float64)
    system = root @ root.mT + 0.1 * torch.eye(4)
    b = torch.randn(5, 4, generator=gen(1), dtype=torch.float64)
    b[2] = 0
    found = conjugate_gradients(lambda v: torch.einsum("nij,nj->ni", system, v), b, 12)
    assert torch.allclose(found, torch.linalg.solve(system, b), atol=1e-8)
    assert conjugate_gradients(lambda v: -v, b, 3).eq(0).all()  # no direction curves upwards


# -- from a datum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_what_begins_at_a_noised_datum_is_drawn_given_it(noise: float) -> None:
    """Of a Gaussian: about K x + (1 - K) mean, K = cov / (cov + noise^2), as wide as noise and x given it make it."""
    model, at = known(GAUSSIAN), torch.tensor([1.5, -1.0]).double()
    x = drawn(model, From(LOC + SCALE * at, noise), Ancestral, 150)
    mean, cov = GAUSSIAN.moments()
    gain = cov @ torch.linalg.inv(cov + noise**2 * torch.eye(2).double())
    spread = gain @ (noise**2 * torch.eye(2).double()) @ gain.T + cov - gain @ cov
    agrees(x, Mixture(torch.ones(1).double(), (mean + gain @ (at - mean))[None], spread[None]), 0.02)


def test_image_to_image_goes_together_with_a_label() -> None:
    """All that is drawn from left data resembles it, and more of it is right than without the label."""
    model, at = known(context=SIDES), LOC + SCALE * MEANS[0]
    begin = From(at, 1.5)
    plain, labelled = (drawn(model, g, c=torch.tensor(1)) for g in (begin, (ClassifierFree(3.0), begin)))
    right = [shares(x, model.mixture)[1:].sum() for x in (plain, labelled)]
    assert right[1] > right[0] + 0.1


# -- the classifier that guides ----------------------------------------------------------------------------


@cache
def noised_classifier(steps: int = 300) -> Classifier:
    x, y = sided(6000, Mixture())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(Classifier.Config(noised=True, hidden=32, blocks=1), SIDES, PLANE)
    model.prepare(y, x, None, gen())
    learner, g = model.learner(Recipe(lr=1e-2)), gen(1)
    for k in range(steps):
        rows = torch.randint(len(x), (256,), generator=g)
        learner.step(Batch(y[rows], x[rows], None, 0, 256, k / steps, k), g)
    return model.eval()


def sided(n: int, mixture: Mixture) -> tuple[Tensor, Tensor]:
    k = torch.multinomial(mixture.weights, n, True, generator=gen(5))
    root = torch.linalg.cholesky(mixture.covs)[k]
    e = torch.randn(n, 2, 1, generator=gen(6), dtype=torch.float64)
    side = (torch.rand(n, generator=gen(7)) > SIDE_OF[k, 0]).long()
    return LOC + SCALE * (mixture.means[k] + (root @ e)[..., 0]), side


def moved(model: Any) -> Mixture:
    """The mixture as a fitted model standardises it."""
    loc, scale = model.preprocess.standard.loc, model.preprocess.standard.scale
    return Mixture(WEIGHTS, (LOC + SCALE * MEANS - loc) / scale, COVS * torch.outer(SCALE / scale, SCALE / scale))


def test_a_noised_classifier_learns_what_noised_data_say() -> None:
    """p(side | z) at every noise level, against the closed form; at the largest it is the share of the side."""
    model, (x, y) = noised_classifier(), sided(6000, Mixture())
    assert model.preprocess is not None
    loc, scale = model.preprocess.standard.loc, model.preprocess.standard.scale
    truth = knows_sides(known(moved(model)))
    for log_snr in (-8.0, -1.0, 2.0, 8.0):
        signal, noise = (torch.tensor(s * log_snr).double().sigmoid().sqrt() for s in (1, -1))
        z = signal * (x[:400] - loc) / scale + noise * torch.randn(400, 2, generator=gen(8), dtype=torch.float64)
        level = torch.full((400,), log_snr)
        got, want = model.noised_log_probs(z, level).exp(), truth.noised_log_probs(z, level).exp()
        assert (got - want).abs().mean() < 0.05
    clean = model.given(x[:400]).log_prob(y[:400]).nats
    assert torch.equal(clean, model.given(x[:400]).log_prob(y[:400]).nats)
    assert torch.allclose(model.given(x[:400]).classes().nats.exp().sum(1), torch.ones(400).double())


def test_a_trained_classifier_guides_a_model_of_the_same_rows() -> None:
    guide, model, (x, _) = noised_classifier(), known(), sided(6000, Mixture())
    model.preprocess.fit(x, None, gen())
    loc, scale = model.preprocess.standard.loc, model.preprocess.standard.scale
    model.mixture = Mixture(
        WEIGHTS, (LOC + SCALE * MEANS - loc) / scale, COVS * torch.outer(SCALE / scale, SCALE / scale)
    )
    for side in (0, 1):
        agrees(drawn(model, ByClassifier(guide, side)), Mixture().of_side(side), 0.15)


# -- what does not fit is refused by name ------------------------------------------------------------------


def test_what_cannot_guide_is_refused_by_name() -> None:
    model, told = known(), known(context=SIDES)
    guide, mask, datum = knows_sides(model), torch.tensor([True, False]), LOC.clone()
    narrow = knows_sides(model, config=SimpleNamespace(smallest=0.1, largest=1e3))
    clean = Classifier(Classifier.Config(), SIDES, PLANE)
    for guidance, error, message in (
        (2.0, UsageError, "takes no context, so there is none to guide by"),
        (("strongly",), UsageError, "'strongly' is no guidance"),
        (ByClassifier(clean, 0), Unsupported, "has seen no noised data.*options.noised"),
        (ByClassifier(family("gmm")(family("gmm").Config(), PLANE), 0), Unsupported, "gmm has seen no noised data"),
        (ByClassifier(knows_sides(model, context=SIDES), 0), Unsupported, "guide is of label of 2.*model of table"),
        (ByClassifier(guide, 2), BadValue, "2"),
        (ByClassifier(guide, torch.tensor([0, 1])), WrongShape, "label has shape"),
        (ByClassifier(narrow, 0), UsageError, "seen noise from 0.1"),
        (Autoguidance(clean, 2.0), Unsupported, "classifier denoises nothing"),
        (Autoguidance(told, 2.0), UsageError, "another context"),
        (Linear(torch.eye(3), torch.zeros(3)), WrongShape, r"matrix has shape \(3, 3\); x has 2 numbers"),
        (Linear(torch.eye(2), torch.zeros(3)), WrongShape, "y has shape"),
        (Linear(torch.eye(2), torch.tensor([math.nan, 0.0])), BadValue, "no finite number"),
        (Inpainting(datum, torch.ones(2)), WrongShape, "one boolean for each value"),
        (Inpainting(torch.zeros(7, 2), mask), WrongShape, "x has shape"),
        (Inpainting(torch.tensor([math.nan, 0.0]), mask), PofxError, "missing|NaN|nan"),
        (From(datum, 500.0), UsageError, "noise from 0.001 to 80, not 500"),
        (From(datum[:1], 0.5), PofxError, "shape"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            model.sample(3, sampler=Ddim(2, guidance=guidance))
    for make, message in (
        (lambda: Ddim(2, guidance=-1.0), "guidance is -1.0"),
        (lambda: Ddim(2, guidance="strongly"), "guidance is 'strongly'; it must be a number. Give a scale"),
        (lambda: ClassifierFree(2.0, low=1.0, high=0.5), "above 1 and at most 0.5"),
        (lambda: Linear(torch.eye(2), torch.zeros(2), method="dps"), "dps divides by the variance"),
        (lambda: From(datum, 0.0), "noise is 0.0"),
        (lambda: Inpainting(datum, mask, method="magic"), "method is 'magic'"),
        (lambda: Classifier.Config(noised=True, smallest=2.0, largest=1.0), "cannot rise from 2 to 1"),
    ):
        with pytest.raises(UsageError, match=message):
            make()


def test_guides_of_other_rows_are_refused() -> None:
    """Their standardised noise is another."""
    model = known()
    other = known()
    other.preprocess.standard.scale.mul_(1.1)
    with pytest.raises(Unsupported, match="standardises its data otherwise.*same rows"):
        model.sample(3, sampler=Ddim(2, guidance=Autoguidance(other, 2.0)))


def test_a_model_without_a_null_context_has_no_classifier_free_guidance() -> None:
    x, y = sided(50, Mixture())
    model = Vdm(PathConfig(hidden=8, blocks=1), PLANE, SIDES)
    model.prepare(x, y, None, gen())
    with pytest.raises(Unsupported, match="context-dropout"):
        model.given(0).sample(3, sampler=Ddim(2, guidance=2.0))


def test_categories_and_optimal_couplings_are_not_guided() -> None:
    mixed = Table((Real("a"), Category("k", ("u", "v"))))
    model = Vdm(PathConfig(hidden=8, blocks=1), mixed)
    row = torch.zeros(2).double()
    with pytest.raises(Unsupported, match="real numbers alone"):
        model.sample(3, sampler=Ddim(2, guidance=From(row, 0.5)))
    with pytest.raises(Unsupported, match="does not draw|declared|Declare"):
        model.given().complete(row[None], torch.ones(1, 2, dtype=torch.bool))
    coupled = family("flow-matching")(family("flow-matching").Config(coupling="optimal", hidden=8), PLANE)
    with pytest.raises(Unsupported, match="denoiser of the flow"):
        coupled.sample(3, sampler=Ddim(2, guidance=From(row, 0.5)))
    whole = Table((Integer("n", 0, 9),))
    assert Classifier.refuses(SIDES, whole, Classifier.Config(noised=True)) is not None
    assert Classifier.refuses(SIDES, whole, Classifier.Config()) is None


# -- images ------------------------------------------------------------------------------------------------


def test_images_are_completed_and_measured_in_levels() -> None:
    """Of a net of zeros, which stands for the Gaussian of the data: known pixels stay, a mean is what was measured."""
    space, g = Image(6, 6, 1, 16), gen(1)
    x = (torch.randn(400, 1, 6, 6, generator=g).cumsum(3).add(7.5)).round().clamp(0, 15).to(torch.uint8)
    model = Vdm(PathConfig(hidden=8, blocks=1), space)
    model.prepare(x, None, None, gen())
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, :3] = True
    done = model.given().complete(x[:8], mask.expand(8, 1, 6, 6))
    assert torch.equal(done[:, :, :3], x[:8, :, :3])
    mean = torch.full((1, 36), 1 / 36)
    for y in (6.0, 9.0):
        drawn = model.sample(50, sampler=DpmSolver(30, guidance=Linear(mean, torch.tensor([y]), 0.01)))
        assert drawn.double().mean((1, 2, 3)).sub(y).abs().max() < 0.25  # levels are rounded and stay in their range
    near = model.sample(8, sampler=DpmSolver(30, guidance=From(x[:8], 0.02)))
    assert (near.double() - x[:8]).abs().max() <= 1


# -- on the command line -----------------------------------------------------------------------------------


def test_the_command_line_guides_and_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, side = sided(200, Mixture())
    rows = [f"{a:.5f},{b:.5f},{'lr'[k]}" for (a, b), k in zip(x.tolist(), side.tolist(), strict=True)]
    source, run, plain = (str(tmp_path / name) for name in ("t.csv", "run", "plain"))
    Path(source).write_text("\n".join(["a,b,side", *rows]) + "\n")
    tiny = ["--steps", "2", "--options.hidden", "8", "--options.blocks", "1", "--options.sample-steps", "3", "--quiet"]
    assert main(["fit", source, "vdm", "--given", "side", "--options.context-dropout", "0.2", *tiny, "--out", run]) == 0
    assert main(["fit", source, "vdm", "--given", "side", *tiny, "--out", plain]) == 0
    printed = []
    for scale in ([], ["--guidance", "1"], ["--guidance", "4", "--sampler", "heun"]):
        capsys.readouterr()
        assert main(["sample", run, "3", "--given", "side=l", *scale]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]
    assert main(["sample", plain, "3", "--given", "side=l", "--guidance", "2"]) != 0
    assert "context-dropout" in capsys.readouterr().err
    assert main(["sample", run, "2", "--complete", source, "--known", "0.5", "--rows", "4"]) == 0
    out, err = capsys.readouterr()
    assert "approximately as p(rest | known)" in " ".join(err.split())
    kept = [float(row.split(",")[0]) for row in out.split()[1:]]
    assert kept == pytest.approx([v for v in x[:4, 0].tolist() for _ in range(2)], abs=1e-5)

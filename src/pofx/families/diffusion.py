"""The presets of a Gaussian path (families/path.py), each as its paper has it, but for what its docstring says:

                    path              predicts       times, weighting       samples by             from
    ddpm            chain of 1000     eps            uniform, simple        ancestral, 1000        Ho et al. 2020
    vdm             cosine            v              log-snr, likelihood    dpm++, 50              Kingma et al. 2021
    ncsn            variance grows    eps            log-snr, simple        Langevin, 232 levels   Song & Ermon 2020
    score-sde       VP, VE, sub-VP    eps            uniform, simple        corrected, 1000        Song et al. 2021
    edm             variance grows    v              log-normal, edm        Heun, 18               Karras et al. 2022
    flow-matching   straight lines    velocity       uniform, flat          dpm++, 50              Lipman et al. 2023
    diffusion-policy cosine, 100      eps            uniform, simple        ancestral, 100         Chi et al. 2023

``vdm`` reaches a higher likelihood in fewer steps, and as flow-matching starts from the Gaussian of the data, which is
not in the papers. Data are standardised: noise is counted in their standard deviations, where papers count it in units
of pixels (which deviate by 0.25 if they go from 0 to 1, by 0.5 if from -1 to 1, as Karras et al. 2022 have it).
The nets take z / sqrt(alpha^2 + sigma^2) and the log SNR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pofx.codecs.real import preprocess
from pofx.core.learner import Recipe
from pofx.core.measure import Measure
from pofx.core.requests import (
    SOLVERS,
    Ancestral,
    AnnealedLangevin,
    FewStep,
    KarrasSolver,
    PredictorCorrector,
    Sampler,
    Solver,
)
from pofx.core.space import Space
from pofx.families.path import PathConfig, PathModel, PredictionName, ScheduleName, TimesName, WeightingName
from pofx.paths.distill import STUDENTS


def first(solver: type[Solver]) -> tuple[type[Sampler], ...]:
    """All samplers of a path, this one the default where there is no student."""
    return FewStep, solver, *(s for s in SOLVERS if s is not solver)


@dataclass(frozen=True)
class DdpmConfig(PathConfig):
    """Options of ``ddpm``: those of ``PathConfig``."""

    schedule: ScheduleName = "ddpm"
    predict: PredictionName = "eps"
    start: Literal["gaussian", "none"] = "none"
    clip: Literal["never", "last", "always"] = "always"
    times: TimesName = "uniform"
    weighting: WeightingName = "simple"
    sample_steps: int = 1000
    decoder: Literal["density", "cells", "auto"] = "auto"


class Ddpm(PathModel):
    """A chain of small steps, undone one by one."""

    name = "ddpm"
    summary = "a network that finds the noise in data, taken away in a thousand steps"
    paper = "Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models"
    samplers = first(Ancestral)
    Config = DdpmConfig


class Vdm(PathModel):
    """Variance-preserving diffusion, trained on its variational bound."""

    name = "vdm"
    summary = "a network that removes Gaussian noise, trained on its bound of the likelihood"
    paper = "Kingma, Salimans, Poole & Ho 2021, Variational diffusion models"
    Config = PathConfig

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        """Of all paths, in cases that tell: other nets, and students."""
        tiny = cls.tiny(space)
        if space.pixels:
            dit = {"dit": replace(tiny, net="dit", hidden=32)} if space.symbols == 2 else {}
            return dit | {"cells": replace(tiny, decoder="cells")}
        if [column.measure for column in space.columns] != ["lebesgue", "atom+lebesgue"]:
            return {}
        return {f"student of {name}": replace(tiny, student=name) for name in STUDENTS}


@dataclass(frozen=True)
class NcsnConfig(PathConfig):
    """Options of ``ncsn``: those of ``PathConfig``."""

    schedule: ScheduleName = "exploding"
    predict: PredictionName = "eps"
    start: Literal["gaussian", "none"] = "none"
    clip: Literal["never", "last", "always"] = "last"
    weighting: WeightingName = "simple"
    smallest: float = 0.04
    largest: float = 200.0
    sample_steps: int = 232


class Ncsn(PathModel):
    """The gradient of the log-density of noisier and noisier data, learned by denoising, and Langevin steps along it.

    -eps / sigma is the gradient: the net divided by the noise (Song & Ermon 2020, technique 3), its error times sigma
    squared (2019, eq. 6). It learns at all noise levels from ``largest`` to ``smallest``, of which a sampler takes as
    many as it has steps, in geometric progression; the paper's net learns those alone.
    """

    name = "ncsn"
    summary = "a network that points noisy data uphill, followed in Langevin steps while the noise falls"
    paper = "Song & Ermon 2020, Improved techniques for training score-based generative models"
    samplers = first(AnnealedLangevin)
    Config = NcsnConfig


@dataclass(frozen=True)
class ScoreSdeConfig(PathConfig):
    """Options of ``score-sde``: those of ``PathConfig``. Its SDEs are the schedules linear-beta (VP), exploding (VE)
    and sub-vp."""

    schedule: ScheduleName = "linear-beta"
    predict: PredictionName = "eps"
    start: Literal["gaussian", "none"] = "none"
    clip: Literal["never", "last", "always"] = "last"
    times: TimesName = "uniform"
    weighting: WeightingName = "simple"
    largest: float = 152.2  # of VP at t = 1, as ``smallest`` is of t = 1e-5
    sample_steps: int = 1000


class ScoreSde(PathModel):
    """A diffusion that turns data into noise in continuous time, undone by its reverse with the learned gradient.

    -eps / sigma is the gradient, as in their nets; the weight sigma^2 is ``weighting=simple``, g^2 is ``likelihood``.
    """

    name = "score-sde"
    summary = "a stochastic process from data to noise, and the gradients that lead it back"
    paper = "Song et al. 2021, Score-based generative modeling through stochastic differential equations"
    samplers = first(PredictorCorrector)
    Config = ScoreSdeConfig

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        if space.measure != Measure.lebesgue(2):  # a few cases tell
            return {}
        others: tuple[ScheduleName, ...] = ("exploding", "sub-vp")
        return {sde: replace(cls.tiny(space), schedule=sde) for sde in others}


@dataclass(frozen=True)
class EdmConfig(PathConfig):
    """Options of ``edm``: those of ``PathConfig``."""

    schedule: ScheduleName = "exploding"
    start: Literal["gaussian", "none"] = "none"
    times: TimesName = "log-normal"
    weighting: WeightingName = "edm"
    smallest: float = 0.004
    largest: float = 160.0
    sample_steps: int = 18


class Edm(PathModel):
    """A denoiser preconditioned so that its net sees, and is to give, numbers of one size at all noise levels.

    Where alpha = 1, to predict v (of opposite sign) is c_skip, c_out and c_in of Karras et al. 2022 (table 1), and the
    log SNR is c_noise but for a factor.
    """

    name = "edm"
    summary = "a preconditioned denoiser, trained where noise matters most, sampled in 18 steps of Heun"
    paper = "Karras, Aittala, Aila & Laine 2022, Elucidating the design space of diffusion-based generative models"
    samplers = first(KarrasSolver)
    Config = EdmConfig


@dataclass(frozen=True)
class FlowMatchingConfig(PathConfig):
    """Options of ``flow-matching``: those of ``PathConfig``."""

    schedule: ScheduleName = "linear"
    predict: PredictionName = "velocity"
    times: TimesName = "uniform"
    weighting: WeightingName = "flat"


class FlowMatching(PathModel):
    """Straight lines from data to noise, and the velocity along them."""

    name = "flow-matching"
    summary = "a velocity field that carries noise to data along straight lines on average"
    paper = "Lipman et al. 2023, Flow matching for generative modeling"
    Config = FlowMatchingConfig


@dataclass(frozen=True)
class DiffusionPolicyConfig(PathConfig):
    """Options of ``diffusion-policy``: those of ``PathConfig``."""

    schedule: ScheduleName = "cosine-chain"
    betas: int = 100
    predict: PredictionName = "eps"
    start: Literal["gaussian", "none"] = "none"
    clip: Literal["never", "last", "always"] = "always"
    times: TimesName = "uniform"
    weighting: WeightingName = "simple"
    sample_steps: int = 100


class DiffusionPolicy(PathModel):
    """Chunks of actions given what is seen, by a chain of 100 steps and a U-Net along the steps of a chunk.

    As in the paper but for what the docstring of this file says, and for the size of its net, which is one for a CPU.
    """

    name = "diffusion-policy"
    summary = "the next actions of a robot, made of noise by a net along their steps that is told what is seen"
    paper = "Chi, Feng, Du, Xu, Cousineau, Burchfiel & Song 2023, Diffusion policy"
    samplers = first(Ancestral)
    Config = DiffusionPolicyConfig

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if not space.columns or preprocess(space).code_sizes or preprocess(space).cells is not None:
            return "its data are chunks of real numbers, [steps, actions]. Fit a vdm, or declare columns as real."
        return super().refuses(space, context, config)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        if len(space.event_shape) == 1:  # columns, by the MLP of all paths
            return super().recipe(space)
        # what succeeds goes on getting better long after held-out likelihood has begun to fall (docs/howto/actions.md)
        return Recipe(batch=256, lr=1e-3, warmup=100, weight_decay=1e-6, clip=1.0, ema=0.999, keep="last")

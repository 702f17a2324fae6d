"""The presets of a Gaussian path (families/path.py):

                    path             predicts    times, weighting       from
    ddpm            chain of 1000    eps         uniform, simple        Ho et al. 2020
    vdm             cosine           v           log-snr, likelihood    Kingma et al. 2021
    flow-matching   straight lines   velocity    uniform, flat          Lipman et al. 2023

``ddpm`` is as published; ``vdm`` reaches a higher likelihood in fewer steps, and as flow-matching starts from the
Gaussian of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pofx.core.requests import SOLVERS, Ancestral, FewStep
from pofx.families.path import PathConfig, PathModel, PredictionName, ScheduleName, TimesName, WeightingName


@dataclass(frozen=True)
class DdpmConfig(PathConfig):
    """Options of ``ddpm``: those of ``PathConfig``."""

    schedule: ScheduleName = "ddpm"
    predict: PredictionName = "eps"
    start: Literal["gaussian", "none"] = "none"
    times: TimesName = "uniform"
    weighting: WeightingName = "simple"
    sample_steps: int = 1000


class Ddpm(PathModel):
    """A chain of small steps, undone one by one."""

    name = "ddpm"
    summary = "a network that finds the noise in data, taken away in a thousand steps"
    paper = "Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models"
    samplers = (FewStep, Ancestral, *(s for s in SOLVERS if s is not Ancestral))
    Config = DdpmConfig


class Vdm(PathModel):
    """Variance-preserving diffusion, trained on its variational bound."""

    name = "vdm"
    summary = "a network that removes Gaussian noise, trained on its bound of the likelihood"
    paper = "Kingma, Salimans, Poole & Ho 2021, Variational diffusion models"
    Config = PathConfig


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

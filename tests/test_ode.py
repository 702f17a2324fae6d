"""Differential equations of densities: the way, the divergence along it, and errors that are as large as they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pofx.core.comparison import interval
from pofx.core.errors import NotConverged
from pofx.core.likelihood import Estimate, mean
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import OdeLikelihood, VariationalBound
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import ode, ode_sample
from pofx.paths.predict import point
from pofx.paths.schedule import SCHEDULES, Chain, Schedule
from pofx.spaces import Real, Table
from pofx.testing.wrong_numbers import known
from pofx.transforms import ode as solver
from pofx.transforms.continuous import Continuous
from pofx.transforms.ode import divergence, estimate, follow, probes, sketch, travel

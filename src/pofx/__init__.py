"""pofx: p(x), the probability of data, in every way the field knows, behind one contract."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# Module -> its public names. Nothing is imported (torch least of all) until a name is used.
_MODULES = {
    "data.load": "load",
    "train.fit": "fit resume",
    "train.run": "read_run",
    "evaluate.compare": "compare resume_comparison",
    "evaluate.judge": "judge",
    "evaluate.predict": "predict",
    "core.requests": "ExactLikelihood Dequantised Windowed Elbo Iwae VariationalBound OdeLikelihood "
    "StepByStep Decoding PathSearch DpmSolver DpmSolver3 Heun SdeSolver Ddim Euler Ancestral Adaptive KarrasSolver "
    "Restart PredictorCorrector AnnealedLangevin",
    "core.model": "Model",
    "core.likelihood": "Exact LowerBound UpperBound Estimate Unavailable",
    "spaces.table": "Table Real Integer Category",
    "spaces.image": "Image",
    "spaces.label": "Label",
    "spaces.text": "Text",
    "core.registry": "family",
    "core.errors": "PofxError",
}
_PUBLIC = {name: f"pofx.{module}" for module, names in _MODULES.items() for name in names.split()}
__all__ = [  # the same, for type checkers
    "Adaptive",
    "Ancestral",
    "AnnealedLangevin",
    "Category",
    "Ddim",
    "Decoding",
    "Dequantised",
    "DpmSolver",
    "DpmSolver3",
    "Elbo",
    "Estimate",
    "Euler",
    "Exact",
    "ExactLikelihood",
    "Heun",
    "Image",
    "Integer",
    "Iwae",
    "KarrasSolver",
    "Label",
    "LowerBound",
    "Model",
    "OdeLikelihood",
    "PathSearch",
    "PofxError",
    "PredictorCorrector",
    "Real",
    "Restart",
    "SdeSolver",
    "StepByStep",
    "Table",
    "Text",
    "Unavailable",
    "UpperBound",
    "VariationalBound",
    "Windowed",
    "__version__",
    "compare",
    "family",
    "fit",
    "judge",
    "load",
    "predict",
    "read_run",
    "resume",
    "resume_comparison",
]  # fmt: skip

if TYPE_CHECKING:
    from pofx.core.errors import PofxError
    from pofx.core.likelihood import Estimate, Exact, LowerBound, Unavailable, UpperBound
    from pofx.core.model import Model
    from pofx.core.registry import family
    from pofx.core.requests import (
        Adaptive,
        Ancestral,
        AnnealedLangevin,
        Ddim,
        Decoding,
        Dequantised,
        DpmSolver,
        DpmSolver3,
        Elbo,
        Euler,
        ExactLikelihood,
        Heun,
        Iwae,
        KarrasSolver,
        OdeLikelihood,
        PathSearch,
        PredictorCorrector,
        Restart,
        SdeSolver,
        StepByStep,
        VariationalBound,
        Windowed,
    )
    from pofx.data.load import load
    from pofx.evaluate.compare import compare, resume_comparison
    from pofx.evaluate.judge import judge
    from pofx.evaluate.predict import predict
    from pofx.spaces import Category, Image, Integer, Label, Real, Table, Text
    from pofx.train.fit import fit, resume
    from pofx.train.run import read_run


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pofx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""pofx: p(x), the probability of data, in every way the field knows, behind one contract."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_REQUESTS = """ExactLikelihood Dequantised Windowed Elbo Iwae VariationalBound OdeLikelihood
    StepByStep Decoding DpmSolver Heun SdeSolver Ddim Euler Ancestral"""

# Public name -> module. Nothing is imported (torch least of all) until a name is used.
_PUBLIC = {
    "load": "pofx.data.load",
    "fit": "pofx.train.fit",
    "compare": "pofx.evaluate.compare",
    "predict": "pofx.evaluate.predict",
    "resume_comparison": "pofx.evaluate.compare",
    "read_run": "pofx.train.run",
    "resume": "pofx.train.fit",
    **dict.fromkeys(_REQUESTS.split(), "pofx.core.requests"),
    "Model": "pofx.core.model",
    "Exact": "pofx.core.likelihood",
    "LowerBound": "pofx.core.likelihood",
    "UpperBound": "pofx.core.likelihood",
    "Estimate": "pofx.core.likelihood",
    "Unavailable": "pofx.core.likelihood",
    "Table": "pofx.spaces.table",
    "Image": "pofx.spaces.image",
    "Label": "pofx.spaces.label",
    "Text": "pofx.spaces.text",
    "Real": "pofx.spaces.table",
    "Integer": "pofx.spaces.table",
    "Category": "pofx.spaces.table",
    "family": "pofx.core.registry",
    "PofxError": "pofx.core.errors",
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from pofx.core.errors import PofxError as PofxError
    from pofx.core.likelihood import Estimate as Estimate
    from pofx.core.likelihood import Exact as Exact
    from pofx.core.likelihood import LowerBound as LowerBound
    from pofx.core.likelihood import Unavailable as Unavailable
    from pofx.core.likelihood import UpperBound as UpperBound
    from pofx.core.model import Model as Model
    from pofx.core.registry import family as family
    from pofx.core.requests import Ancestral as Ancestral
    from pofx.core.requests import Ddim as Ddim
    from pofx.core.requests import Decoding as Decoding
    from pofx.core.requests import Dequantised as Dequantised
    from pofx.core.requests import DpmSolver as DpmSolver
    from pofx.core.requests import Elbo as Elbo
    from pofx.core.requests import Euler as Euler
    from pofx.core.requests import ExactLikelihood as ExactLikelihood
    from pofx.core.requests import Heun as Heun
    from pofx.core.requests import Iwae as Iwae
    from pofx.core.requests import OdeLikelihood as OdeLikelihood
    from pofx.core.requests import SdeSolver as SdeSolver
    from pofx.core.requests import StepByStep as StepByStep
    from pofx.core.requests import VariationalBound as VariationalBound
    from pofx.core.requests import Windowed as Windowed
    from pofx.data.load import load as load
    from pofx.evaluate.compare import compare as compare
    from pofx.evaluate.compare import resume_comparison as resume_comparison
    from pofx.evaluate.predict import predict as predict
    from pofx.spaces import Category as Category
    from pofx.spaces import Image as Image
    from pofx.spaces import Integer as Integer
    from pofx.spaces import Label as Label
    from pofx.spaces import Real as Real
    from pofx.spaces import Table as Table
    from pofx.spaces import Text as Text
    from pofx.train.fit import fit as fit
    from pofx.train.fit import resume as resume
    from pofx.train.run import read_run as read_run


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pofx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

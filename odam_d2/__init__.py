"""ODAM for Detectron2: one heat map per decision of an object detector, for every detection."""

from . import (
    _requirements,  # noqa: F401  -- first: says what is missing
    data,  # registers CrowdShapes
    model_zoo,  # makes odam:// known
)
from .config import add_odam_config
from .engine.predictor import ExplainingPredictor
from .modeling import (
    ExplainSettings,
    UnsupportedModelError,
    explain,
    explain_boxes,
    explain_outputs,
)
from .structures import OdamMaps, load_instances, save_instances
from .version import __version__
from .visualization.drawing import draw, show_in_notebooks

__all__ = [
    "ExplainSettings",
    "ExplainingPredictor",
    "OdamMaps",
    "UnsupportedModelError",
    "__version__",
    "add_odam_config",
    "data",
    "draw",
    "explain",
    "explain_boxes",
    "explain_outputs",
    "load_instances",
    "model_zoo",
    "save_instances",
]

show_in_notebooks()

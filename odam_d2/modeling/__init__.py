from .explain import explain, explain_boxes
from .explainers import UnsupportedModelError
from .meta_arch import OdamRCNN, OdamRetinaNet
from .settings import ExplainSettings

__all__ = [
    "ExplainSettings",
    "OdamRCNN",
    "OdamRetinaNet",
    "UnsupportedModelError",
    "explain",
    "explain_boxes",
]

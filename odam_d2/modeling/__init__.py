from .explain import explain, explain_boxes
from .explainers import UnsupportedModelError
from .meta_arch import OdamPanopticFPN, OdamRCNN, OdamRetinaNet
from .settings import ExplainSettings

__all__ = [
    "ExplainSettings",
    "OdamPanopticFPN",
    "OdamRCNN",
    "OdamRetinaNet",
    "UnsupportedModelError",
    "explain",
    "explain_boxes",
]

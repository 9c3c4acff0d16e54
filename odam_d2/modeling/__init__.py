from .explain import explain, explain_boxes, explain_outputs
from .explainers import UnsupportedModelError
from .meta_arch import OdamFCOS, OdamPanopticFPN, OdamRCNN, OdamRetinaNet
from .settings import ExplainSettings

__all__ = [
    "ExplainSettings",
    "OdamFCOS",
    "OdamPanopticFPN",
    "OdamRCNN",
    "OdamRetinaNet",
    "UnsupportedModelError",
    "explain",
    "explain_boxes",
    "explain_outputs",
]

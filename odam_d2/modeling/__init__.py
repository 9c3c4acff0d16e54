from .explain import explain, explain_boxes, explain_outputs
from .explainers import UnsupportedModelError
from .losses import ODAM_LOSS_REGISTRY
from .meta_arch import OdamFCOS, OdamPanopticFPN, OdamRCNN, OdamRetinaNet
from .nms import ODAM_NMS_REGISTRY
from .settings import ExplainSettings

__all__ = [
    "ODAM_LOSS_REGISTRY",
    "ODAM_NMS_REGISTRY",
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

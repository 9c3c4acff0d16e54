from .adapters import Adapter, Decisions, OutputsAdapter, Trace, register_adapter
from .attribution import ODAM_METHOD_REGISTRY, Method
from .errors import UnsupportedModelError
from .explain import explain, explain_boxes, explain_outputs
from .losses import ODAM_LOSS_REGISTRY
from .meta_arch import OdamFCOS, OdamPanopticFPN, OdamRCNN, OdamRetinaNet
from .nms import ODAM_NMS_REGISTRY
from .settings import ExplainSettings
from .targets import Target, register_target

__all__ = [
    "ODAM_LOSS_REGISTRY",
    "ODAM_METHOD_REGISTRY",
    "ODAM_NMS_REGISTRY",
    "Adapter",
    "Decisions",
    "ExplainSettings",
    "Method",
    "OdamFCOS",
    "OdamPanopticFPN",
    "OdamRCNN",
    "OdamRetinaNet",
    "OutputsAdapter",
    "Target",
    "Trace",
    "UnsupportedModelError",
    "explain",
    "explain_boxes",
    "explain_outputs",
    "register_adapter",
    "register_target",
]

from .explain import explain, explain_boxes
from .explainers import UnsupportedModelError
from .meta_arch import OdamRCNN
from .settings import ExplainSettings

__all__ = ["ExplainSettings", "OdamRCNN", "UnsupportedModelError", "explain", "explain_boxes"]

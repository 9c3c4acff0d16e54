"""One file for each family of detectors; importing this package registers them."""

from .base import Explainer, UnsupportedModelError, build_explainer, register_explainer
from .pooled_heads import PooledHead, pooled_head
from .rcnn import RCNNExplainer
from .retinanet import RetinaNetExplainer

__all__ = [
    "Explainer",
    "PooledHead",
    "RCNNExplainer",
    "RetinaNetExplainer",
    "UnsupportedModelError",
    "build_explainer",
    "pooled_head",
    "register_explainer",
]

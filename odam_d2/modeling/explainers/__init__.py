"""
One file for each family of detectors; importing this package registers them.

``base.py`` is the interface, ``head.py`` what all detectors of backbone and head share,
``outputs.py`` the general way.
"""

from . import cascade  # noqa: F401  -- registers a kind of ROI heads
from .base import Explainer, UnsupportedModelError, build_explainer, register_explainer
from .dense import DenseExplainer
from .fcos import FCOSExplainer
from .head import HeadExplainer
from .outputs import OutputsExplainer
from .pooled_heads import PooledHead, Stage, pooled_head
from .rcnn import RCNNExplainer
from .retinanet import RetinaNetExplainer

__all__ = [
    "DenseExplainer",
    "Explainer",
    "FCOSExplainer",
    "HeadExplainer",
    "OutputsExplainer",
    "PooledHead",
    "RCNNExplainer",
    "RetinaNetExplainer",
    "Stage",
    "UnsupportedModelError",
    "build_explainer",
    "pooled_head",
    "register_explainer",
]

"""
One file for each family of detectors; importing this package registers them.

``base.py`` is the interface, ``head.py`` what all detectors of backbone and head share,
``outputs.py`` the general way, ``trace.py`` what is kept of a run.
"""

from . import cascade  # noqa: F401  -- registers a kind of ROI heads
from .base import Adapter, build_adapter, register_adapter
from .dense import DenseAdapter
from .fcos import FCOSAdapter
from .head import HeadAdapter
from .outputs import OutputsAdapter
from .pooled_heads import PooledHead, Stage, pooled_head
from .rcnn import RCNNAdapter
from .retinanet import RetinaNetAdapter
from .trace import Decisions, Trace

__all__ = [
    "Adapter",
    "Decisions",
    "DenseAdapter",
    "FCOSAdapter",
    "HeadAdapter",
    "OutputsAdapter",
    "PooledHead",
    "RCNNAdapter",
    "RetinaNetAdapter",
    "Stage",
    "Trace",
    "build_adapter",
    "pooled_head",
    "register_adapter",
]

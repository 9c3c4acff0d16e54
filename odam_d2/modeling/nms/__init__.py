"""What chooses among a detector's candidates: a registry, NMS, soft-NMS and Odam-NMS."""

from .build import build_odam_nms
from .postprocessors import Nms, OdamNms, SoftNms
from .registry import ODAM_NMS_REGISTRY, Candidates, Postprocessor

__all__ = [
    "ODAM_NMS_REGISTRY",
    "Candidates",
    "Nms",
    "OdamNms",
    "Postprocessor",
    "SoftNms",
    "build_odam_nms",
]

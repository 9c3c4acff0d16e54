"""Losses that train heat maps: a registry, and Odam-Train."""

from .odam_train import OdamTrainLoss
from .positives import Labels, Positives, choose, limited
from .registry import ODAM_LOSS_REGISTRY
from .training import LOSS, OdamTraining, build_odam_training

__all__ = [
    "LOSS",
    "ODAM_LOSS_REGISTRY",
    "Labels",
    "OdamTrainLoss",
    "OdamTraining",
    "Positives",
    "build_odam_training",
    "choose",
    "limited",
]

"""What the command line tools share: configs, weights, training."""

from .detector import Detector, build_detector, setup_config
from .lazy_setup import setup_lazy
from .predictor import ExplainingPredictor
from .setup import setup_cfg
from .trainer import Trainer
from .weights import load_weights

__all__ = [
    "Detector",
    "ExplainingPredictor",
    "Trainer",
    "build_detector",
    "load_weights",
    "setup_cfg",
    "setup_config",
    "setup_lazy",
]

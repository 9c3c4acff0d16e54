"""What the command line tools share: configs, weights, training."""

from .lazy_setup import setup_lazy
from .setup import setup_cfg
from .trainer import Trainer
from .weights import load_weights

__all__ = ["Trainer", "load_weights", "setup_cfg", "setup_lazy"]

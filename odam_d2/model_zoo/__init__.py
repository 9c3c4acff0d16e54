"""
The project's configs and detectors, with the functions of Detectron2's ``model_zoo``. Importing
this package makes ``odam://`` addresses known.
"""

from .config_files import available_configs, get_config_file
from .handler import available_weights
from .strip import strip_checkpoint
from .zoo import get, get_checkpoint_url, get_config

__all__ = [
    "available_configs",
    "available_weights",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "strip_checkpoint",
]

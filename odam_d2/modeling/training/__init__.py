"""
Training heat maps: a view of a model whose losses, in training, have one more, one file for each
family of detectors.
"""

from . import dense, rcnn  # noqa: F401  -- register their families
from .view import training_view

__all__ = ["training_view"]

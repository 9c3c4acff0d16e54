"""Detectors that come with the project. Importing this package makes ``odam://`` known."""

from .handler import available_weights
from .strip import strip_checkpoint

__all__ = ["available_weights", "strip_checkpoint"]

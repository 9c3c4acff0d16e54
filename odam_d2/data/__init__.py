"""Data sets. Importing this package registers them with Detectron2."""

from . import builtin  # noqa: F401  (registers)

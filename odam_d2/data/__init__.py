"""
Data sets. Importing this package registers CrowdShapes, which is the project's own; public ones are
registered by :func:`register_datasets`.
"""

from .builtin import register_datasets
from .crowdshapes import register_crowdshapes

__all__ = ["register_datasets"]

register_crowdshapes()

"""
Data sets. Importing this package registers CrowdShapes, which is the project's own; public ones are
registered by :func:`register_datasets`.
"""

from .builtin import register_datasets
from .crowdshapes import SPLITS, register_crowdshapes
from .random_labels import register_random_labels

__all__ = ["register_datasets", "register_random_labels"]

register_crowdshapes()
for _name in SPLITS:
    register_random_labels(_name)

"""Registers the project's data sets when imported, as `detectron2.data.datasets.builtin` does."""

import os

from .bccd import register_bccd, register_coco128
from .crowdhuman import register_crowdhuman
from .crowdshapes import register_crowdshapes


def register_all() -> None:
    """Register every data set; those already registered are left alone, none is read or written."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))  # as in Detectron2
    register_bccd(root)
    register_coco128(root)
    register_crowdhuman(root)
    register_crowdshapes()


register_all()

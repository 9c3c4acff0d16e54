"""Registering data sets, as `detectron2.data.datasets.builtin` does."""

import os

from .bccd import register_bccd, register_coco128
from .crowdhuman import register_crowdhuman

__all__ = ["register_datasets"]


def register_datasets(root: str | None = None) -> None:
    """
    Register the public data sets that configs of this project name: ``bccd_*``, ``coco128_dev`` and
    ``crowdhuman_*``. Names that are registered are left alone, nothing is read or written.

    Other projects register the same names, and Detectron2 takes each of them once. So importing
    odam_d2 does not; the tools call this after the config, and what it imports, has been read.

    Args:
        root: the folder of the data sets, by default ``$DETECTRON2_DATASETS``, else ``datasets``,
            as in Detectron2.
    """
    default = os.getenv("DETECTRON2_DATASETS", "datasets")
    root = os.path.expanduser(root or default)
    register_bccd(root)
    register_coco128(root)
    register_crowdhuman(root)

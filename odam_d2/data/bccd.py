"""
Real pictures with COCO annotations: blood cells (BCCD) and 96 images of COCO train2017.

Both are looked for under the folder that ``DETECTRON2_DATASETS`` names, as Detectron2 does; they
are not part of this project.
"""

import os

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

__all__ = ["BCCD_CLASSES", "register_bccd", "register_coco128"]

BCCD_CLASSES = ["RBC", "WBC", "Platelets"]  # by category id: red cells, white cells, platelets


def register_bccd(root: str) -> None:
    """
    Register ``bccd_train`` (205 images of 640x480) and ``bccd_val`` (87).

    Args:
        root: the folder that holds ``bccd/``.
    """
    for split in ("train", "val"):
        json_file = os.path.join(root, f"bccd/annotations/instances_bccd_{split}.json")
        metadata = {"thing_classes": BCCD_CLASSES}
        _register(f"bccd_{split}", json_file, os.path.join(root, "bccd/images"), metadata)


def register_coco128(root: str) -> None:
    """
    Register ``coco128_dev`` (96 images of COCO train2017) with COCO's classes, ids and colours.

    Args:
        root: the folder that holds ``coco128/``.
    """
    json_file = os.path.join(root, "coco128/annotations/instances_coco128_dev.json")
    metadata = _get_builtin_metadata("coco")
    _register("coco128_dev", json_file, os.path.join(root, "coco128/images"), metadata)


def _register(name: str, json_file: str, image_root: str, metadata: dict) -> None:
    if name not in DatasetCatalog.list():
        register_coco_instances(name, metadata, json_file, image_root)

"""
Real pictures with COCO annotations: blood cells (BCCD) and 96 images of COCO train2017.

Both are looked for under the folder that ``DETECTRON2_DATASETS`` names, as Detectron2 does; they are
not part of this project.
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from odam_d2.errors import UserError

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
    if name in DatasetCatalog.list():
        return
    DatasetCatalog.register(name, lambda: _load(name, json_file, image_root))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def _load(name: str, json_file: str, image_root: str) -> list[dict]:
    if not os.path.isfile(json_file):
        raise UserError(
            f"data set {name!r} needs {json_file!r}, which does not exist; the environment "
            "variable DETECTRON2_DATASETS names the folder of the data sets"
        )
    return load_coco_json(json_file, image_root, name)

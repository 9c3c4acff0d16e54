"""
CrowdHuman (Shao et al., arXiv 1805.00123): 15,000 images for training and 4,370 for validation with
23 people each, from the public ``.odgt`` files.

The files are looked for under the folder that ``DETECTRON2_DATASETS`` names::

    crowdhuman/annotation_train.odgt
    crowdhuman/annotation_val.odgt
    crowdhuman/Images/ID.jpg
"""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from odam_d2.core.errors import InputError

from .annotation_checks import FARTHEST
from .json_lines import field, numbers, read_json_lines

__all__ = ["load_odgt", "register_crowdhuman"]

_BOXES = {"full": "fbox", "visible": "vbox", "head": "hbox"}


def load_odgt(
    path: str, image_root: str, box: str = "full", check_images: bool = False
) -> list[dict]:
    """
    Read an ``.odgt`` file: a JSON object for each image, one in each line.

    Args:
        path: of the file.
        image_root: folder with ``ID.jpg`` for each image.
        box: which box is to be detected: ``"full"`` (the whole body, also where it is hidden or
            beyond the image), ``"visible"`` or ``"head"``.
        check_images: whether a missing image is an error now, not when it is read.

    Returns:
        Detectron2's list of dicts, without ``height`` and ``width``, which the file does not have
        and Detectron2's ``DatasetMapper`` takes from the image. Boxes of negative width or height
        are left out. Each annotation also has the keys ``full_box``, ``visible_box`` and
        ``head_box``, XYWH in pixels, those that there are. What is to be ignored (``extra.ignore``,
        anything but a ``person``, for heads also ``head_attr.ignore``) has ``iscrowd`` 1:
        Detectron2 does not train on it, and :class:`odam_d2.evaluation.CrowdEvaluator` does not
        count detections there.

    Raises:
        InputError: a line is malformed; the message says which one, and why.
        FileNotFoundError: there is no such file.
    """
    if box not in _BOXES:
        raise InputError(f"no {box!r} boxes in CrowdHuman; there are {', '.join(_BOXES)}")
    seen = set()

    def entry(record: dict) -> dict:
        found = _entry(record, image_root, _BOXES[box])
        if found["image_id"] in seen:
            raise ValueError(f"image {found['image_id']!r} is there twice")
        if check_images and not os.path.isfile(found["file_name"]):
            raise ValueError(f"no image {found['file_name']!r}")
        seen.add(found["image_id"])
        return found

    entries = list(read_json_lines(path, entry))
    if not entries:
        raise InputError(f"{path} has no image in it")
    return entries


def _entry(record: dict, image_root: str, key: str) -> dict:
    image_id, people = field(record, "ID", str), field(record, "gtboxes", list)
    for person in people:
        if not isinstance(person, dict):
            raise ValueError(f"gtboxes must hold objects, not {type(person).__name__}")
    return {
        "file_name": os.path.join(image_root, f"{image_id}.jpg"),
        "image_id": image_id,
        "annotations": [a for a in (_annotation(p, key) for p in people) if _has_extent(a)],
    }


def _has_extent(annotation: dict) -> bool:
    """The public tools leave out boxes with a negative width or height."""
    return annotation["bbox"][2] >= 0 and annotation["bbox"][3] >= 0


def _annotation(person: dict, key: str) -> dict:
    boxes = {
        f"{name}_box": _box(person, of_name)
        for name, of_name in _BOXES.items()
        if of_name in person or of_name == key
    }
    ignored = field(person, "tag", str) != "person" or _is_ignored(person, "extra")
    if key == _BOXES["head"]:
        ignored = ignored or _is_ignored(person, "head_attr")
    return {
        "bbox": _box(person, key),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": int(ignored),
        **boxes,
    }


def _is_ignored(person: dict, key: str) -> bool:
    value = field(person, key, dict, {}).get("ignore", 0)
    if value not in (0, 1):
        raise ValueError(f"ignore of {key} must be 0 or 1, not {value!r}")
    return value == 1


def _box(person: dict, key: str) -> list[float]:
    box = numbers(person, key, "x, y, width, height")
    if max(map(abs, box)) > FARTHEST:
        raise ValueError(f"{key} {box} lies more than {FARTHEST} pixels out")
    return box


def register_crowdhuman(root: str) -> None:
    """
    Register ``crowdhuman_train`` and ``crowdhuman_val`` (full bodies). Nothing is read yet.

    Args:
        root: the folder that holds ``crowdhuman/``.
    """
    images = os.path.join(root, "crowdhuman/Images")
    for split in ("train", "val"):
        name = f"crowdhuman_{split}"
        if name in DatasetCatalog.list():
            continue
        path = os.path.join(root, f"crowdhuman/annotation_{split}.odgt")
        DatasetCatalog.register(name, lambda path=path: load_odgt(path, images, check_images=True))
        MetadataCatalog.get(name).set(
            odgt_file=path,
            image_root=images,
            evaluator_type="crowdhuman",
            thing_classes=["person"],
        )

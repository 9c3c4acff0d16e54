"""
CrowdHuman (Shao et al., arXiv 1805.00123): 15,000 images for training and 4,370 for validation with
23 people each, from the public ``.odgt`` files.

The files are looked for under the folder that ``DETECTRON2_DATASETS`` names::

    crowdhuman/annotation_train.odgt
    crowdhuman/annotation_val.odgt
    crowdhuman/Images/ID.jpg
"""

from __future__ import annotations

import json
import math
import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from odam_d2.core.errors import InputError

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
    entries, seen = [], set()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = _entry(line, image_root, _BOXES[box])
                if entry["image_id"] in seen:
                    raise ValueError(f"image {entry['image_id']!r} is there twice")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}: {_words(error)}") from error
            if check_images and not os.path.isfile(entry["file_name"]):
                raise InputError(f"{path}, line {number}: no image {entry['file_name']!r}")
            seen.add(entry["image_id"])
            entries.append(entry)
    if not entries:
        raise InputError(f"{path} has no image in it")
    return entries


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    if isinstance(error, KeyError):
        return f"no key {error}"
    return str(error)


def _entry(line: str, image_root: str, key: str) -> dict:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is needed, not {type(record).__name__}")
    image_id, people = record["ID"], record["gtboxes"]
    if not isinstance(image_id, str) or not isinstance(people, list):
        raise ValueError("ID must be a string and gtboxes a list")
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
        f"{name}_box": _box(person[field], field)
        for name, field in _BOXES.items()
        if field in person or field == key
    }
    extra, head = person.get("extra", {}), person.get("head_attr", {})
    ignored = person["tag"] != "person" or extra.get("ignore", 0) != 0
    if key == "hbox":
        ignored = ignored or head.get("ignore", 0) != 0
    return {
        "bbox": _box(person[key], key),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": int(ignored),
        **boxes,
    }


def _box(values: object, field: str) -> list[float]:
    numbers = isinstance(values, list) and all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in values
    )
    if not numbers or len(values) != 4:
        raise ValueError(f"{field} must be 4 numbers x, y, width, height, not {values!r}")
    return [float(v) for v in values]


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

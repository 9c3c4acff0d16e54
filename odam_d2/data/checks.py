"""Is a data set fit for what a run does with it? Checked as a whole, before its first picture."""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from reprlib import repr as short

import numpy as np
from torch.utils.data import Dataset

from odam_d2.errors import UserError, one_line

from .annotation_checks import (
    box_fault,
    category_fault,
    keypoints_fault,
    segmentation_fault,
    writing_fault,
)

__all__ = ["DatasetUse", "check_coco_file", "check_entries", "plain_id"]

_IDS = (int, str, float, np.integer)  # what goes to a file of figures and comes back as it was
_PICTURES = ("file_name", "sem_seg_file_name")
_IN_COCO = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


@dataclass(frozen=True)
class DatasetUse:
    """
    What a run does with a data set, beyond reading its pictures.

    Attributes:
        training: a detector learns from it: ``annotations`` or semantic labels are there.
        annotations: they are what results are compared with: every entry has them, also those of
            crowds are looked at, and ``thing_classes`` names the classes.
        image_ids: results are told apart by them: every entry has one of its own.
        coco: it is evaluated by Detectron2's ``COCOEvaluator``.
        sizes: every entry has ``height`` and ``width``.
        masks, keypoints: ``segmentation``, ``keypoints`` are looked at where they are.
        written: a file in COCO's format is made of it.
    """

    training: bool = False
    annotations: bool = False
    image_ids: bool = False
    coco: bool = False
    sizes: bool = False
    masks: bool = False
    keypoints: bool = False
    written: bool = False


def plain_id(image_id: object) -> object:
    """An ``image_id`` that JSON can hold: of numpy's integers, Python's."""
    return image_id.item() if isinstance(image_id, np.integer) else image_id


def check_entries(name: str, entries: object, metadata: Mapping, use: DatasetUse) -> None:
    """
    Check what a data set's function returned. What a run does not look at is not checked; what
    Detectron2 takes there is right.

    Args:
        name: of the data set.
        entries: Detectron2's list of dicts. A ``torch.utils.data.Dataset``, which it also takes, is
            not read.
        metadata: of the data set, for ``thing_classes``, ``keypoint_names`` and ``json_file``.
        use: what is done with it.

    Raises:
        UserError: naming the data set, the entry and the annotation, counted from 0, and the key.
    """
    where = f"data set {name!r}"
    if isinstance(entries, Dataset):
        return
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        raise UserError(f"{where} must be a list of dicts, not {type(entries).__name__}")
    if not entries:
        raise UserError(f"{where} is empty: it has no entry")
    classes = metadata.get("thing_classes")
    if use.annotations and not classes:
        raise UserError(f"{where} has no thing_classes in its metadata: its classes have no names")
    points = len(metadata.get("keypoint_names", ())) or None
    if use.coco and "json_file" not in metadata:  # Detectron2 writes one, with masks
        use = replace(use, written=True)
    for number, entry in enumerate(entries):
        fault = _entry_fault(entry, use, "json_file" in metadata)
        fault = fault or _annotations_fault(entry, use, classes, points)
        if fault:
            raise UserError(f"{where}, {_named(number, entry)}{fault}")
    _check_labels(where, entries, use, bool(classes))
    if use.image_ids:
        _check_ids(where, entries)


def _named(number: int, entry: object) -> str:
    file = entry.get("file_name") if isinstance(entry, Mapping) else None
    named = f" ({os.fspath(file)!r})" if isinstance(file, (str, os.PathLike)) else ""
    return f"entry {number}{named}: "


def _entry_fault(entry: object, use: DatasetUse, has_file: bool) -> str | None:
    """What is wrong with an entry, but for its annotations."""
    if not isinstance(entry, Mapping):
        return f"a dict is needed, not {type(entry).__name__}"
    if "file_name" not in entry:
        return "it has no file_name"
    fault = _picture_fault(entry) or _size_fault(entry, use.sizes or (use.coco and not has_file))
    if fault or not use.image_ids:
        return fault
    if "image_id" not in entry:
        return "it has no image_id, by which results are told apart"
    image_id = entry["image_id"]
    if not isinstance(image_id, _IDS) or image_id != image_id:  # nan is not itself
        return f"image_id must be a number or a string, not {short(image_id)}"
    if use.coco and not has_file and isinstance(image_id, np.generic):
        return f"image_id is of {type(image_id).__name__}, which COCO's format cannot hold: use int"
    return None


def _picture_fault(entry: Mapping) -> str | None:
    for key in _PICTURES:
        if key not in entry:
            continue
        path = entry[key]
        if not isinstance(path, (str, os.PathLike)):
            return f"{key} must be a path, not {short(path)}"
        if "://" in os.fspath(path):  # an address that Detectron2 resolves
            continue
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            return f"{key} {os.fspath(path)!r}: {getattr(error, 'strerror', None) or error}"
        if not stat.S_ISREG(mode):
            return f"{key} {os.fspath(path)!r} is no regular file"
    return None


def _size_fault(entry: Mapping, needed: bool) -> str | None:
    for key in ("height", "width"):
        if key not in entry:
            if needed:
                return f"it has no {key}"
            continue
        value = entry[key]
        real = isinstance(value, (int, float, np.integer, np.floating))
        if not real or not value >= 1 or value % 1:
            return f"{key} must be a number of pixels, not {short(value)}"
    return None


def _annotations_fault(
    entry: Mapping, use: DatasetUse, classes: Sequence | None, points: int | None
) -> str | None:
    annotations = entry.get("annotations", ())
    if not isinstance(annotations, Sequence):
        return f"annotations must be a list, not {type(annotations).__name__}"
    size = (entry.get("height"), entry.get("width"))
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping):
            return f"annotation {number} must be a dict, not {type(annotation).__name__}"
        try:
            fault = _annotation_fault(annotation, use, classes, points, size)
        except KeyError as error:
            fault = f"it has no {error.args[0]}"
        if fault:
            return f"annotation {number}: {fault}"
    return None


def _annotation_fault(
    annotation: Mapping,
    use: DatasetUse,
    classes: Sequence | None,
    points: int | None,
    size: tuple,
) -> str | None:
    looked_at = use.annotations or use.training or use.coco
    fault = None
    if annotation.get("iscrowd", 0):
        looked_at = use.annotations
    elif looked_at or classes:  # Detectron2 counts the objects of each class
        fault = category_fault(annotation["category_id"], classes)
    if fault or not looked_at:
        return fault
    fault = box_fault(annotation["bbox"], annotation["bbox_mode"])
    masks = annotation.get("segmentation") if use.masks or use.written else None
    if not fault and masks is not None and not (isinstance(masks, (list, Mapping)) and not masks):
        fault = segmentation_fault(masks, size) if use.masks else writing_fault(masks)
    if not fault and use.keypoints and "keypoints" in annotation:
        fault = keypoints_fault(annotation["keypoints"], points)
    return fault


def _check_labels(where: str, entries: Sequence, use: DatasetUse, named: bool) -> None:
    """Entries have annotations where they are needed, and where Detectron2 relies on the first."""
    labeled = ["annotations" in entry for entry in entries]
    semantic = any("sem_seg_file_name" in entry for entry in entries)
    if use.training and not any(labeled) and not semantic:
        raise UserError(f"{where} has no annotations to learn from in any entry")
    mixed = any(labeled) if use.training else labeled[0] and named
    if (use.annotations or mixed) and not all(labeled):
        number = labeled.index(False)
        raise UserError(
            f"{where}, {_named(number, entries[number])}it has no annotations (an empty list says "
            "that nothing is there)"
        )


def _check_ids(where: str, entries: Sequence) -> None:
    first: dict = {}
    for number, entry in enumerate(entries):
        other = first.setdefault(entry["image_id"], number)
        if other != number:
            raise UserError(
                f"{where}, {_named(number, entry)}image_id {plain_id(entry['image_id'])!r} is also "
                f"that of entry {other}; each needs one of its own"
            )


def check_coco_file(name: str, json_file: str) -> None:
    """
    Check what only the file of a data set in COCO's format shows: its readers keep one of several
    images with the same id, and ``COCOEvaluator`` opens it again, after all images are done.

    Raises:
        UserError: naming the file, what is wrong in it, and where, counted from 0.
    """
    where = f"data set {name!r}, {json_file}"
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
        images, annotations = content["images"], content.get("annotations", [])
        first: dict = {}
        for number, image in enumerate(images):
            other = first.setdefault(image["id"], number)
            if other != number:
                raise UserError(f"{where}: images {other} and {number} have the same id "
                                f"{image['id']!r}")  # fmt: skip
        for number, annotation in enumerate(annotations):
            for key in _IN_COCO:
                if key not in annotation:
                    raise UserError(f"{where}: annotation {number} has no {key}, which COCO's "
                                    "evaluation needs")  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where} is not in COCO's format: {what}") from error

"""
What errors cost: the AP that would be gained if all errors of one kind were fixed, as by the
oracles of Bolya et al., "TIDE", ECCV 2020.

AP is pycocotools' at one IoU threshold: the mean over classes that have objects. So a class whose
objects were all missed no longer counts once its missed objects are fixed.

Other than in the authors' tool, which turns outcomes over, fixed detections are matched anew; kinds
that are not fixed have no say in which detection finds an object, and gains are not cut off at 0.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odam_d2.core.errors import InputError

from .error_types import FIXABLE, KINDS, Finding

__all__ = ["SIZES", "AnalysedImage", "ap_costs", "fixed_ap", "precision_recall"]

SIZES = {"all": (0, float("inf")), "small": (0, 32**2), "medium": (32**2, 96**2),
         "large": (96**2, float("inf"))}  # fmt: skip
"""Areas of COCO's sizes of objects, in pixels of the image."""


@dataclass(frozen=True)
class AnalysedImage:
    """
    What was to be found in an image, what was found, and what is wrong with that.

    Attributes:
        boxes: (N, 4), XYXY in pixels, detected.
        scores: (N,).
        classes: (N,) contiguous ids.
        objects: (G, 4), XYXY in pixels, without ignore regions.
        labels: (G,) contiguous ids.
        ignore: (I, 4), XYXY in pixels, regions in which errors are not counted.
        findings: of :func:`odam_d2.analysis.error_types.sort_detections`.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    objects: torch.Tensor
    labels: torch.Tensor
    ignore: torch.Tensor
    findings: Sequence[Finding]


def ap_costs(
    images: Sequence[AnalysedImage],
    num_classes: int,
    iou_thresh: float = 0.5,
    max_detections: int = 100,
) -> dict:
    """
    AP, and what each kind of error alone takes from it, see :func:`fixed_ap`. Costs do not add up
    to 100 - AP: an error may count only once another one is fixed.

    Args:
        images: all of a data set, their findings made with the same ``iou_thresh``.

    Returns:
        ``{"AP": in percent, "costs": {kind: in points}}`` for all kinds but ``correct``. Never nan:
        without any object in the data set, AP and costs are 0.
    """
    average = fixed_ap(images, num_classes, (), iou_thresh, max_detections)
    present = {finding.kind for image in images for finding in image.findings}
    costs = dict.fromkeys(KINDS[1:], 0.0)
    for kind in costs:
        if kind in present:
            fixed = fixed_ap(images, num_classes, (kind,), iou_thresh, max_detections)
            costs[kind] = fixed - average
    return {"AP": average, "costs": costs}


def fixed_ap(
    images: Sequence[AnalysedImage],
    num_classes: int,
    kinds: Collection[str] = (),
    iou_thresh: float = 0.5,
    max_detections: int = 100,
) -> float:
    """
    AP after all errors of some kinds were fixed together, in percent.

    - ``localisation``: the detection gets its object's box; ``classification``: its object's class.
      Of several that would then find the same object the best scored one stays, and none where the
      object was found anyway.
    - ``both``, ``duplicate``, ``background``: the detection is removed.
    - ``missed``: the object is removed.

    Args:
        images: all of a data set. Detections without a finding are not counted.
        num_classes: of the data set; ids of classes and labels are below it.
        kinds: of :data:`~odam_d2.analysis.error_types.KINDS`; ``correct`` has no effect.
        iou_thresh: at which AP is taken.
        max_detections: best scored of a class in an image that count, 100 in COCO.

    Returns:
        100 where fixing left no object to find, 0 where there was none to begin with.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise InputError(f"unknown kinds of errors {unknown}; there are {', '.join(KINDS)}")
    truth, found = _as_coco(images, num_classes, kinds)
    if not truth:
        return 100.0 if any(len(image.objects) for image in images) else 0.0
    if not found:
        return 0.0
    sizes = {"all": SIZES["all"]}
    precision = _precision(
        truth, found, len(images), num_classes, iou_thresh, max_detections, sizes
    )
    return 100 * float(precision[precision > -1].mean())


def precision_recall(
    images: Sequence[AnalysedImage],
    num_classes: int,
    iou_thresh: float = 0.5,
    max_detections: int = 100,
) -> np.ndarray:
    """
    Precision at the recalls 0, 0.01, ..., 1, as pycocotools interpolates it.

    Returns:
        (101, ``num_classes``, 4) in [0, 1], of :data:`SIZES`; -1 where there is no object of that
        class and size.
    """
    truth, found = _as_coco(images, num_classes, ())
    if not truth:
        return np.full((101, num_classes, len(SIZES)), -1.0)
    return _precision(truth, found, len(images), num_classes, iou_thresh, max_detections, SIZES)


def _as_coco(
    images: Sequence[AnalysedImage], num_classes: int, kinds: Collection[str]
) -> tuple[list[dict], list[dict]]:
    """Objects and detections of all images as COCO's dicts, images numbered from 1."""
    truth, found = [], []
    for number, image in enumerate(images, 1):
        ids = torch.cat([image.classes, image.labels])
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
            raise InputError(
                f"image {number} has classes from {int(ids.min())} to {int(ids.max())}, but the "
                f"data set has {num_classes} of them"
            )
        objects, detections = _fixed(image, kinds)
        truth += [{"image_id": number, "iscrowd": 0, **x} for x in objects]
        found += [{"image_id": number, **x} for x in detections]
    return truth, found


def _fixed(image: AnalysedImage, kinds: Collection[str]) -> tuple[list[dict], list[dict]]:
    """Objects and detections, best scored first, as COCO's dicts without the image."""
    objects = image.objects.detach().to("cpu", torch.float64)
    boxes = image.boxes.detach().to("cpu", torch.float64, copy=True)  # changed below
    classes, labels, scores = (x.tolist() for x in (image.classes, image.labels, image.scores))
    removed = {x.object for x in image.findings if x.kind == "missed" and "missed" in kinds}
    taken = {x.object for x in image.findings if x.kind == "correct"}
    kept = []
    detected = [x for x in image.findings if x.detection is not None]
    for finding in sorted(detected, key=lambda x: (-scores[x.detection_row], x.detection_row)):
        row = finding.detection_row
        if finding.kind in kinds and finding.kind != "correct":
            if finding.kind not in FIXABLE or finding.object in taken:
                continue
            number = finding.object_row
            taken.add(number)
            if finding.kind == "localisation":
                boxes[row] = objects[number]
            else:
                classes[row] = labels[number]
        kept.append(row)
    truth = [_row(box, label) for number, (box, label)
             in enumerate(zip(_xywh(objects), labels, strict=True))
             if number not in removed]  # fmt: skip
    detections = _xywh(boxes)
    return truth, [{**_row(detections[row], classes[row]), "score": scores[row]} for row in kept]


def _xywh(boxes: torch.Tensor) -> list[list[float]]:
    return BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()


def _row(box: list[float], category: int) -> dict:
    return {"bbox": box, "area": box[2] * box[3], "category_id": category}


def _precision(
    truth: list[dict],
    found: list[dict],
    num_images: int,
    num_classes: int,
    iou_thresh: float,
    max_detections: int,
    sizes: Mapping[str, tuple[float, float]],
) -> np.ndarray:
    """pycocotools' (101, ``num_classes``, sizes), of at least one object."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        data = COCO()
        data.dataset = {
            "images": [{"id": number} for number in range(1, num_images + 1)],
            "categories": [{"id": number} for number in range(num_classes)],
            # COCOeval takes the id 0 for "not matched".
            "annotations": [{"id": number, **x} for number, x in enumerate(truth, 1)],
        }
        data.createIndex()
        detections = COCO()  # loadRes takes no empty list
        detections.dataset = {**data.dataset, "annotations": []}
        detections.createIndex()
        evaluation = COCOeval(data, data.loadRes(found) if found else detections, "bbox")
        evaluation.params.iouThrs = [iou_thresh]
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng = [list(area) for area in sizes.values()]
        evaluation.params.areaRngLbl = list(sizes)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][0, :, :, :, 0]  # -1: classes without objects

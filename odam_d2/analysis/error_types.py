"""
What is wrong with each detection: the error types of Bolya et al., "TIDE: A General Toolbox for
Identifying Object Detection Errors", ECCV 2020.

It was written from the paper's definitions. What they leave open is as in the authors' tool:

- where several errors apply, the first of localisation, classification, duplicate, both counts;
- each looks only at the object of highest IoU, of the detection's class or of the others, whether
  that object is found or not.

Matching, ignore regions and thresholds are COCO's: an IoU of exactly the threshold reaches it, and
of objects with equal IoU the last one counts.

Shape shorthand: N detections, G objects and I ignore regions of an image. Boxes are XYXY in pixels
of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.structures import BoxMode

from odam_d2.core.errors import InputError

__all__ = ["FIXABLE", "KINDS", "Finding", "sort_detections"]

KINDS = (
    "correct", "localisation", "classification", "both", "duplicate", "background", "missed",
)  # fmt: skip
"""
What becomes of detections, by the thresholds of :func:`sort_detections`:

- ``correct``: best score first, equal ones in the given order, each takes the free object of
  its class with the highest IoU of at least ``iou_thresh``.
- ``localisation``: the highest IoU with an object of its class is below ``iou_thresh``, but at
  least ``background_iou``.
- ``classification``: reaches ``iou_thresh`` with an object of another class.
- ``duplicate``: reaches ``iou_thresh`` with an object of its class, which is taken.
- ``both``: reaches ``background_iou`` with an object of another class only.
- ``background``: reaches it with none.
- ``missed``: an object that is neither taken nor that of a localisation or classification
  error.
"""

FIXABLE = ("localisation", "classification")  # with one thing put right, the object is found


@dataclass(frozen=True)
class Finding:
    """
    What became of a detection, or of an object that was missed.

    Attributes:
        kind: one of :data:`KINDS`.
        detection: row of the image's detections; None for ``missed``.
        object: row of the image's objects, ignore regions not among them; None for ``background``.
        iou: of the two; for ``missed`` the highest with any detection, 0 for ``background``.
    """

    kind: str
    detection: int | None
    object: int | None
    iou: float

    @property
    def detection_row(self) -> int:
        """:attr:`detection`, of every kind but ``missed``."""
        if self.detection is None:
            raise ValueError(f"{self.kind}: there is no detection")
        return self.detection

    @property
    def object_row(self) -> int:
        """:attr:`object`, of every kind but ``background``."""
        if self.object is None:
            raise ValueError(f"{self.kind}: there is no object")
        return self.object


def sort_detections(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    objects: torch.Tensor,
    labels: torch.Tensor,
    ignore: torch.Tensor,
    iou_thresh: float = 0.5,
    background_iou: float = 0.1,
) -> list[Finding]:
    """
    Sort the detections of an image by what is wrong with them, see :data:`KINDS`.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: (N,) contiguous ids.
        objects: (G, 4), without ignore regions.
        labels: (G,) contiguous ids.
        ignore: (I, 4), regions (``iscrowd``) for all classes. A detection that is not correct is
            left out where ``iou_thresh`` of *its own* area lies in one of them.
        iou_thresh: IoU from which an object counts as found; in (``background_iou``, 1].
        background_iou: IoU from which a detection is near an object. With 0, boxes that share no
            area are still not near each other.

    Returns:
        One finding for each detection that is not left out, in the given order, then one for each
        missed object.
    """
    if not 0 <= background_iou < iou_thresh <= 1:
        raise InputError(
            f"background_iou {background_iou} and iou_thresh {iou_thresh} must satisfy "
            "0 <= background_iou < iou_thresh <= 1"
        )
    iou_thresh = min(iou_thresh, 1 - 1e-10)  # COCOeval's, which allows for rounding
    iou = _overlaps(boxes, objects)
    left_out = np.any(_overlaps(boxes, ignore, of_boxes=True) >= iou_thresh, axis=1)
    same = (classes[:, None] == labels[None]).cpu().numpy()
    order = scores.argsort(descending=True, stable=True).tolist()
    matches = _match(iou * same, order, iou_thresh)

    findings = []
    lowest = background_iou or np.finfo(np.float64).tiny
    for row in range(len(boxes)):
        if row in matches:
            number = matches[row]
            findings.append(Finding("correct", row, number, float(iou[row, number])))
        elif not left_out[row]:
            findings.append(_error(row, iou[row] * same[row], iou[row] * ~same[row],
                                   iou_thresh, lowest))  # fmt: skip
    return findings + _missed(findings, iou)


def _missed(findings: list[Finding], iou: np.ndarray) -> list[Finding]:
    """The objects that these findings on detections leave over, by the IoU (N, G) of both."""
    accounted = {x.object for x in findings if x.kind in ("correct", *FIXABLE)}
    return [
        Finding("missed", None, number, float(best))
        for number, best in enumerate(iou.max(axis=0, initial=0))
        if number not in accounted
    ]


def _overlaps(boxes: torch.Tensor, others: torch.Tensor, of_boxes: bool = False) -> np.ndarray:
    """
    (n, m) IoU, or with ``of_boxes`` intersection over the area of the first. By pycocotools, so
    that what is correct here is so for COCOeval to the last bit.
    """
    first, second = (
        BoxMode.convert(x.detach().cpu().double(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).numpy()
        for x in (boxes, others)
    )
    iou = mask_utils.iou(first, second, [int(of_boxes)] * len(second))
    return np.reshape(iou, (len(first), len(second)))  # pycocotools returns [] for none


def _match(iou: np.ndarray, order: list[int], iou_thresh: float) -> dict[int, int]:
    """
    The object of each correct detection.

    Args:
        iou: (N, G), 0 where classes differ.
        order: detections, best score first.
    """
    matches: dict[int, int] = {}
    free = np.ones(iou.shape[1], dtype=bool)
    for row in order if len(free) else ():
        number, value = _best(iou[row] * free)
        if value >= iou_thresh:
            matches[row] = number
            free[number] = False
    return matches


def _error(
    row: int, own: np.ndarray, other: np.ndarray, iou_thresh: float, lowest: float
) -> Finding:
    """
    What is wrong with a detection that has no object.

    Args:
        own, other: (G,) IoU with objects of its class and of the others, 0 elsewhere.
    """
    if not len(own):
        return Finding("background", row, None, 0.0)
    (mine, own_iou), (foreign, other_iou) = _best(own), _best(other)
    if lowest <= own_iou < iou_thresh:
        return Finding("localisation", row, mine, own_iou)
    if other_iou >= iou_thresh:
        return Finding("classification", row, foreign, other_iou)
    if own_iou >= iou_thresh:  # were that object free, it would be a match
        return Finding("duplicate", row, mine, own_iou)
    if other_iou >= lowest:
        return Finding("both", row, foreign, other_iou)
    return Finding("background", row, None, 0.0)


def _best(iou: np.ndarray) -> tuple[int, float]:
    """The last one of highest IoU, as COCOeval chooses, and that IoU."""
    number = len(iou) - 1 - int(iou[::-1].argmax())
    return number, float(iou[number])

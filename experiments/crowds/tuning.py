"""Which thresholds: the same search for every NMS, on images of the training split."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.structures import BoxMode

from odam_d2.core.nms import Suppression, nms, odam_nms, soft_nms
from odam_d2.evaluation.crowd import CrowdImage, pooled_matches
from odam_d2.evaluation.crowd_protocol import recall_at_precision

from .candidates import ImageCandidates

__all__ = ["GRIDS", "NMS_METHODS", "apply", "crowd_images", "tune"]

NMS_METHODS = ("nms", "soft_nms", "odam_nms")
MOST = 100
"""Detections of an image, as COCO counts them."""

_FLOOR = 0.3
"""Score from which candidates are looked at first."""


def _soft() -> Iterator[dict]:
    for thresh in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        yield {"method": "linear", "iou_thresh": thresh}
    for sigma in (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0):
        yield {"method": "gaussian", "sigma": sigma}


def _odam() -> Iterator[dict]:
    overlaps, highs = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    lows = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    for thresh, high, low in itertools.product(overlaps, highs, lows):
        if low <= high:
            yield {"iou_thresh": thresh, "sim_thresh_high": high, "sim_thresh_low": low}


GRIDS = {
    "nms": [{"iou_thresh": round(0.3 + 0.05 * k, 2)} for k in range(13)],
    "soft_nms": list(_soft()),
    "odam_nms": list(_odam()),
}
"""What is tried for each method."""


def apply(method: str, candidates: ImageCandidates, settings: dict) -> Suppression:
    """What one method with its settings leaves of the candidates of an image."""
    given = (candidates.boxes, candidates.scores, candidates.classes)
    if method == "nms":
        return nms(*given, **settings)
    if method == "soft_nms":
        return soft_nms(*given, **settings)
    return odam_nms(*given, candidates.correlation, **settings)


def crowd_images(
    candidates: Sequence[ImageCandidates],
    entries: dict,
    method: str,
    settings: dict,
    floor: float = 0.0,
) -> list[CrowdImage]:
    """
    The detections of every image beside its objects.

    Args:
        entries: Detectron2's dicts by image id.
        floor: least score of a detection.
    """
    return [
        _crowd_image(of_image, entries[of_image.image_id], apply(method, of_image, settings), floor)
        for of_image in candidates
    ]


def _crowd_image(
    candidates: ImageCandidates, entry: dict, result: Suppression, floor: float
) -> CrowdImage:
    count = min(MOST, int((result.scores >= floor).sum()))
    keep = result.keep[:count]
    annotations = entry["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return CrowdImage(
        size=(entry["height"], entry["width"]),
        objects=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        categories=np.array([a["category_id"] for a in annotations], dtype=np.int64),
        ignore=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
        boxes=candidates.boxes[keep].double().numpy(),
        scores=result.scores[:count].numpy(),
        classes=candidates.classes[keep].numpy(),
    )


def tune(
    method: str,
    candidates: Sequence[ImageCandidates],
    entries: dict,
    overlap: float,
    precision: float,
) -> dict:
    """
    The settings of :data:`GRIDS` with the best recall of overlapped objects at a precision, first
    of equals. Candidates below :data:`_FLOOR` come after all others, whatever the NMS, so they are
    only looked at where the precision is not met before them: a dense detector has thousands.

    Args:
        candidates: of images of the training split.
        entries: Detectron2's dicts by image id.
        overlap, precision: as for ``CrowdEvaluator``.
    """

    sure = [of_image.above(_FLOOR) for of_image in candidates]

    def recall(settings: dict) -> float:
        images = crowd_images(sure, entries, method, settings, _FLOOR)
        matches, overlapped = pooled_matches(images, overlap)
        if not len(matches.hits) or matches.hits.mean() >= precision:
            # As precise as asked for even at its end: those that were left out count too.
            images = crowd_images(candidates, entries, method, settings)
            matches, overlapped = pooled_matches(images, overlap)
        return recall_at_precision(matches, precision, overlapped)

    return max(GRIDS[method], key=recall)

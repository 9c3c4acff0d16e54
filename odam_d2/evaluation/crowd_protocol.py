"""
The public protocol of CrowdHuman (Shao et al., arXiv 1805.00123): AP, recall, MR^-2 and JI.

It was written from the papers' definitions and checked against a case with published results
(``tests/evaluation/test_crowd_protocol.py``). What the papers leave open and the public tools agree
on:

- boxes of objects and detections are clipped to the image before they are compared;
- a detection is matched, in the order of scores, with the free object of highest IoU above 0.5;
  without one it is not counted at all if more than half of *its own* area lies in an ignore region;
- AP is the area under the curve of precision over recall by the trapezoidal rule;
- MR^-2 is the geometric mean of the miss rate at nine numbers of false positives per image (Dollar
  et al., "Pedestrian detection", PAMI 2012), each read at the first point that reaches it;
- JI (Chu et al., "Detection in Crowded Scenes", CVPR 2020) is matched with the greatest sum of
  IoUs, image by image, and averaged over images; the best score threshold counts.

Shape shorthand: G objects and N detections of an image. Boxes are XYXY in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from odam_d2.core.boxes import box_iou

__all__ = [
    "JI_THRESHOLDS",
    "Case",
    "Matches",
    "average_precision",
    "box_overlaps",
    "jaccard_index",
    "match",
    "miss_rate",
    "recall_at_precision",
]

JI_THRESHOLDS = tuple(k / 10 for k in range(10))
_FALSE_POSITIVES = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)  # per image
_EPS = 1e-6  # what the public tools add to the union of JI, so that 0 / 0 is 0


@dataclass(frozen=True)
class Case:
    """
    One image, one category.

    Attributes:
        objects: (G, 4).
        ignore: (G,) bool, regions in which detections are not counted.
        boxes: (N, 4), detected.
        scores: (N,).
    """

    objects: np.ndarray
    ignore: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    @classmethod
    def clipped(
        cls,
        size: tuple[int, int],
        objects: np.ndarray,
        ignore: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
    ) -> Case:
        """
        Args:
            size: (height, width) of the image, to which boxes are clipped. As in the public tools,
                a box begins in the last pixel at the latest.
        """
        order = np.argsort(-scores, kind="stable")
        parts = [_clip(part, size) for part in (objects, boxes[order])]
        return cls(parts[0], np.asarray(ignore, dtype=bool), parts[1], scores[order])


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    low = np.minimum(boxes[:, :2], [width - 1, height - 1]).clip(min=0)
    return np.hstack([low, np.minimum(boxes[:, 2:], [width, height]).clip(min=0)])


@dataclass(frozen=True)
class Matches:
    """
    The counted detections of many images, by decreasing score.

    Attributes:
        scores: (M,).
        hits: (M,) bool, matched with an object.
        objects: (M,), number of that object among those of all images, -1 for none.
        num_objects: objects that are not ignored.
        num_images: images.
    """

    scores: np.ndarray
    hits: np.ndarray
    objects: np.ndarray
    num_objects: int
    num_images: int


def box_overlaps(first: np.ndarray, second: np.ndarray, of_first: bool = False) -> np.ndarray:
    """:func:`odam_d2.core.boxes.box_iou` of arrays (n, 4) and (m, 4)."""
    return box_iou(torch.as_tensor(first), torch.as_tensor(second), of_first).numpy()


def match(cases: Sequence[Case], iou_thresh: float = 0.5) -> Matches:
    """
    Match the detections of each image with its objects.

    Args:
        cases: one for each image.
        iou_thresh: an IoU above this is a match.
    """
    of_images, first = [(np.zeros(0), np.zeros(0, dtype=int))], 0
    for case in cases:
        found = _match_image(case, iou_thresh)
        counted = found >= -1
        objects = np.where(found >= 0, found + first, -1)
        of_images.append((case.scores[counted], objects[counted]))
        first += int((~case.ignore).sum())
    scores, objects = (np.concatenate(parts) for parts in zip(*of_images, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(scores[order], objects[order] >= 0, objects[order], first, len(cases))


def _match_image(case: Case, iou_thresh: float) -> np.ndarray:
    """(N,) number of the object of each detection, -1 for none, -2 where it is not counted."""
    iou = box_overlaps(case.boxes, case.objects[~case.ignore])
    ignored = box_overlaps(case.boxes, case.objects[case.ignore], of_first=True)
    in_region = (ignored > iou_thresh).any(axis=1)
    found = np.where(in_region, -2, -1)
    # Only few detections come into question for any object at all.
    for i in np.flatnonzero((iou > iou_thresh).any(axis=1)):
        best = int(iou[i].argmax())
        if iou[i, best] > iou_thresh:
            found[i] = best
            iou[:, best] = 0  # taken
    return found


def average_precision(matches: Matches) -> float:
    """Area under precision over recall, in [0, 1]; nan without objects."""
    if not matches.num_objects:
        return float("nan")
    if not len(matches.hits):
        return 0.0
    recall, precision = _curve(matches)
    return float(((precision[1:] + precision[:-1]) / 2 * np.diff(recall)).sum())


def miss_rate(matches: Matches) -> float:
    """MR^-2, in [0, 1], lower is better; nan without objects."""
    if not matches.num_objects:
        return float("nan")
    if not len(matches.hits):
        return 1.0
    false = np.cumsum(~matches.hits) / matches.num_images
    missed = 1 - _curve(matches)[0]
    at = np.searchsorted(false, _FALSE_POSITIVES).clip(max=len(false) - 1)
    with np.errstate(divide="ignore"):  # nothing missed: a rate of zero
        return float(np.exp(np.log(missed[at]).mean()))


def _curve(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection."""
    true = np.cumsum(matches.hits)
    return true / matches.num_objects, true / np.arange(1, len(true) + 1)


def recall_at_precision(
    matches: Matches, precision: float, chosen: np.ndarray | None = None
) -> float:
    """
    Recall at the lowest score at which precision is still reached.

    Args:
        precision: in (0, 1]; 0 takes all detections.
        chosen: (num_objects,) bool, the objects whose recall is asked for; by default all.

    Returns:
        In [0, 1]; 0 where the precision is never reached, nan where no object is chosen.
    """
    chosen = np.ones(matches.num_objects, dtype=bool) if chosen is None else chosen
    if not chosen.any():
        return float("nan")
    reached = _curve(matches)[1] >= precision if len(matches.hits) else np.zeros(0, dtype=bool)
    # A threshold takes detections of equal scores together.
    reached[:-1] &= matches.scores[:-1] > matches.scores[1:]
    reached = np.flatnonzero(reached)
    if not len(reached):
        return 0.0
    found = matches.objects[: reached[-1] + 1]
    return float(chosen[found[found >= 0]].sum() / chosen.sum())


def jaccard_index(cases: Sequence[Case], iou_thresh: float = 0.5) -> np.ndarray:
    """
    JI for each of :data:`JI_THRESHOLDS`, (10,) in [0, 1].

    Detections, and objects that were missed, are not counted where more than half of them lies in
    an ignore region.
    """
    totals, counted = np.zeros(len(JI_THRESHOLDS)), np.zeros(len(JI_THRESHOLDS))
    for case in cases:
        objects, regions = case.objects[~case.ignore], case.objects[case.ignore]
        iou = box_overlaps(case.boxes, objects)
        iou[iou < iou_thresh] = 0
        of_box, of_object = (
            np.any(box_overlaps(x, regions, of_first=True) > iou_thresh, axis=1)
            for x in (case.boxes, objects)
        )
        for number, thresh in enumerate(JI_THRESHOLDS):
            count = int((case.scores > thresh).sum())  # the best ones
            rows, columns = linear_sum_assignment(iou[:count], maximize=True)
            real = iou[rows, columns] > 0
            rows, columns = rows[real], columns[real]
            both = len(rows)
            found = count - _unmatched(of_box[:count], rows)
            wanted = len(objects) - _unmatched(of_object, columns)
            totals[number] += both / (found + wanted - both + _EPS)
            counted[number] += found > 0 or wanted > 0
    return totals / np.maximum(counted, 1)


def _unmatched(in_region: np.ndarray, matched: np.ndarray) -> int:
    """How many lie in an ignore region and are not matched."""
    return int(in_region.sum() - in_region[matched].sum())

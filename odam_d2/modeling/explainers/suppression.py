"""Another NMS in the place of the detector's own: who stays is decided when maps can be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from odam_d2.core.nms import Suppression
from odam_d2.modeling.nms import Candidates
from odam_d2.structures import OdamMaps

from .reading import split_by_image

__all__ = ["ALL", "NO_NMS", "choose_among", "lower_scores"]

NO_NMS = 2.0
"""A threshold of Detectron2's NMS that no IoU is above."""

ALL = 10**9
"""A number of detections that no image has."""

_LOWERED = "odam_lowered_scores"


def choose_among(
    candidates: Sequence[Instances],
    nms: Callable[[Candidates], Suppression],
    maps: OdamMaps | None,
    iou_thresh: float,
    most: int,
) -> tuple[list[Instances], list[Tensor], list[Instances]]:
    """
    Apply an NMS to each image.

    Args:
        candidates: of each image, by decreasing score.
        nms: see ``ODAM_NMS_REGISTRY``.
        maps: class maps of the candidates of all images, where ``nms`` needs them.
        iou_thresh: of the detector's own NMS.
        most: detections of each image; negative for no limit.

    Returns:
        Of each image: the detections, their indices among the candidates, and the candidates with
        what became of them: ``kept``, ``suppressed_by``, ``suppressed_iou``,
        ``suppressed_correlation``. Detections still have their own scores; :func:`lower_scores`
        gives them those of soft NMS, when nothing needs the others any more.
    """
    split = [None] * len(candidates)
    if maps is not None:
        split = split_by_image(maps, [len(found) for found in candidates])
    chosen, rows, records = [], [], []
    for found, of_image in zip(candidates, split, strict=True):
        result = nms(
            Candidates(
                found.pred_boxes.tensor,
                found.scores,
                found.pred_classes,
                iou_thresh,
                None if of_image is None else _correlation(of_image),
            )
        )
        keep = result.keep[:most] if most >= 0 else result.keep
        detections = found[keep]
        detections.set(_LOWERED, result.scores[: len(keep)])
        chosen.append(detections)
        rows.append(keep)
        records.append(_record(found, result, keep))
    return chosen, rows, records


def _correlation(maps: OdamMaps) -> Callable[[Tensor, float], Tensor]:
    return lambda index, stride: maps[index].similarity("class", stride)


def _record(found: Instances, result: Suppression, keep: Tensor) -> Instances:
    kept = torch.zeros(len(found), dtype=torch.bool, device=keep.device)
    kept[keep] = True
    return Instances(
        found.image_size,
        pred_boxes=found.pred_boxes,
        scores=found.scores,
        pred_classes=found.pred_classes,
        kept=kept,
        suppressed_by=result.suppressor,
        suppressed_iou=result.iou,
        suppressed_correlation=result.correlation,
    )


def lower_scores(instances: Sequence[Instances]) -> None:
    """Give detections the scores that their NMS gave them."""
    for found in instances:
        if found.has(_LOWERED):
            found.scores = found.get(_LOWERED)
            found.remove(_LOWERED)

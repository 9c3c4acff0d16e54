"""Another NMS in the place of the detector's own: who stays is decided when maps can be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
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
        maps: class maps of the candidates of all images, where ``nms`` needs them, or where what it
            did is to be recorded.
        iou_thresh: of the detector's own NMS.
        most: detections of each image; negative for no limit.

    Returns:
        Of each image: the detections, their indices among the candidates, and the candidates with
        what became of them: ``kept``, ``suppressed_by`` (-1 for none), ``suppressed_iou``,
        ``suppressed_correlation``, and with ``maps`` their class maps as ``odam_maps``. Detections
        still have their own scores; :func:`lower_scores` gives them those of soft NMS, when nothing
        needs the others any more.
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
                _correlation(of_image) if nms.needs_maps else None,
            )
        )
        keep = result.keep[:most] if most >= 0 else result.keep
        detections = found[keep]
        detections.set(_LOWERED, result.scores[: len(keep)])
        chosen.append(detections)
        rows.append(keep)
        records.append(_record(found, result, keep, of_image))
    return chosen, rows, records


def _correlation(maps: OdamMaps) -> Callable[[Tensor, float], Tensor]:
    return lambda index, stride: maps[index].similarity("class", stride)


def _record(
    found: Instances, result: Suppression, keep: Tensor, maps: OdamMaps | None
) -> Instances:
    kept = torch.zeros(len(found), dtype=torch.bool, device=keep.device)
    kept[keep] = True
    record = Instances(
        found.image_size,
        pred_boxes=found.pred_boxes,
        scores=found.scores,
        pred_classes=found.pred_classes,
        kept=kept,
        suppressed_by=result.suppressor,
        suppressed_iou=result.iou,
        suppressed_correlation=result.correlation,
    )
    if maps is not None:
        record.odam_maps = maps
        record.suppressed_correlation = _with_suppressor(result, maps)
    return record


def _with_suppressor(result: Suppression, maps: OdamMaps, stride: float = 16) -> Tensor:
    """Correlations of candidates with their suppressors, also where the NMS did not ask."""
    correlation = result.correlation.clone()
    asked = (correlation.isnan() & (result.suppressor >= 0)).nonzero()[:, 0]
    if len(asked):
        flat = F.normalize(maps.on_grid(stride).flatten(1), dim=1)
        pairs = flat[asked] * flat[result.suppressor[asked]]
        correlation[asked] = pairs.sum(dim=1).clamp(max=1).to(correlation)
    return correlation


def lower_scores(instances: Sequence[Instances]) -> None:
    """Give detections the scores that their NMS gave them."""
    for found in instances:
        if found.has(_LOWERED):
            found.scores = found.get(_LOWERED)
            found.remove(_LOWERED)

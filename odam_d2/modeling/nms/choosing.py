"""Another NMS in the place of the detector's own: who stays is decided when maps can be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from odam_d2.core.nms import Suppression
from odam_d2.modeling.adapters.trace import FINAL_SCORES, Trace
from odam_d2.structures import OdamMaps

from .registry import Candidates, Postprocessor

__all__ = ["Choice"]


@dataclass
class Choice:
    """
    Chooses among the candidates of a run by an NMS; see
    :class:`odam_d2.modeling.adapters.base.Chooser`.

    Attributes:
        nms: see ``ODAM_NMS_REGISTRY``.
        class_maps: the maps of the class logits of a trace, which an NMS compares.
        record: whether it is recorded what became of all candidates.
        records: of each image so far, the candidates with ``kept``, ``suppressed_by`` (-1 for
            none), ``suppressed_iou``, ``suppressed_correlation``, and their class maps as
            ``odam_maps``.
    """

    nms: Postprocessor
    class_maps: Callable[[Trace], OdamMaps]
    record: bool = False
    records: list[Instances] = field(default_factory=list)

    def __call__(
        self, trace: Trace, candidates: list[Instances], iou_thresh: float, max_detections: int
    ) -> tuple[list[Instances], Tensor]:
        """
        Args:
            max_detections: of each image; negative for no limit.

        Detections keep their own scores; those that soft NMS gave them are in the field
        :data:`FINAL_SCORES`.
        """
        maps: list[OdamMaps] = []
        if self.nms.needs_maps or self.record:
            counts = [len(found) for found in candidates]
            detected = replace(trace, instances=candidates)  # to be compared with
            maps = self.class_maps(detected).split(counts)
        chosen, rows, start = [], [], 0
        for number, found in enumerate(candidates):
            of_image = maps[number] if maps else None
            compared = of_image if self.nms.needs_maps else None
            correlation = None if compared is None else _correlation(compared)
            result = self.nms(
                Candidates(
                    found.pred_boxes.tensor,
                    found.scores,
                    found.pred_classes,
                    iou_thresh,
                    correlation,
                )
            )
            keep = result.keep[:max_detections] if max_detections >= 0 else result.keep
            detections = found[keep]
            detections.set(FINAL_SCORES, result.scores[: len(keep)])
            chosen.append(detections)
            rows.append(keep + start)
            start += len(found)
            if self.record:
                self.records.append(_record(found, result, keep, of_image))
        return chosen, torch.cat(rows)


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
    missing = (correlation.isnan() & (result.suppressor >= 0)).nonzero()[:, 0]
    if len(missing):
        flat = F.normalize(maps.on_grid(stride).flatten(1), dim=1)
        pairs = flat[missing] * flat[result.suppressor[missing]]
        correlation[missing] = pairs.sum(dim=1).clamp(max=1).to(correlation)
    return correlation

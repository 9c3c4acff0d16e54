"""The figures of one image's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odam_d2.core import metrics

__all__ = ["METRICS", "Objects", "score_maps"]

METRICS = {
    "pointing_mask": "higher",
    "energy_mask": "higher",
    "odi_mask": "lower",
    "mask_iou": "higher",
    "pointing_box": "higher",
    "energy_box": "higher",
    "odi_box": "lower",
    "compactness": "lower",
    "sparsity": "higher",
    "deletion": "lower",
    "insertion": "higher",
}
"""
What is reported, the most telling first, and what is better. A two-stage detector's map lies within
its proposal's window: that it points into the box says little.
"""


class Objects:
    """
    The objects of an image as regions.

    Args:
        boxes: (G, 4) XYXY in pixels.
        box_regions: (G, H, W) of bool.
        masks: (G, H, W) of bool, or None.
    """

    def __init__(self, boxes: Tensor, box_regions: Tensor, masks: Tensor | None):
        self.boxes = boxes
        self.kinds = {"box": box_regions} | ({} if masks is None else {"mask": masks})


def score_maps(
    heat: Tensor, numbers: Sequence[int], objects: Objects, thresholds: Sequence[float]
) -> list[dict[str, float]]:
    """
    Score maps of detections, each scaled to [0, 1] first, so that a constant background (D-RISE has
    one) counts for nothing.

    Args:
        heat: (N, H, W), over the whole image.
        numbers: N, the object that each one explains.
        objects: of the image.
        thresholds: of ``mask_iou``.

    Returns:
        For each map, all of :data:`METRICS` but deletion and insertion, shares as fractions, with
        ``mask_iou`` at each threshold beside its mean.
    """
    chosen = torch.tensor(list(numbers))
    scaled = metrics.unit_range(heat.cpu())
    columns: dict[str, Tensor] = {}
    for kind, regions in objects.kinds.items():
        mine, union = regions[chosen], regions.any(dim=0).expand(len(chosen), -1, -1)
        others = regions.sum(dim=0) - mine.int() > 0
        columns[f"pointing_{kind}"] = metrics.pointing_game(scaled, mine)
        columns[f"energy_{kind}"] = metrics.energy_pointing_game(scaled, mine)
        columns[f"odi_{kind}"] = metrics.object_discrimination_index(scaled, others, union)
    if "mask" in objects.kinds:
        iou = metrics.mask_iou(scaled, objects.kinds["mask"][chosen], thresholds)
        columns["mask_iou"] = iou.mean(dim=1)
        columns |= {f"mask_iou_{t:g}": iou[:, k] for k, t in enumerate(thresholds)}
    columns["compactness"] = metrics.compactness(scaled, objects.boxes[chosen])
    columns["sparsity"] = metrics.gini(scaled)
    values = torch.stack([column.double() for column in columns.values()], dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in values]

"""How alike two maps of one detection are, in its box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from odam_d2.core.heatmap import normalize
from odam_d2.core.metrics import ssim
from odam_d2.structures import OdamMaps

__all__ = ["maps_in_boxes", "similarity"]

_GRID = 32
"""Samples along each side of a detection's box, in which maps are compared."""


def maps_in_boxes(maps: OdamMaps, boxes: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """
    Each detection's maps inside of its box, (T, 32, 32), with a maximum of 1.

    Args:
        boxes: (N, 4) in pixels of the image of this (height, width).
    """
    found = []
    for number, box in enumerate(boxes.tolist()):
        heat = maps[number].dense(*size)[0].detach().float().cpu()
        (left, right), (top, bottom) = (
            _pixels(box[axis], box[axis + 2], size[1 - axis]) for axis in (0, 1)
        )
        inside = F.adaptive_avg_pool2d(heat[:, top:bottom, left:right], _GRID)
        found.append(normalize(torch.nan_to_num(inside, nan=0.0)[None])[0])
    return found


def _pixels(start: float, end: float, length: int) -> tuple[int, int]:
    """First and last pixel, one at least, that a box touches along an axis."""
    first = min(max(0, int(start)), length - 1)
    return first, max(first + 1, min(length, -int(-end // 1)))


def similarity(first: Tensor, second: Tensor) -> dict[str, float]:
    """
    Of two maps (h, w) of a largest size of 1, the first of which is not flat: rank correlation,
    which is 0 with a flat one, and structural similarity.
    """
    flat = float(second.amax()) == float(second.amin())
    ranks = 0.0 if flat else spearmanr(first.flatten().numpy(), second.flatten().numpy()).statistic
    return {"spearman": float(ranks), "ssim": float(ssim(first[None], second[None]))}

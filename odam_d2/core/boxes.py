"""How much boxes overlap."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["box_iou"]


def box_iou(first: Tensor, second: Tensor, of_first: bool = False) -> Tensor:
    """
    (n, m) intersection over union of boxes (n, 4) and (m, 4), XYXY, or with ``of_first``
    intersection over the area of the first. Zero where that is 0 / 0.
    """
    left, top, right, bottom = first[:, None].unbind(2)  # (n, 1)
    others = second.unbind(1)
    width = torch.minimum(right, others[2]).sub_(torch.maximum(left, others[0])).clamp_(min=0)
    height = torch.minimum(bottom, others[3]).sub_(torch.maximum(top, others[1])).clamp_(min=0)
    shared = width.mul_(height)
    whole = (right - left).clamp_(min=0) * (bottom - top).clamp_(min=0)
    if not of_first:
        size = (second[:, 2:] - second[:, :2]).clamp_(min=0)
        whole = (whole + size[:, 0] * size[:, 1]).sub_(shared)
    return shared.div_(whole).nan_to_num_(0.0)

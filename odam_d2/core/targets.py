"""What can be explained of a box: its sides, and how far each reaches."""

import torch
from torch import Tensor

__all__ = ["DEFAULT_TARGETS", "SIDES", "outward"]

SIDES = ("left", "top", "right", "bottom")
"""The sides of a box, in the order of its XYXY coordinates."""

DEFAULT_TARGETS = ("class", *SIDES)


def outward(boxes: Tensor) -> Tensor:
    """
    How far each side reaches outward: left = -x1, top = -y1, right = x2, bottom = y2, in pixels.

    Args:
        boxes: (..., 4), XYXY.

    Returns:
        (..., 4), in the order of :data:`SIDES`.
    """
    return torch.cat([-boxes[..., :2], boxes[..., 2:]], dim=-1)

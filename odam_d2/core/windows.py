"""Cutting windows out of feature maps, and pasting them back."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["cut_window", "paste_window"]

Window = tuple[int, int, int, int]
"""(row, column, height, width) in cells; it may stick out of the feature map."""


def cut_window(feature: Tensor, window: Window) -> Tensor:
    """Window of (..., H, W), zero where it sticks out; a view of it where nothing does."""
    row, column, height, width = window
    rows, columns = feature.shape[-2:]
    top, left = max(row, 0), max(column, 0)
    bottom = max(min(row + height, rows), top)
    right = max(min(column + width, columns), left)
    inside = feature[..., top:bottom, left:right]
    pad = (left - column, column + width - right, top - row, row + height - bottom)
    return F.pad(inside, pad) if any(pad) else inside


def paste_window(values: Tensor, window: Window, grid: tuple[int, int]) -> Tensor:
    """The adjoint of :func:`cut_window`: (..., height, width) to (..., H, W), zero elsewhere."""
    row, column, height, width = window
    # Negative padding crops what sticks out.
    return F.pad(values, (column, grid[1] - column - width, row, grid[0] - row - height))

"""Cutting windows out of feature maps, pasting them back, and joining them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "computes_together",
    "cut_window",
    "cut_windows",
    "join_windows",
    "paste_window",
    "refined",
    "temporary_bytes",
]

Window = tuple[int, int, int, int]
"""(row, column, height, width) in cells; it may stick out of the feature map."""


def cut_window(feature: Tensor, window: Window) -> Tensor:
    """Window of (..., H, W), zero where it sticks out; a view of it where nothing does."""
    row, column, height, width = window
    top, left, bottom, right = _inside(window, feature.shape[-2:])
    inside = feature[..., top:bottom, left:right]
    pad = (left - column, column + width - right, top - row, row + height - bottom)
    return F.pad(inside, pad) if any(pad) else inside


def _inside(window: Window, grid: Sequence[int]) -> Window:
    """First row and column of a feature map (..., H, W) that a window covers, and those after."""
    row, column, height, width = window
    top, left = max(row, 0), max(column, 0)
    return top, left, max(min(row + height, grid[0]), top), max(min(column + width, grid[1]), left)


def cut_windows(feature: Tensor, windows: Sequence[Window]) -> Sequence[Tensor]:
    """
    As :func:`cut_window`, for many windows of one feature map (C, H, W). With a graph, gradients
    are added up window by window, where autograd would make a whole map for each of them.
    """
    if feature.requires_grad and torch.is_grad_enabled() and windows:
        return _CutWindows.apply(feature, windows)
    return [cut_window(feature, window) for window in windows]


class _CutWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, windows: Sequence[Window]) -> tuple[Tensor, ...]:
        ctx.windows, ctx.shape = windows, feature.shape
        # Not views: autograd forbids several of them from one function to be written to.
        return tuple(cut_window(feature, window).clone() for window in windows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        total = next(g for g in gradients if g is not None).new_zeros(ctx.shape)
        for window, gradient in zip(ctx.windows, gradients, strict=True):
            if gradient is not None:
                row, column = window[:2]
                top, left, bottom, right = _inside(window, ctx.shape[-2:])
                rows, columns = slice(top - row, bottom - row), slice(left - column, right - column)
                total[..., top:bottom, left:right] += gradient[..., rows, columns]
        return total, None


def paste_window(values: Tensor, window: Window, grid: Sequence[int]) -> Tensor:
    """The adjoint of :func:`cut_window`: (..., height, width) to (..., H, W), zero elsewhere."""
    row, column, height, width = window
    # Negative padding crops what sticks out.
    return F.pad(values, (column, grid[1] - column - width, row, grid[0] - row - height))


def join_windows(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """
    Put the windows of several groups of instances back into one order.

    Args:
        parts: for each group its instances (n,), values (n, T, h, w) and origins (n, 2).
        count: N, instances in all groups together.

    Returns:
        values (N, T, h, w), padded with zeros to the largest window, and origins (N, 2).
    """
    height = max(values.shape[-2] for _, values, _ in parts)
    width = max(values.shape[-1] for _, values, _ in parts)
    _, values, origins = parts[0]
    joined = values.new_zeros((count, values.shape[1], height, width))
    first = origins.new_zeros((count, 2))
    for index, values, origins in parts:
        joined[index, :, : values.shape[-2], : values.shape[-1]] = values
        first[index] = origins
    return joined, first


def refined(values: Tensor, ratio: int) -> Tensor:
    """
    Maps (..., h, w) on a grid whose cells are ``ratio`` times smaller: each cell's value is shared
    evenly by the cells that it covers, so that a map keeps its sum.
    """
    if ratio == 1:
        return values
    finer = values.repeat_interleave(ratio, dim=-1).repeat_interleave(ratio, dim=-2)
    return finer / ratio**2


def computes_together(device: torch.device) -> bool:
    """
    Whether windows of different sizes are computed together, padded to one, or one at a time: one
    window is small enough for the caches of a CPU, while an accelerator waits for each operation.
    """
    return device.type != "cpu"


def temporary_bytes(max_bytes: int, device: torch.device) -> int:
    """The bound on temporary tensors there: an accelerator has more memory, and waits for each."""
    return 8 * max_bytes if computes_together(device) else max_bytes

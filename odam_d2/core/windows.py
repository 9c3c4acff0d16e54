"""Cutting windows out of feature maps, pasting them back, and adding them up."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "add_windows",
    "computes_together",
    "cut_window",
    "cut_windows",
    "join_windows",
    "paste_window",
    "placed",
    "refined",
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


def add_windows(windows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """
    Sum of several windows of each of N instances, on windows that cover all of them.

    Args:
        windows: values (N, T, h, w) and origins (N, 2) of each summand; shapes may differ.
    """
    if len(windows) == 1:
        return windows[0]
    first = torch.stack([origins for _, origins in windows]).amin(dim=0)
    last = torch.stack([o + o.new_tensor(v.shape[-2:]) for v, o in windows]).amax(dim=0)
    values = windows[0][0]
    height, width = (last - first).amax(dim=0).tolist() if len(first) else (0, 0)
    if computes_together(values.device):
        parts = []
        for values, origins in windows:
            extents = [torch.full_like(origins[:, 0], side) for side in values.shape[-2:]]
            parts.append(placed(values.flatten(2), extents, (height, width), origins - first))
        return torch.stack(parts).sum(dim=0), first
    total = values.new_zeros((*values.shape[:2], height, width))
    for values, origins in windows:
        for i, (row, column) in enumerate((origins - first).tolist()):
            window = total[i, :, row : row + values.shape[-2], column : column + values.shape[-1]]
            window += values[i]
    return total, first


def computes_together(device: torch.device) -> bool:
    """
    Whether windows of different sizes are computed together, padded to one, or one at a time: one
    window is small enough for the caches of a CPU, while an accelerator waits for each operation.
    """
    return device.type != "cpu"


def placed(
    values: Tensor,
    extents: Sequence[Tensor],
    size: Sequence[int],
    shift: Tensor | None = None,
    ratio: Tensor | None = None,
) -> Tensor:
    """
    Windows of N instances at their places among others, in a number of operations that does not
    depend on N.

    Args:
        values: (N, T, a), the cells of each window, row by row, and perhaps more after them.
        extents: rows and columns of each window, (N,).
        size: (rows, columns) of what is returned.
        shift: (N, 2), the place there of each window's first cell; None for the first one.
        ratio: (N,), cells of what is returned along a side of a window's, see :func:`refined`.

    Returns:
        (N, T, rows, columns), zero outside of the windows.
    """
    y = torch.arange(size[0], device=values.device)[:, None]
    x = torch.arange(size[1], device=values.device)
    if shift is not None:
        y, x = y - shift[:, 0, None, None], x - shift[:, 1, None, None]
    if ratio is not None:
        times = ratio[:, None, None]
        y, x = (position.div(times, rounding_mode="floor") for position in (y, x))
        values = values / times**2
    height, width = (extent[:, None, None] for extent in extents)
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).flatten(1)
    cell = (y * width + x).flatten(1).masked_fill(~inside, 0)
    found = values.gather(2, cell[:, None].expand(-1, values.shape[1], -1))
    return (found * inside[:, None]).view(*values.shape[:2], *size)

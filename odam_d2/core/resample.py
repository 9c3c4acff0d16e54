"""
Resampling of feature-cell maps to pixels, and to one common grid.

Cell (v, u) of a map of stride s has its centre at input pixel ((u + 0.5) s, (v + 0.5) s), in
continuous coordinates where pixel (y, x) has its centre at (x + 0.5, y + 0.5). Everything here
follows that rule; the ratio of two sizes is never used, because padded images and ceil-ed pyramid
levels make it wrong.

Instances of all levels and images go at once, so that nothing waits for a GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Axis", "place_windows", "window_weights"]


class Axis(NamedTuple):
    """
    One axis of N windows, each on a feature map of its own.

    Attributes:
        first: (N,) integers, the window's first cell; it may lie outside of the map.
        cells: (N,) integers, cells of the whole map.
        stride: (N,), input pixels per cell.
        step: (N,) or a number, input pixels per output sample.
    """

    first: Tensor
    cells: Tensor
    stride: Tensor
    step: Tensor | float


def window_weights(axis: Axis, length: int, count: int) -> Tensor:
    """
    Weights that resample windows linearly along an axis.

    Output sample j lies at input pixel ``(j + 0.5) * step``. Where samples are no coarser than the
    cells, this is linear interpolation with the border held; where they are coarser, the triangle
    widens to the spacing of the samples, so that no cell is skipped.

    Args:
        axis: of N windows.
        length: cells of each window.
        count: number of output samples.

    Returns:
        (N, count, length) float64. Over the cells of a whole map, weights of a sample are of sum
        one; cells outside of the map have none.
    """
    device = axis.first.device
    ratio = (axis.step / axis.stride.double())[:, None]  # cells per sample
    last = axis.cells[:, None] - 1
    positions = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * ratio - 0.5
    positions = positions.clamp(min=0).minimum(last)
    reach = ratio.clamp(min=1)
    centres = axis.first[:, None] + torch.arange(length, device=device)
    inside = (centres >= 0) & (centres <= last)
    distances = (positions[..., None] - centres[:, None]).abs_()
    weights = distances.div_(-reach[..., None]).add_(1).clamp_(min=0)
    return weights.mul_(inside[:, None]).div_(_triangle_sum(positions, reach, last)[..., None])


def _triangle_sum(positions: Tensor, reach: Tensor, last: Tensor) -> Tensor:
    """Sum over the cells k from 0 to ``last`` of ``1 - |position - k| / reach``, where positive."""
    middle = positions.floor()
    low = (positions - reach).ceil().clamp(min=0)
    high = (positions + reach).floor().minimum(last)
    left, right = middle - low + 1, high - middle  # cells on each side
    below = left * (1 - (positions - (low + middle) / 2) / reach)
    above = right * (1 - ((middle + 1 + high) / 2 - positions) / reach)
    return below + above


def place_windows(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """
    Resample windows with weights of both axes.

    Args:
        values: (N, T, h, w), maps on windows.
        rows: (N, P, h), :func:`window_weights` of the vertical axis.
        columns: (N, Q, w), of the horizontal axis.

    Returns:
        (N, T, P, Q).
    """
    rows, columns = rows.to(values.dtype), columns.to(values.dtype)
    n, t, h, w = values.shape
    of_rows = rows @ values.transpose(1, 2).reshape(n, h, t * w)
    found = of_rows.view(n, rows.shape[1] * t, w) @ columns.mT
    return found.view(n, rows.shape[1], t, columns.shape[1]).transpose(1, 2)

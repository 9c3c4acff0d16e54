"""
Resampling of feature-cell maps to pixels, and to one common grid.

Cell (v, u) of a map of stride s has its centre at input pixel ((u + 0.5) s, (v + 0.5) s), in
continuous coordinates where pixel (y, x) has its centre at (x + 0.5, y + 0.5). Everything here
follows that rule; the ratio of two sizes is never used, because padded images and ceil-ed pyramid
levels make it wrong.
"""

import torch
from torch import Tensor

__all__ = ["axis_weights", "place_windows"]


def axis_weights(cells: int, stride: float, count: int, step: float, like: Tensor) -> Tensor:
    """
    Weights that resample one axis linearly.

    Output sample j lies at input pixel ``(j + 0.5) * step``. Where samples are no coarser than the
    cells, this is linear interpolation with the border held; where they are coarser, the triangle
    widens to the spacing of the samples, so that no cell is skipped.

    Args:
        cells: number of cells along this axis of the whole feature map.
        stride: input pixels per cell.
        count: number of output samples.
        step: input pixels per output sample.
        like: dtype and device of the result.

    Returns:
        (count, cells), each row of sum one.
    """
    positions = (torch.arange(count, dtype=torch.float64, device=like.device) + 0.5) * step
    positions = (positions / stride - 0.5).clamp(0, cells - 1)
    centres = torch.arange(cells, dtype=torch.float64, device=like.device)
    reach = max(1.0, step / stride)
    weights = (1 - (positions[:, None] - centres).abs() / reach).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)


def place_windows(values: Tensor, origins: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """
    Resample windows of one feature map with the axis weights of the whole map.

    Args:
        values: (N, T, h, w), maps on windows; cells that stick out of the feature map are ignored.
        origins: (N, 2), (row, column) of each window's first cell on the feature map.
        rows: (P, H), :func:`axis_weights` of the vertical axis, H cells.
        columns: (Q, W), of the horizontal axis.

    Returns:
        (N, T, P, Q).
    """
    height, width = values.shape[-2:]
    vertical = _window_columns(rows, origins[:, 0], height)  # (N, P, h)
    horizontal = _window_columns(columns, origins[:, 1], width)  # (N, Q, w)
    return torch.einsum("nph,nthw,nqw->ntpq", vertical, values, horizontal)


def _window_columns(weights: Tensor, first: Tensor, length: int) -> Tensor:
    """Columns first[i] .. first[i] + length of ``weights`` (P, H), zero beyond: (N, P, length)."""
    index = first[:, None] + torch.arange(length, device=first.device)  # (N, length)
    inside = (index >= 0) & (index < weights.shape[1])
    picked = weights.t()[index.clamp(0, weights.shape[1] - 1)]  # (N, length, P)
    return (picked * inside[..., None]).transpose(1, 2)

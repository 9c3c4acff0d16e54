"""
Heat maps of what a head said of pooled features, on the windows that RoIAlign read.

Shape shorthand: N boxes, T targets, C channels, I images, (H, W) feature grid, (R, S) pooled grid,
(h, w) window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from odam_d2.core import windows
from odam_d2.core.roi_align import BoxPooling, Grids, RoIAlignSpec
from odam_d2.core.windows import cut_windows, placed, refined

__all__ = ["pooled_heat_maps"]


def pooled_heat_maps(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    gradient: Tensor,
    specs: Sequence[RoIAlignSpec],
    *,
    sigma: float = 0.0,
    ratio: Tensor | None = None,
    max_bytes: int = 2**26,
) -> tuple[Tensor, Tensor]:
    """
    Heat maps, before their ReLU, of outputs that a head computed from each box's pooled feature
    alone.

    Args:
        features: of each level (I, C, H, W), what was pooled from.
        boxes: (N, 4), XYXY in input pixels, in the dtype of the features.
        image, level: (N,) int64, where each box was pooled.
        gradient: (N, T, C, R, S), derivative of each of T outputs with respect to the box's pooled
            feature.
        specs: of each level; their output sizes are the same.
        sigma: see :func:`odam_d2.core.heatmap.smooth`.
        ratio: (N,) int64, where maps are on a finer grid than their level, how many of its cells
            lie along the side of a cell, see :func:`refined`.
        max_bytes: bound on temporary memory, where boxes are computed together.

    Returns:
        maps (N, T, h, w), padded with zeros to the largest window, and window origins (N, 2).
    """
    grids = Grids.of(features, specs, image, level)
    pooling = BoxPooling.of_boxes(boxes, grids, specs[0].output_size).smoothed(sigma)
    ratios = [1] * len(boxes) if ratio is None else ratio.tolist()
    sides = [
        (height * times, width * times)
        for (_, _, height, width), times in zip(pooling.places, ratios, strict=True)
    ]
    largest = [max(lengths) for lengths in zip(*sides, strict=True)] or [0, 0]
    maps = gradient.new_zeros((*gradient.shape[:2], *largest))
    if windows.computes_together(gradient.device):
        parts = _together(features, pooling, grids, gradient, max_bytes)
        for index, values in parts:
            times = None if ratio is None else ratio[index]
            maps[index] = placed(values, pooling.extents(index), largest, ratio=times)
    else:
        places = torch.stack([level, image], dim=1).tolist()
        for number, values in _one_by_one(features, pooling, places, gradient, sigma):
            values = refined(values, ratios[number])
            maps[number, :, : values.shape[-2], : values.shape[-1]] = values
    origins = pooling.windows[:, :2]
    return maps, origins if ratio is None else origins * ratio[:, None]


def _one_by_one(
    features: Sequence[Tensor],
    pooling: BoxPooling,
    places: Sequence[Sequence[int]],
    gradient: Tensor,
    sigma: float,
) -> Iterator[tuple[int, Tensor]]:
    """The number of each box, and its maps (T, h, w)."""
    members = defaultdict(list)
    for number, (level, image) in enumerate(places):
        members[level, image].append(number)
    for (level, image), numbers in members.items():
        cut = cut_windows(features[level][image], [pooling.places[n] for n in numbers])
        for number, window in zip(numbers, cut, strict=True):
            rows = pooling.rows[number, :, : window.shape[-2]]
            columns = pooling.columns[number, :, : window.shape[-1]]
            # Where a window has fewer columns than bins, or bins are smoothed, adding up channels
            # before bins loses digits in float32, because bins cancel.
            if sigma == 0 and columns.shape[1] > len(columns):
                yield number, _contracted_maps(rows, columns, gradient[number], window)
            else:
                spread = rows.t() @ gradient[number] @ columns
                yield number, (spread * window).sum(dim=-3)


def _contracted_maps(rows: Tensor, columns: Tensor, gradient: Tensor, window: Tensor) -> Tensor:
    """
    ``(rows^T @ gradient @ columns * window).sum(channels)`` without the gradient on the window, the
    largest tensor of all: channels are summed for each row before columns are spread out.

    Args:
        rows: (R, h); columns: (S, w).
        gradient: (T, C, R, S).
        window: (C, h, w).

    Returns:
        (T, h, w).
    """
    t, c, r, s = gradient.shape
    spread = rows.t() @ gradient.permute(2, 0, 3, 1).reshape(r, t * s * c)
    summed = spread.view(-1, t * s, c) @ window.transpose(0, 1)  # (h, T S, w)
    return (summed.view(-1, t, s, window.shape[-1]) * columns).sum(dim=2).transpose(0, 1)


def _together(
    features: Sequence[Tensor], pooling: BoxPooling, grids: Grids, gradient: Tensor, max_bytes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """
    Boxes (n,), and their maps (n, T, a) of which each has its cells in the first places, row by
    row.
    """
    count, targets, channels = gradient.shape[:3]
    # All cells of all maps, and one that is zero.
    of_levels = [feature.movedim(1, -1).flatten(0, 2) for feature in features]
    cells = torch.cat([*of_levels, of_levels[0].new_zeros(1, channels)])
    areas = [height * width for _, _, height, width in pooling.places]
    order = sorted(range(count), key=areas.__getitem__)
    sorted_boxes = torch.tensor(order, dtype=torch.int64, device=gradient.device)
    box_bytes = (targets + 2) * channels * gradient.element_size()  # for each cell
    end = count
    while end > 0:
        area = areas[order[end - 1]]
        start = max(0, end - max(1, max_bytes // (area * box_bytes)))
        index = sorted_boxes[start:end]
        end = start
        top, left, height, width = pooling.windows[index].t()[:, :, None]
        cell = torch.arange(area, device=index.device)
        y, x = cell // width, cell % width
        row, column = y + top, x + left
        last_row, last_column, first = (
            numbers[index, None].long() for numbers in (grids.rows, grids.columns, grids.first)
        )
        inside = (y < height) & (row >= 0) & (row < last_row) & (column >= 0)
        inside &= column < last_column
        place = torch.where(inside, first + row * last_column + column, len(cells) - 1)
        y = y.clamp(max=pooling.rows.shape[2] - 1)  # of cells beyond the window
        weights = _at(pooling.rows[index], y)[:, :, None] * _at(pooling.columns[index], x)[:, None]
        spread = gradient[index].view(len(index), targets * channels, -1) @ weights.flatten(1, 2)
        values = spread.view(len(index), targets, channels, area)
        yield index, (values * cells[place].transpose(1, 2)[:, None]).sum(dim=2)


def _at(weights: Tensor, position: Tensor) -> Tensor:
    """Weights (n, bins, length) of one axis at positions (n, a) on it: (n, bins, a)."""
    return weights.gather(2, position[:, None].expand(-1, weights.shape[1], -1))

"""
Heat maps of what a head said of pooled features, on the windows that RoIAlign read.

Shape shorthand: N instances, K stages that each pooled once, M boxes of all stages that count, T
targets, C channels, I images, (H, W) feature grid, (R, S) pooled grid, (h, w) window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from odam_d2.core import windows
from odam_d2.core.pooled_gradients import StageGradient
from odam_d2.core.roi_align import BoxPooling, Grids, RoIAlignSpec
from odam_d2.core.windows import cut_windows, refined

__all__ = ["pooled_heat_maps"]


def pooled_heat_maps(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    gradients: Sequence[StageGradient],
    specs: Sequence[RoIAlignSpec],
    *,
    num_targets: int,
    sigma: float = 0.0,
    max_bytes: int = 2**26,
) -> tuple[Tensor, Tensor]:
    """
    Heat maps, before their ReLU, of outputs that a head computed from each instance's pooled
    features alone.

    Args:
        features: of each level (I, C, H, W), what was pooled from.
        boxes: (N, K, 4), XYXY in input pixels.
        image: (N,) int64.
        level: (N, K) int64, where each box was pooled.
        gradients: of each stage, with respect to what it pooled; of one stage at least.
        specs: of each level; their output sizes are the same.
        num_targets: T.
        sigma: see :func:`odam_d2.core.heatmap.smooth`.
        max_bytes: bound on temporary memory, where boxes are computed together.

    Returns:
        maps (N, T, h, w), padded with zeros to the largest window, and window origins (N, 2), on
        the finest level of each instance, see :func:`refined`.
    """
    used = [stage for stage, of_stage in enumerate(gradients) if of_stage is not None]
    given = [of_stage for of_stage in gradients if of_stage is not None]
    like, count = given[0][1], len(boxes)
    if not count:
        return like.new_zeros((0, num_targets, 0, 0)), level.new_zeros((0, 2))
    boxes, level, image, ratio = _on_host(boxes, level, image, specs, used)
    boxes = boxes.to(features[0].dtype)
    grids = Grids.of(features, specs, image, level)
    pooling = BoxPooling.of_boxes(boxes, grids, specs[0].output_size).smoothed(sigma)
    refined_windows = (pooling.windows * ratio[:, None]).unflatten(0, (len(used), count))
    corners, sides = refined_windows.split(2, dim=2)
    origins = corners.amin(dim=0)
    size = ((corners + sides).amax(dim=0) - origins).amax(dim=0).tolist()
    shift = (corners - origins).flatten(0, 1)
    if windows.computes_together(like.device):
        gradient = torch.cat([gradient for _, gradient in given]) if len(given) > 1 else like
        layout = torch.cat([shift, ratio[:, None], origins.repeat(len(used), 1)], dim=1)
        maps, origins = _together(features, pooling, grids, gradient, layout, size, max_bytes)
        maps = maps.unflatten(0, (len(used), count)).sum(dim=0) if len(used) > 1 else maps
        return maps.permute(0, 3, 1, 2).contiguous(), origins[:count]
    maps = like.new_zeros((count, num_targets, *size))
    places = torch.cat([torch.stack([level, image, ratio], dim=1), shift], dim=1).tolist()
    _add_one_by_one(maps, features, pooling, places, given, sigma)
    return maps, origins.to(like.device)


def _on_host(
    boxes: Tensor, level: Tensor, image: Tensor, specs: Sequence[RoIAlignSpec], used: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    The boxes (M, 4) of the stages that count, stage by stage, their levels and images, and how many
    cells of the finest level of its instance a cell is long: all (M,), float64 and int64. On the
    host, which must know how large windows are, and has few numbers faster.
    """
    count, stages = level.shape
    known = torch.cat([boxes.flatten(1).double(), level, image[:, None]], dim=1).cpu()
    boxes, level, image = known.split([4 * stages, stages, 1], dim=1)
    level = level.long()
    scales = known.new_tensor([spec.spatial_scale for spec in specs])
    ratio = (scales[level.amin(dim=1, keepdim=True)] / scales[level]).round().long()
    return (
        boxes.view(count, stages, 4)[:, used].transpose(0, 1).flatten(0, 1),
        level[:, used].t().flatten(),
        image.long().flatten().repeat(len(used)),
        ratio[:, used].t().flatten(),
    )


def _add_one_by_one(
    maps: Tensor,
    features: Sequence[Tensor],
    pooling: BoxPooling,
    places: Sequence[Sequence[int]],
    given: Sequence[tuple[list[int], Tensor]],
    sigma: float,
) -> None:
    """
    Add what each box of each stage gives to the maps (N, T, h, w).

    Args:
        places: of each box its level and image, the cells of its map along a side of one of the
            window's, and where the window begins in the map (row, column).
        given: of each stage that counts, which targets depend on it, and their gradients.
    """
    count, num_targets = maps.shape[:2]
    of_boxes = [gradient for _, of_stage in given for gradient in of_stage]
    for number, values in _one_by_one(features, pooling, places, of_boxes, sigma):
        *_, times, y, x = places[number]
        values, targets = refined(values, times), given[number // count][0]
        window = maps[number % count, :, y : y + values.shape[-2], x : x + values.shape[-1]]
        if len(targets) == num_targets:
            window += values
        else:
            window[targets] += values


def _one_by_one(
    features: Sequence[Tensor],
    pooling: BoxPooling,
    places: Sequence[Sequence[int]],
    gradients: Sequence[Tensor],
    sigma: float,
) -> Iterator[tuple[int, Tensor]]:
    """
    The number of each box, and its maps (t, h, w).

    Args:
        places: of each box the level, the image, and more.
        gradients: of each box (t, C, R, S).
    """
    members = defaultdict(list)
    for number, (level, image, *_) in enumerate(places):
        members[level, image].append(number)
    for (level, image), numbers in members.items():
        cut = cut_windows(features[level][image], [pooling.places[n] for n in numbers])
        for number, window in zip(numbers, cut, strict=True):
            rows = pooling.rows[number, :, : window.shape[-2]]
            columns = pooling.columns[number, :, : window.shape[-1]]
            # Where a window has fewer columns than bins, or bins are smoothed, adding up channels
            # before bins loses digits in float32, because bins cancel.
            if sigma == 0 and columns.shape[1] > len(columns):
                yield number, _contracted_maps(rows, columns, gradients[number], window)
            else:
                spread = rows.t() @ gradients[number] @ columns
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
    features: Sequence[Tensor],
    pooling: BoxPooling,
    grids: Grids,
    gradient: Tensor,
    layout: Tensor,
    size: Sequence[int],
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """
    As :func:`pooled_heat_maps`, in a number of operations that depends on M by the number of chunks
    alone.

    Args:
        gradient: (M, T, C, R, S), stage by stage.
        layout: (M, 5) on the host: the place (row, column) of each window in the map of its
            instance, the cells of that map along a side of one of the window's, the map's origin.
        size: of the maps.
    """
    count, num_targets, channels, *bins = gradient.shape
    # Large windows first, so that those of a chunk are about as large.
    areas, order = pooling.windows[:, 2:].prod(dim=1).sort(descending=True)
    most = int(areas[0])
    top, left, _, width = pooling.windows.unbind(dim=1)
    base = (grids.first + top * grids.columns + left).long()
    cuts = torch.stack([base, grids.columns.long(), width], dim=1)[order]
    first = (order.argsort() * most)[:, None]
    layout = torch.cat([order[:, None], cuts, first, pooling.windows[:, 2:], layout], dim=1)
    weights = (w.transpose(1, 2)[order] for w in pooling.inside(grids))
    layout, rows, columns = _copied([layout, *weights], gradient.device)
    cuts, layout = layout.split([4, 8], dim=1)
    cells = torch.cat([feature.transpose(0, 1).flatten(1) for feature in features], dim=1)
    values = gradient.new_zeros((count * most + 1, num_targets))  # the last for what is outside
    padded = values[:-1].view(count, most, num_targets)
    gradient, num_bins = gradient.flatten(3), bins[0] * bins[1]
    cell_bytes = (channels + (num_targets + 2) * num_bins) * gradient.element_size()
    cell, box = (torch.arange(n, device=gradient.device) for n in (most, count))
    start = 0
    while start < count:
        area = int(areas[start])
        part = slice(start, start + max(1, max_bytes // (area * cell_bytes)))
        start = part.stop
        number, base, stride, width = cuts[part, :, None].unbind(dim=1)
        here = cell[:area]
        y = here // width
        x = here - y * width
        place = (base + y * stride + x).clamp_(0, cells.shape[1] - 1)
        # Of cells after a window's last one, whose values nobody reads, no other row is there.
        y, at = y.clamp_(max=rows.shape[1] - 1), box[part, None]
        of_bins = rows[at, y][..., None] * columns[at, x][..., None, :]
        # Channels first: a cell has more of them than bins.
        of_boxes = gradient[number[:, 0]].transpose(1, 2).flatten(2)
        products = torch.bmm(cells[:, place].permute(1, 2, 0), of_boxes)
        products = products.view(-1, num_targets, num_bins)
        found = torch.bmm(products, of_bins.view(-1, num_bins, 1))
        padded[part, :area] = found.view(-1, area, num_targets)
    return _placed(values, layout, size), layout[:, -2:]


def _placed(values: Tensor, layout: Tensor, size: Sequence[int]) -> Tensor:
    """
    Maps of windows, (M, h, w, T).

    Args:
        values: (X, T), cells of all windows, and a last one that is zero.
        layout: (M, 8), as for :func:`_together`, after the window's first cell, rows and columns.
        size: (h, w).
    """
    first, height, width, row, column, ratio, *_ = layout[..., None, None].unbind(dim=1)
    y = torch.arange(size[0], device=values.device)[:, None] - row
    x = torch.arange(size[1], device=values.device) - column
    y, x = (position.div(ratio, rounding_mode="floor") for position in (y, x))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    cell = (first + y * width + x).masked_fill_(~inside, len(values) - 1)
    return values[cell] / (ratio**2)[..., None]


def _copied(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors (M, ...) of the host, copied to a device at once: it is waited for each copy."""
    packed = torch.cat([part.flatten(1).double() for part in parts], dim=1).to(device)
    split = packed.split([part[0].numel() for part in parts], dim=1)
    return [
        x.unflatten(1, part.shape[1:]).to(part.dtype) for x, part in zip(split, parts, strict=True)
    ]

"""
RoIAlign as plain, separable tensor algebra, and the heat maps of what was pooled by it.

RoIAlign (He et al., "Mask R-CNN", ICCV 2017) averages bilinear samples that lie on a product grid.
Bilinear weights factor, averaging over a bin factors, and so does the border rule (a sample beyond
-1 or beyond the size counts zero). So with one small matrix for each axis of each box,

    pooled[c] = rows @ feature[c] @ columns^T        and its adjoint is
    d(output)/d(feature[c]) = rows^T @ d(output)/d(pooled[c]) @ columns.

The matrices are zero outside a window of cells around the box, so only the window is touched. It is
the arithmetic of torchvision's kernel, in the same order, and differentiable any number of times.

Shape shorthand: N boxes, T targets, C channels, (H, W) feature grid, (R, S) pooled grid, (h, w)
window. Boxes are XYXY in network-input pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .heatmap import smooth, smoothing_radius
from .windows import cut_window, cut_windows, paste_window

__all__ = ["BoxPooling", "RoIAlignSpec", "adjoint", "pooled_heat_maps", "roi_align"]


@dataclass(frozen=True)
class RoIAlignSpec:
    """
    The parameters of one RoIAlign layer.

    Attributes:
        output_size: (R, S), rows and columns of the pooled grid.
        spatial_scale: cells per input pixel, the inverse of the stride.
        sampling_ratio: samples per bin and axis; 0 or less adapts it to the size of the box.
        aligned: whether box coordinates are shifted by half a cell ("ROIAlignV2").
    """

    output_size: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int = 0
    aligned: bool = True


@dataclass(frozen=True)
class BoxPooling:
    """
    RoIAlign of N boxes as matrices on windows.

    Attributes:
        rows: (N, R, h), weights of the window's rows in each row of bins; h is the largest
            window's, the weights of a smaller one are zero beyond its extent.
        columns: (N, S, w), likewise for columns.
        origins: (N, 2) integers, (row, column) of each window's first cell.
        extents: (N, 2) integers, (rows, columns) of each window; it lies inside the feature map.
    """

    rows: Tensor
    columns: Tensor
    origins: Tensor
    extents: Tensor

    @classmethod
    def of_boxes(cls, boxes: Tensor, grid: Sequence[int], spec: RoIAlignSpec) -> "BoxPooling":
        """
        Args:
            boxes: (N, 4), XYXY in input pixels; of the dtype in which the kernel would compute.
            grid: (H, W) of the feature map.
            spec: the layer's parameters.
        """
        rows, top, height = _axis_matrices(
            boxes[:, 1], boxes[:, 3], grid[0], spec.output_size[0], spec
        )
        columns, left, width = _axis_matrices(
            boxes[:, 0], boxes[:, 2], grid[1], spec.output_size[1], spec
        )
        return cls(rows, columns, torch.stack([top, left], 1), torch.stack([height, width], 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, tuple[int, int, int, int]]]:
        """One box after the other: rows (R, h), columns (S, w), window (row, column, h, w)."""
        windows = torch.cat([self.origins, self.extents], dim=1).tolist()
        for rows, columns, window in zip(self.rows, self.columns, windows, strict=True):
            yield rows[:, : window[2]], columns[:, : window[3]], tuple(window)


def _axis_matrices(
    low: Tensor, high: Tensor, cells: int, bins: int, spec: RoIAlignSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (N, bins, window) of one axis, first cell (N,) and length (N,) of each window."""
    offset = 0.5 if spec.aligned else 0.0
    start = low * spec.spatial_scale - offset
    extent = (high * spec.spatial_scale - offset) - start
    if not spec.aligned:
        extent = extent.clamp(min=1.0)
    size = extent / bins
    samples = (
        torch.full_like(extent, spec.sampling_ratio) if spec.sampling_ratio > 0 else size.ceil()
    )
    # A box turned inside out has no samples at all; RoIAlign gives it zeros.
    samples = samples.clamp(min=0)
    counts = samples.clamp(min=1)[:, None, None]

    most = int(samples.max()) if len(samples) else 0
    k = torch.arange(most, dtype=low.dtype, device=low.device)
    step = torch.arange(bins, device=low.device)[:, None] * size[:, None, None]  # (N, bins, 1)
    # In this order, roundings are the kernel's own: a sample 300 cells from the corner would
    # otherwise move by 1e-5 of a cell in float32.
    within = (k + 0.5) * size[:, None, None] / counts  # (N, 1, most)
    position = start[:, None, None] + step + within
    used = (k < samples[:, None, None]) & (position >= -1) & (position <= cells)
    position = position.clamp(min=0)
    before = position.floor().clamp(max=cells - 1)
    fraction = torch.where(before == cells - 1, torch.zeros_like(position), position - before)
    share = used.to(low.dtype) / counts

    before = before.long()
    after = (before + 1).clamp(max=cells - 1)
    first = before.amin(dim=(1, 2)) if most else before.new_zeros(len(low))
    length = after.amax(dim=(1, 2)) - first + 1 if most else torch.ones_like(first)
    weights = low.new_zeros((len(low), bins, int(length.max()) if len(low) else 1))
    weights.scatter_add_(2, before - first[:, None, None], (1 - fraction) * share)
    weights.scatter_add_(2, after - first[:, None, None], fraction * share)
    return weights, first, length


def roi_align(feature: Tensor, boxes: Tensor, spec: RoIAlignSpec) -> Tensor:
    """
    RoIAlign of one image's feature map.

    Args:
        feature: (C, H, W).
        boxes: (N, 4), XYXY in input pixels.
        spec: the layer's parameters.

    Returns:
        (N, C, R, S), differentiable with respect to ``feature`` any number of times.
    """
    pooled = [
        rows @ cut_window(feature, window) @ columns.t()
        for rows, columns, window in BoxPooling.of_boxes(boxes, feature.shape[-2:], spec)
    ]
    return (
        torch.stack(pooled) if pooled else feature.new_zeros((0, len(feature), *spec.output_size))
    )


def adjoint(gradient: Tensor, boxes: Tensor, grid: tuple[int, int], spec: RoIAlignSpec) -> Tensor:
    """
    The transpose of :func:`roi_align`: carries gradients of pooled features to the feature map.

    Args:
        gradient: (N, C, R, S), one for each box.
        boxes: (N, 4), XYXY in input pixels.
        grid: (H, W) of the feature map.
        spec: the layer's parameters.

    Returns:
        (N, C, H, W), not summed over boxes. Zero outside each box's window.
    """
    full = [
        paste_window(rows.t() @ g @ columns, window, grid)
        for g, (rows, columns, window) in zip(
            gradient, BoxPooling.of_boxes(boxes, grid, spec), strict=True
        )
    ]
    return torch.stack(full) if full else gradient.new_zeros((0, gradient.shape[1], *grid))


def pooled_heat_maps(
    feature: Tensor,
    boxes: Tensor,
    gradient: Tensor,
    spec: RoIAlignSpec,
    sigma: float = 0.0,
    signed: bool = False,
) -> tuple[Tensor, Tensor]:
    """
    Heat maps of outputs that a head computed from each box's pooled feature alone.

    Boxes are visited one at a time: their windows differ in size, and one window is small enough
    for the caches (*measured*: 40 times faster than padding them into batches, on 2 CPU cores).

    Args:
        feature: (C, H, W), what was pooled from.
        boxes: (N, 4), XYXY in input pixels.
        gradient: (N, T, C, R, S), derivative of each of T outputs with respect to the box's pooled
            feature.
        spec: the layer's parameters.
        sigma: see :func:`heat_map`.
        signed: leave out the ReLU, for maps that are to be added up first.

    Returns:
        maps (N, T, h, w), padded with zeros to the largest window, and window origins (N, 2).
    """
    margin = smoothing_radius(sigma)
    pooling = BoxPooling.of_boxes(boxes, feature.shape[-2:], spec)
    origins = pooling.origins - margin
    largest = (pooling.extents.amax(dim=0) + 2 * margin).tolist() if len(boxes) else [0, 0]
    maps = gradient.new_zeros((len(boxes), gradient.shape[1], *largest))
    places = [
        (top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        for _, _, (top, left, height, width) in pooling
    ]
    windows = cut_windows(feature, places)
    for i, ((rows, columns, _), window) in enumerate(zip(pooling, windows, strict=True)):
        # Where a window has fewer rows than bins, spreading shrinks the gradient. It also adds up
        # bins before channels: in float32 the other order loses digits where bins cancel.
        if sigma == 0 and rows.shape[1] > len(rows):
            one = _contracted_map(rows, columns, gradient[i], window)
        else:
            spread = F.pad(rows.t() @ gradient[i] @ columns, (margin,) * 4)
            one = (smooth(spread, sigma) * window).sum(dim=-3)
        maps[i, :, : one.shape[-2], : one.shape[-1]] = one
    return (maps if signed else maps.relu_()), origins


def _contracted_map(rows: Tensor, columns: Tensor, gradient: Tensor, window: Tensor) -> Tensor:
    """
    ``heat_map(rows^T @ gradient @ columns, window)`` before its ReLU, without the gradient on the
    window, the largest tensor of all: channels are summed for each column before rows are spread
    out.

    Args:
        rows: (R, h); columns: (S, w).
        gradient: (T, C, R, S).
        window: (C, h, w).

    Returns:
        (T, h, w).
    """
    t, c, r, s = gradient.shape
    spread = columns.t() @ gradient.permute(3, 0, 2, 1).reshape(s, t * r * c)  # (w, T R C)
    summed = spread.view(-1, t * r, c) @ window.permute(2, 0, 1).contiguous()  # (w, T R, h)
    summed = summed.view(-1, t, r, rows.shape[1])
    return torch.einsum("wtrh,rh->thw", summed, rows)

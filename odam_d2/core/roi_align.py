"""
RoIAlign as plain, separable tensor algebra.

RoIAlign (He et al., "Mask R-CNN", ICCV 2017) averages bilinear samples that lie on a product grid.
Bilinear weights factor, averaging over a bin factors, and so does the border rule (a sample beyond
-1 or beyond the size counts zero). So with one small matrix for each axis of each box,

    pooled[c] = rows @ feature[c] @ columns^T        and its adjoint is
    d(output)/d(feature[c]) = rows^T @ d(output)/d(pooled[c]) @ columns.

The matrices are zero outside a window of cells around the box, so only the window is touched. It is
the arithmetic of torchvision's kernel, in the same order.

Shape shorthand: N boxes, (H, W) feature grid, (R, S) pooled grid, (h, w) window. Boxes are XYXY in
network-input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from odam_d2.core.heatmap import gaussian_kernel, smoothing_radius

__all__ = ["BoxPooling", "Grids", "RoIAlignSpec"]


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
class Grids:
    """
    What each of N boxes is pooled from, and how: of (N,) each, in the dtype of the boxes.

    Attributes:
        rows, columns: of the feature map, in cells.
        scale, sampling_ratio, aligned: see :class:`RoIAlignSpec`.
        first: the number of the feature map's first cell, where the cells of all maps are counted.
    """

    rows: Tensor
    columns: Tensor
    scale: Tensor
    sampling_ratio: Tensor
    aligned: Tensor
    first: Tensor

    @classmethod
    def of(
        cls,
        features: Sequence[Tensor],
        specs: Sequence[RoIAlignSpec],
        image: Tensor,
        level: Tensor,
    ) -> Grids:
        """
        Args:
            features: of each level (I, C, H, W).
            specs: of each level.
            image, level: (N,), which of them each box is pooled from.
        """
        numbers, first = [], 0
        for feature, spec in zip(features, specs, strict=True):
            height, width = feature.shape[-2:]
            numbers.append(
                [height, width, spec.spatial_scale, spec.sampling_ratio, spec.aligned, first]
            )
            first += len(feature) * height * width
        table = torch.tensor(numbers, dtype=torch.float64, device=image.device)
        rows, columns, scale, ratio, aligned, start = table[level].unbind(dim=1)
        return cls(rows, columns, scale, ratio, aligned, start + image * rows * columns)


@dataclass(frozen=True)
class BoxPooling:
    """
    RoIAlign of N boxes as matrices on windows.

    Attributes:
        rows: (N, R, h), weights of the window's rows in each row of bins; h is the largest
            window's, the weights of a smaller one are zero beyond its extent.
        columns: (N, S, w), likewise for columns.
        windows: (N, 4) int64: row and column of the window's first cell, its rows and columns; it
            lies inside the feature map.
        places: the same on the host.
    """

    rows: Tensor
    columns: Tensor
    windows: Tensor
    places: list[tuple[int, int, int, int]]

    @classmethod
    def of_boxes(cls, boxes: Tensor, grids: Grids, size: tuple[int, int]) -> BoxPooling:
        """
        Args:
            boxes: (N, 4), XYXY in input pixels; of the dtype in which the kernel would compute.
            grids: of the feature maps.
            size: (R, S) of the pooled grid.
        """
        samples = _Samples(boxes, grids, size)
        windows = samples.windows()
        counts = samples.counts.long()
        known = torch.cat([windows, counts], dim=1).tolist()  # the only time that the host waits
        most = [max(numbers, default=0) for numbers in zip(*known, strict=True)] or [0] * 6
        weights = samples.weights(windows[:, :2], max(most[2:4]), max(most[4:]))
        return cls(
            weights[:, 0, : size[0], : most[2]],
            weights[:, 1, : size[1], : most[3]],
            windows,
            [(top, left, height, width) for top, left, height, width, *_ in known],
        )

    def inside(self, grids: Grids) -> list[Tensor]:
        """The weights of rows and columns, zero for those that lie off the feature map."""
        of_axes = []
        for axis, weights in enumerate((self.rows, self.columns)):
            cell = self.windows[:, axis, None] + torch.arange(weights.shape[2])
            length = (grids.rows, grids.columns)[axis]
            of_axes.append(weights * ((cell >= 0) & (cell < length[:, None]))[:, None])
        return of_axes

    def smoothed(self, sigma: float) -> BoxPooling:
        """
        With the Gaussian of :func:`smooth` in the matrices, since it is separable as well. Windows
        are wider on each side by its radius, and may stick out of the feature map.
        """
        if sigma == 0:
            return self
        kernel, margin = gaussian_kernel(sigma, self.rows)[None, None], smoothing_radius(sigma)
        rows, columns = (
            F.conv1d(x.flatten(0, 1)[:, None], kernel, padding=2 * margin).view(*x.shape[:2], -1)
            for x in (self.rows, self.columns)
        )
        windows = self.windows + self.windows.new_tensor([-margin, -margin, 2 * margin, 2 * margin])
        places = [
            (top - margin, left - margin, height + 2 * margin, width + 2 * margin)
            for top, left, height, width in self.places
        ]
        return BoxPooling(rows, columns, windows, places)


class _Samples:
    """
    Where N boxes are sampled along both axes, rows and columns, each (N, 2): ``start`` and ``size``
    of the first bin in cells, ``counts`` of the samples in a bin, and the ``last`` cell.
    """

    def __init__(self, boxes: Tensor, grids: Grids, size: tuple[int, int]):
        low, high = boxes.view(-1, 2, 2).flip(2).unbind(dim=1)  # from (x, y) to (y, x)
        aligned, scale = grids.aligned.bool()[:, None], grids.scale.to(low.dtype)[:, None]
        offset = 0.5 * aligned.to(low.dtype)
        self.start = low * scale - offset
        extent = (high * scale - offset) - self.start
        extent = torch.where(aligned, extent, extent.clamp(min=1.0))
        self.bins = max(size)
        self.size = extent / (self.bins if size[0] == size[1] else extent.new_tensor(size))
        self.last = torch.stack([grids.rows, grids.columns], dim=1).to(low.dtype) - 1
        ratio = grids.sampling_ratio.to(low.dtype)[:, None]
        # A box turned inside out has no samples at all; RoIAlign gives it zeros.
        self.counts = torch.where(ratio > 0, ratio, self.size.ceil()).clamp(min=0)

    def _positions(self, bins: Tensor, k: Tensor) -> Tensor:
        """Of sample k of some bins, (N, 2, bins, samples), in cells."""
        # In this order, roundings are the kernel's own: a sample 300 cells from the corner would
        # otherwise move by 1e-5 of a cell in float32.
        size, counts = self.size[..., None, None], self.counts.clamp(min=1)[..., None, None]
        return self.start[..., None, None] + bins * size + (k + 0.5) * size / counts

    def _cells(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The cell before each position, and the one after it."""
        last = self.last[..., None, None]
        before = torch.minimum(positions.floor(), last)
        return before, torch.minimum(before + 1, last)

    def windows(self) -> Tensor:
        """(N, 4), see :class:`BoxPooling`: what the samples need."""
        ends = torch.arange(2, dtype=self.size.dtype, device=self.size.device)[:, None]
        k = ends * (self.counts.clamp(min=1) - 1)[..., None, None]
        before, after = self._cells(self._positions(ends * (self.bins - 1), k).clamp(min=0))
        first = before.amin(dim=(2, 3))
        return torch.cat([first, after.amax(dim=(2, 3)) - first + 1], dim=1).long()

    def weights(self, first: Tensor, length: int, most: int) -> Tensor:
        """
        Of cells in bins, (N, 2, bins, length).

        Args:
            first: (N, 2), cell of each window.
            length: of the largest window.
            most: samples of a bin, at most.
        """
        counts = self.counts[..., None, None]
        k = torch.arange(most, dtype=self.size.dtype, device=self.size.device)
        bins = torch.arange(self.bins, device=self.size.device)[:, None]
        positions = self._positions(bins, torch.minimum(k, counts.clamp(min=1) - 1))
        used = (k < counts) & (positions >= -1) & (positions <= self.last[..., None, None] + 1)
        positions = positions.clamp(min=0)
        before, after = self._cells(positions)
        fraction = (positions - before).masked_fill(before == after, 0)
        share = used.to(fraction.dtype) / counts.clamp(min=1)
        weights = fraction.new_zeros((len(first), 2, self.bins, length))
        first = first[..., None, None]
        weights.scatter_add_(3, before.long() - first, (1 - fraction) * share)
        weights.scatter_add_(3, after.long() - first, fraction * share)
        return weights

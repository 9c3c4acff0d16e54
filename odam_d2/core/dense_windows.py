"""
Gradients and heat maps of many outputs of a dense convolutional head, on windows.

One output of a dense head (a class score, a box delta at one cell of one level) reads only a window
of the feature map: 11 x 11 cells for RetinaNet's four 3x3 convolutions and 3x3 predictor. Its
gradient is pushed back from the output through flipped kernels, on windows that grow layer by
layer, times the derivatives of the nonlinearities saved in the forward pass. No autograd graph is
needed, all outputs go at once, and the result is exact: cells outside the feature map are zero
padding, so that what flows into them is dropped. (Zhao and Chan, "ODAM", ICLR 2023, for the map.)

Shape shorthand:

    N: instances; T: targets of each, all read at the instance's cell; C: channels; L: layers before
    the predictor; I: images; h: side of a window in cells, odd.

Frame: (row, column) in cells of an instance's pyramid level. Windows may stick out of the level.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from odam_d2.core.full_convolution import FullConvolution
from odam_d2.core.heatmap import gaussian_kernel, smoothing_radius

__all__ = ["ConvLayer", "DenseHead", "OutputCells", "Windows", "gather_windows"]

LevelMaps = Sequence[Tensor]
"""One (I, C, H, W) map for each pyramid level."""


class ConvLayer(NamedTuple):
    """
    A convolution (stride 1, zero padding k // 2, k odd) before an elementwise nonlinearity.

    Attributes:
        weight: (Cout, Cin, k, k).
        scale: (Cout,) factor between the two, such as eval BatchNorm's ``gamma / sqrt(var + eps)``,
            or None for one. A factor that depends on image and level goes into the masks instead.
    """

    weight: Tensor
    scale: Tensor | None = None


class OutputCells(NamedTuple):
    """Where the outputs are read: (N,) int64 each, row and column in cells of the level."""

    level: Tensor
    image: Tensor
    row: Tensor
    column: Tensor

    def select(self, index: Tensor) -> "OutputCells":
        return OutputCells(*(field[index] for field in self))


class Windows(NamedTuple):
    """
    Values on windows of cells, zero outside the feature map.

    Attributes:
        values: (N, T, h, h) heat maps or (N, T, C, h, h) gradients.
        row, column: (N,) first cell of each window; negative where it sticks out.
    """

    values: Tensor
    row: Tensor
    column: Tensor


def gather_windows(maps: LevelMaps, cells: OutputCells, radius: int) -> Tensor:
    """
    Windows of (2 radius + 1)^2 cells around ``cells``, (h, h, N, C).

    Cells outside the map repeat its border; :func:`cells_inside` tells which they are.
    """
    offsets = torch.arange(-radius, radius + 1, device=cells.row.device)
    out = maps[0].new_empty(len(offsets), len(offsets), len(cells.row), maps[0].shape[1])
    for level, level_map in enumerate(maps):
        index = (cells.level == level).nonzero()[:, 0]
        if len(index) == 0:
            continue
        height, width = level_map.shape[-2:]
        rows = (cells.row[index] + offsets[:, None]).clamp(0, height - 1)
        columns = (cells.column[index] + offsets[:, None]).clamp(0, width - 1)
        by_cell = level_map.permute(0, 2, 3, 1)
        values = by_cell[cells.image[index], rows[:, None], columns[None]]
        if len(index) == len(cells.row):
            return values
        out[:, :, index] = values
    return out


def cells_inside(sizes: Sequence[tuple[int, int]], cells: OutputCells, radius: int) -> Tensor:
    """Which cells of the windows lie on their level, (h, h, N) bool; ``sizes`` (height, width)."""
    offsets = torch.arange(-radius, radius + 1, device=cells.row.device)
    heights, widths = torch.tensor(sizes, device=cells.row.device).T
    rows, columns = cells.row + offsets[:, None], cells.column + offsets[:, None]
    rows_in = (rows >= 0) & (rows < heights[cells.level])
    columns_in = (columns >= 0) & (columns < widths[cells.level])
    return rows_in[:, None] & columns_in[None]


class DenseHead:
    """
    Backward pass of a tower of convolutions and a predictor, for outputs at single cells.

    Holds transformed kernels, about three times the memory of the weights: build it once and use
    it for all levels and images, as long as the weights stay.

    Args:
        layers: the tower, in forward order; may be empty.
        predictor: (P, C, k, k) weight of the convolution that gives the outputs. Several predictors
            that read the same tower are concatenated along P.
    """

    def __init__(self, layers: Sequence[ConvLayer], predictor: Tensor) -> None:
        weights = [w if s is None else w * s.view(-1, 1, 1, 1) for w, s in layers]
        for weight in (*weights, predictor):
            if weight.shape[2] % 2 == 0 or weight.shape[2] != weight.shape[3]:
                raise ValueError(f"odd square kernels only, not {tuple(weight.shape[2:])}")
        self.convolutions = [FullConvolution(weight) for weight in weights]
        half = predictor.dtype in (torch.float16, torch.bfloat16)
        self.predictor = predictor.detach().float() if half else predictor.detach()

    @property
    def radius(self) -> int:
        """Cells by which an output reaches beyond its own cell."""
        kernels = [conv.kernel for conv in self.convolutions]
        return sum(k // 2 for k in (*kernels, self.predictor.shape[-1]))

    def gradients(
        self,
        masks: Sequence[LevelMaps | None],
        features: LevelMaps,
        seeds: Tensor,
        cells: OutputCells,
        max_bytes: int = 2**26,
    ) -> Windows:
        """
        ``dY[i, t] / dA`` on the windows.

        Args:
            masks: for each layer, the derivative of its nonlinearity at every cell of every level,
                (I, Cout, H, W), bool (was the ReLU active?) or float; None where there is none.
            features: the maps A that the tower read, one for each level. Only sizes are used.
            seeds: (N, T, P), derivative of ``Y[i, t]`` with respect to the predictor's outputs at
                the instance's cell: one-hot for a logit, a combination of deltas for a box side.
            cells: where; N of each.
            max_bytes: bound on temporary memory, not counting the result.

        Returns:
            Windows of values (N, T, C, h, h), h = 2 radius + 1.
        """
        side = 2 * self.radius + 1
        channels = features[0].shape[1]
        out = self.predictor.new_zeros(*seeds.shape[:2], channels, side, side)
        with _plain_arithmetic(seeds.device):
            for index, gradient in self._chunks(masks, features, seeds, cells, max_bytes):
                out[index] = gradient.permute(2, 3, 4, 0, 1)
        return Windows(out, cells.row - self.radius, cells.column - self.radius)

    def heat_maps(
        self,
        masks: Sequence[LevelMaps | None],
        features: LevelMaps,
        seeds: Tensor,
        cells: OutputCells,
        sigma: float = 0.0,
        signed: bool = False,
        max_bytes: int = 2**26,
    ) -> Windows:
        """
        ``ReLU(sum_c Phi(dY[i, t] / dA)[c] * A[c])`` on the windows.

        Args:
            masks, features, seeds, cells, max_bytes: as for :meth:`gradients`.
            sigma: standard deviation in cells of the Gaussian Phi, 0 for none. It widens the
                windows by :func:`smoothing_radius`.
            signed: leave out the ReLU. Outputs that read several towers (FCOS: class and
                centerness) are linear in the gradients: add their signed maps, then rectify.

        Returns:
            Windows of values (N, T, h, h), h = 2 (radius + smoothing radius) + 1.
        """
        margin = smoothing_radius(sigma)
        radius = self.radius + margin
        side = 2 * radius + 1
        out = self.predictor.new_zeros(*seeds.shape[:2], side, side)
        with _plain_arithmetic(seeds.device):
            for index, gradient in self._chunks(masks, features, seeds, cells, max_bytes, margin):
                here = cells.select(index[0])
                feature = gather_windows(features, here, radius).to(gradient.dtype)
                if margin:
                    gradient = _smooth_and_widen(gradient, sigma)
                maps = (gradient @ feature[..., None])[..., 0].permute(2, 3, 0, 1)
                inside = cells_inside(_sizes(features), here, radius)
                out[index] = maps * inside.permute(2, 0, 1)[:, None]
        return Windows(out if signed else out.relu_(), cells.row - radius, cells.column - radius)

    def _chunks(
        self,
        masks: Sequence[LevelMaps | None],
        features: LevelMaps,
        seeds: Tensor,
        cells: OutputCells,
        max_bytes: int,
        margin: int = 0,
    ) -> Iterator[tuple[tuple[Tensor, slice], Tensor]]:
        """Yield (instances, targets) and the gradient of that chunk, (h, h, n, t, C)."""
        if len(masks) != len(self.convolutions):
            raise ValueError(f"{len(self.convolutions)} layers, but masks for {len(masks)}")
        rows = max(1, max_bytes // self._row_bytes(features[0].shape[1], margin))
        num_instances, num_targets = seeds.shape[:2]
        step_t = max(1, min(rows, num_targets))
        step_n = max(1, rows // step_t)
        # By level, so that a chunk gathers from few of them.
        order = cells.level.argsort(stable=True)
        for n in range(0, num_instances, step_n):
            for t in range(0, num_targets, step_t):
                index = order[n : n + step_n], slice(t, t + step_t)
                here = cells.select(index[0])
                yield index, self._backward(masks, _sizes(features), seeds[index], here)

    def _row_bytes(self, channels: int, margin: int) -> int:
        """Temporary memory that one target of one instance needs."""
        side = self.predictor.shape[-1]
        most = 0
        for conv in reversed(self.convolutions):
            most = max(most, conv.row_elements(side, side))
            side += conv.kernel - 1
        most = max(most, 3 * channels * (side + 2 * margin) ** 2)
        return most * self.predictor.element_size()

    def _backward(
        self,
        masks: Sequence[LevelMaps | None],
        sizes: Sequence[tuple[int, int]],
        seeds: Tensor,
        cells: OutputCells,
    ) -> Tensor:
        """Gradient (h, h, n, t, C) of the outputs that ``seeds`` (n, t, P) select."""
        gradient = torch.einsum("ntp,pcyx->yxntc", seeds.to(self.predictor), self.predictor)
        radius = gradient.shape[0] // 2
        for conv, mask in zip(reversed(self.convolutions), reversed(masks), strict=True):
            # Outside the level there is only padding: nothing may flow through it.
            derivative = cells_inside(sizes, cells, radius)[..., None]
            if mask is not None:
                derivative = gather_windows(mask, cells, radius) * derivative
            gradient = conv(gradient, derivative.to(gradient.dtype)[:, :, :, None])
            radius += conv.kernel // 2
        return gradient * cells_inside(sizes, cells, radius)[..., None, None]


def _sizes(maps: LevelMaps) -> list[tuple[int, int]]:
    """(height, width) of each level, in cells."""
    return [(m.shape[-2], m.shape[-1]) for m in maps]


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No graph, and no autocast, whose few digits the full convolutions would use up."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _smooth_and_widen(windows: Tensor, sigma: float) -> Tensor:
    """
    Convolve windows (h, h, ...) with a Gaussian, (h + 2 s, h + 2 s, ...), s its radius.

    The same as padding by s and :func:`odam_d2.core.heatmap.smooth`, but as two matrix products
    in the order of axes at hand: torch's convolution of single channels costs ten times the memory.
    """
    kernel = gaussian_kernel(sigma, windows)
    side = len(windows)
    # band[v, i] = kernel[v - i]
    band = windows.new_zeros(side + len(kernel) - 1, side)
    for i in range(side):
        band[i : i + len(kernel), i] = kernel
    rows = (band @ windows.flatten(1)).unflatten(1, windows.shape[1:])
    return (band @ rows.flatten(2)).unflatten(2, windows.shape[2:])

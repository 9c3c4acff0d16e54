"""
Heat maps of many outputs of a dense convolutional head, on windows.

One output of a dense head (a class score, a box delta at one cell of one level) reads only a window
of the feature map: 11 x 11 cells for RetinaNet's four 3x3 convolutions and 3x3 predictor. Its
gradient is pushed back from the output through flipped kernels, on windows that grow layer by
layer, times the derivatives of the nonlinearities saved in the forward pass. No autograd graph is
needed, all outputs go at once, and the result is exact: cells outside the feature map are zero
padding, so that what flows into them is dropped. (Zhao and Chan, "ODAM", ICLR 2023, for the map.)

Maps of several targets of an instance meet halfway: the first layer's kernel is applied to the
features, once an instance, and each target's gradient at that layer's output is multiplied with the
result: ``sum_c A[c] sum_o W[o, c] g[o] = sum_o g[o] sum_c W[o, c] A[c]``, for each of its k x k
taps.

Nothing here asks the device for a value, and the number of operations depends on the memory
allowed, not on the number of instances.

Shape shorthand:

    N: instances; T: targets of each, all read at the instance's cell; C: channels; L: layers before
    the predictor; I: images; h: side of a window in cells, odd.

Frame: (row, column) in cells of an instance's pyramid level. Windows may stick out of the level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from odam_d2.core.full_convolution import FullConvolution
from odam_d2.core.heatmap import gaussian_kernel, smoothing_radius
from odam_d2.core.window_cells import FeatureWindows, LevelMaps, OutputCells, WindowCells, Windows

__all__ = ["ConvLayer", "DenseHead"]


_CACHED_BYTES = 2**25
"""Larger chunks are slower on the CPU, whose caches they leave: by 5 % at twice as much."""


class ConvLayer(NamedTuple):
    """
    A convolution (stride 1, zero padding k // 2, k odd) before an elementwise nonlinearity.

    Attributes:
        weight: (Cout, Cin, k, k).
        scale: (levels, I, Cout) factor between the two, such as eval BatchNorm's ``gamma /
            sqrt(var + eps)``, on each level of each image; None for one.
    """

    weight: Tensor
    scale: Tensor | None = None


class DenseHead:
    """
    Backward pass of a tower of convolutions and a predictor, for outputs at single cells.

    Args:
        layers: the tower, in forward order; may be empty.
        predictor: (P, C, k, k) weight of the convolution that gives the outputs. Several predictors
            that read the same tower are concatenated along P.
    """

    def __init__(self, layers: Sequence[ConvLayer], predictor: Tensor) -> None:
        weights, self.scales = ([getattr(x, name) for x in layers] for name in ConvLayer._fields)
        for weight in (*weights, predictor):
            if weight.shape[2] % 2 == 0 or weight.shape[2] != weight.shape[3]:
                raise ValueError(f"odd square kernels only, not {tuple(weight.shape[2:])}")
        self.convolutions = [FullConvolution(weight) for weight in weights]
        half = predictor.dtype in (torch.float16, torch.bfloat16)
        self.predictor = predictor.detach().float() if half else predictor.detach()
        self._rows = self.predictor.permute(0, 2, 3, 1).flatten(1)  # (P, k k C)

    @property
    def radius(self) -> int:
        """Cells by which an output reaches beyond its own cell."""
        kernels = [conv.kernel for conv in self.convolutions]
        return sum(k // 2 for k in (*kernels, self.predictor.shape[-1]))

    def heat_maps(
        self,
        masks: Sequence[LevelMaps | None],
        features: LevelMaps,
        seeds: Tensor,
        cells: OutputCells,
        sigma: float = 0.0,
        signed: bool = False,
        max_bytes: int = 2**26,
        windows: FeatureWindows | None = None,
    ) -> Windows:
        """
        ``ReLU(sum_c Phi(dY[i, t] / dA)[c] * A[c])`` on the windows.

        Args:
            masks: for each layer, the derivative of its nonlinearity at every cell of every level,
                (I, Cout, H, W), bool (was the ReLU active?) or float; None where there is none.
            features: the maps A that the tower read, one for each level.
            seeds: (N, T, P), derivative of ``Y[i, t]`` with respect to the predictor's outputs at
                the instance's cell: one-hot for a logit, a combination of deltas for a box side.
            cells: where; N of each.
            sigma: standard deviation in cells of the Gaussian Phi, 0 for none. It widens the
                windows by :func:`smoothing_radius`.
            signed: leave out the ReLU. Outputs that read several towers (FCOS: class and
                centerness) are linear in the gradients: add their signed maps, then rectify.
            max_bytes: bound on temporary memory, not counting the result, nor one copy of the
                masks.
            windows: of these features around these cells, of this radius or more, if they are there
                already.

        Returns:
            Windows of values (N, T, h, h), h = 2 (radius + smoothing radius) + 1.
        """
        radius = self.radius + smoothing_radius(sigma)
        side = 2 * radius + 1
        # Below three targets the multiplications that this saves are those that Toom and Cook do.
        halfway = bool(self.convolutions) and not sigma and seeds.shape[1] > 2
        row_bytes = self._row_bytes(features[0].shape[1], side, seeds.shape[1] if halfway else 0)
        out = self.predictor.new_zeros(*seeds.shape[:2], side, side)
        with _plain_arithmetic(seeds.device):
            tables = self._tables(masks)
            around, of_features = windows or FeatureWindows.around(features, cells, radius)
            for index in self._chunks(seeds, row_bytes, max_bytes):
                here = around.select(index[0])
                feature = here.read(of_features, radius).to(self.predictor)
                gradient = self._backward(tables, seeds[index], here, halfway)
                if halfway:
                    out[index] = _meet(gradient, self.convolutions[0].by_tap, feature)
                    continue
                if sigma:
                    gradient *= here.inside(self.radius)[:, :, :, None]
                    gradient = _smooth_and_widen(gradient, sigma)
                gradient *= feature[:, :, :, None]
                out[index] = gradient.sum(dim=4).permute(2, 3, 0, 1)
        return Windows(out if signed else out.relu_(), cells.row - radius, cells.column - radius)

    def _tables(self, masks: Sequence[LevelMaps | None]) -> list[Tensor | None]:
        if len(masks) != len(self.convolutions):
            raise ValueError(f"{len(self.convolutions)} layers, but masks for {len(masks)}")
        return [None if mask is None else WindowCells.table(mask) for mask in masks]

    def _row_bytes(self, channels: int, side: int, meeting: int = 0) -> int:
        """
        Temporary memory that one target of one instance needs, on windows of that side.

        Args:
            meeting: how many targets of an instance share what :func:`_meet` makes of features.
        """
        most, grown = 3 * channels * side**2, self.predictor.shape[-1]
        if meeting:
            taps = self.convolutions[0].weight[0, 0].numel()
            most += 2 * taps * channels * side**2 // meeting
        for conv in reversed(self.convolutions):
            most = max(most, conv.row_elements(grown, grown))
            grown += conv.kernel - 1
        return most * self.predictor.element_size()

    @staticmethod
    def _chunks(seeds: Tensor, row_bytes: int, max_bytes: int) -> Iterator[tuple[slice, slice]]:
        """Yield (instances, targets) that fit into memory together."""
        num_instances, num_targets = seeds.shape[:2]
        if seeds.device.type == "cpu":
            max_bytes = min(max_bytes, _CACHED_BYTES)
        rows = max(1, max_bytes // row_bytes)
        step_t = max(1, min(rows, num_targets))
        step_n = max(1, rows // step_t)
        for n in range(0, num_instances, step_n):
            for t in range(0, num_targets, step_t):
                yield slice(n, n + step_n), slice(t, t + step_t)

    def _backward(
        self,
        tables: Sequence[Tensor | None],
        seeds: Tensor,
        windows: WindowCells,
        halfway: bool = False,
    ) -> Tensor:
        """
        Gradient (h, h, n, t, C) of the outputs that ``seeds`` (n, t, P) select by the features, or
        by the output of the first convolution; cells outside the level are not zeroed in the first.
        """
        side = self.predictor.shape[-1]
        gradient = seeds.to(self.predictor) @ self._rows
        gradient = gradient.view(*seeds.shape[:2], side, side, -1).permute(2, 3, 0, 1, 4)
        radius = side // 2
        for number, conv in reversed(list(enumerate(self.convolutions))):
            # Outside the level there is only padding: nothing may flow through it.
            table, scale = tables[number], self.scales[number]
            mask = windows.inside(radius) if table is None else windows.read(table, radius)
            mask = (
                mask.to(gradient.dtype)
                if scale is None
                else mask * scale[windows.level, windows.image]
            )
            mask = mask.unsqueeze(3)
            if halfway and number == 0:
                return gradient * mask
            gradient = conv(gradient, mask)
            radius += conv.kernel // 2
        return gradient


def _sizes(maps: LevelMaps) -> list[tuple[int, int]]:
    """(height, width) of each level, in cells."""
    return [(m.shape[-2], m.shape[-1]) for m in maps]


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No graph, and no autocast, whose few digits would not be enough."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _meet(gradient: Tensor, kernel: Tensor, feature: Tensor) -> Tensor:
    """
    Signed maps (n, t, h + k - 1, h + k - 1).

    Args:
        gradient: (h, h, n, t, Cout), at the output of a convolution.
        kernel: (k, k, Cin, Cout), its kernel.
        feature: (h + k - 1, h + k - 1, n, Cin), its input.
    """
    side, num, targets, k = len(gradient), *gradient.shape[2:4], len(kernel)
    read = feature.unfold(0, side, 1).unfold(1, side, 1)  # (k, k, n, Cin, h, h)
    read = read.permute(0, 1, 4, 5, 2, 3).reshape(k * k, side * side * num, -1)
    read = read @ kernel.flatten(0, 1)  # (k k, h h n, Cout)
    products = gradient.reshape(side * side * num, targets, -1) @ read.permute(1, 2, 0)
    products = products.view(side * side, num, targets, k * k).permute(1, 2, 3, 0)
    maps = F.fold(products.reshape(num * targets, k * k, -1), feature.shape[:2], k)
    return maps.view(num, targets, *feature.shape[:2])


def _smooth_and_widen(windows: Tensor, sigma: float) -> Tensor:
    """
    Convolve windows (h, h, ...) with a Gaussian, (h + 2 s, h + 2 s, ...), s its radius.

    The same as padding by s and :func:`odam_d2.core.heatmap.smooth`, but as two matrix products
    in the order of axes at hand: torch's convolution of single channels costs ten times the memory.
    """
    kernel = gaussian_kernel(sigma, windows)
    side = len(windows)
    # band[v, i] = kernel[v - i]
    band = F.pad(kernel, (0, side)).repeat(side)[: side * (side + len(kernel) - 1)]
    band = band.view(side, -1).T
    rows = (band @ windows.flatten(1)).unflatten(1, windows.shape[1:])
    return (band @ rows.flatten(2)).unflatten(2, windows.shape[2:])

"""
Heat maps of single outputs of a dense head, with a graph: what Odam-Train differentiates again.

:mod:`odam_d2.core.dense_windows` does the same for explaining, faster and without a graph; its
docstring says why windows are enough.

Shape shorthand: N outputs, C channels, I images, h side of a window in cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .dense_windows import ConvLayer
from .heatmap import smooth, smoothing_radius
from .window_cells import LevelMaps, OutputCells, WindowCells, Windows

__all__ = ["cell_heat_maps"]


def cell_heat_maps(
    layers: Sequence[ConvLayer],
    outputs: Tensor,
    masks: Sequence[LevelMaps],
    features: LevelMaps,
    cells: OutputCells,
    sigma: float = 0.0,
) -> Windows:
    """
    ``ReLU(sum_c Phi(dY[i] / dA)[c] * A[c])`` for outputs Y[i] of a predictor that reads a tower of
    convolutions, on windows, differentiable with respect to every tensor.

    Args:
        layers: of the tower, in forward order.
        outputs: (N, C, k, k), weight of the predictor for each of the outputs.
        masks: for each layer, the derivative of the nonlinearity after it at every cell,
            (I, Cout, H, W) of each level, bool (was the ReLU active?) or float.
        features: A, (I, C, H, W) of each level.
        cells: where the outputs are read, N of them.
        sigma: standard deviation in cells of the Gaussian Phi, 0 for none. It widens the windows.

    Returns:
        Windows of values (N, 1, h, h).
    """
    sizes = [(level.shape[-2], level.shape[-1]) for level in features]
    margin = smoothing_radius(sigma)
    kernels = [layer.weight for layer in layers]
    widest = sum(kernel.shape[-1] // 2 for kernel in (*kernels, outputs)) + margin
    windows = WindowCells.around(sizes, cells, widest)
    gradient, radius = outputs, outputs.shape[-1] // 2
    for (kernel, scale), mask in zip(reversed(layers), reversed(masks), strict=True):
        # Outside the level there is only padding: nothing may flow through it.
        derivative = windows.read(WindowCells.table(mask), radius).permute(2, 3, 0, 1)
        derivative = derivative.to(gradient.dtype)
        if scale is not None:
            derivative = derivative * scale[cells.level, cells.image][:, :, None, None]
        gradient = F.conv_transpose2d(gradient * derivative, kernel)
        radius += kernel.shape[-1] // 2
    gradient = gradient * windows.inside(radius).permute(2, 3, 0, 1)
    gradient = smooth(F.pad(gradient, (margin,) * 4), sigma)
    feature = windows.read(WindowCells.table(features), widest).permute(2, 3, 0, 1)
    values = (gradient * feature).sum(dim=1, keepdim=True).relu()
    return Windows(values, cells.row - widest, cells.column - widest)

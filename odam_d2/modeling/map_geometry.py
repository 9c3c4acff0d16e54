"""Whether the output of a layer is a feature map, and how it lies on the images."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["map_geometry"]


def map_geometry(
    output: Tensor, size: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int, int], float] | None:
    """
    How a tensor shows images: (I, C, h, w) as of convolutions, (I, h, w, C) as of ViT blocks, or
    (I, h w, C) as of Swin blocks.

    Args:
        output: of one layer.
        size: (height, width) of the images in pixels.

    Returns:
        The permutation that brings it to (I, C, h, w) or (I, C, h w), the grid (h, w), and the
        stride in pixels. Strides are powers of two rather than other numbers. None where no
        reading fits, or more than one.
    """
    found: list[tuple[tuple[int, ...], tuple[int, int], float]] = []
    if output.dim() == 4:
        for order in ((0, 1, 2, 3), (0, 3, 1, 2)):
            grid = (output.shape[order[2]], output.shape[order[3]])
            stride = _stride(grid, size)
            if stride is not None:
                found.append((order, grid, stride))
    elif output.dim() == 3:
        side = max(1, round(math.sqrt(size[0] * size[1] / output.shape[1])))
        grid = (size[0] // side, size[1] // side)
        # Other sequences, such as queries, hardly ever divide an image evenly.
        even = size == (grid[0] * side, grid[1] * side)
        if even and grid[0] * grid[1] == output.shape[1]:
            found.append(((0, 2, 1), grid, float(side)))
    # (32, 20, 12) of 160 x 96 pixels could be 32 x 20 cells of stride 5, and is not.
    usual = [reading for reading in found if math.log2(reading[2]).is_integer()]
    return found[0] if len(found) == 1 else usual[0] if len(usual) == 1 else None


def _stride(grid: tuple[int, int], size: tuple[int, int]) -> float | None:
    """
    The one stride by which ``ceil(size / stride)`` is the grid on both axes, if there is any; of
    several, a power of two.
    """
    low = max(pixels / cells for pixels, cells in zip(size, grid, strict=True))
    high = min(
        pixels / (cells - 1) if cells > 1 else math.inf
        for pixels, cells in zip(size, grid, strict=True)
    )
    if not 1 <= low < high:
        return None
    power = 2.0 ** math.ceil(math.log2(low))
    return power if power < high else float(low)

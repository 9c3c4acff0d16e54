"""
Windows of cells on a pyramid of feature maps, read for many instances at once.

Nothing here asks the device for a value, and no operation is repeated for each instance. Sizes of
levels are copied to the device, unless they are there.

Shape shorthand: N instances, T targets, I images, C channels, h side of a window in cells, odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FeatureWindows", "LevelMaps", "OutputCells", "WindowCells", "Windows"]

LevelMaps = Sequence[Tensor]
"""One (I, C, H, W) map for each pyramid level."""


class OutputCells(NamedTuple):
    """
    Where the outputs are read.

    Attributes:
        level, image, row, column: (N,) int64 each, row and column in cells of the level.
        extents: (N, 3) int64, see :meth:`extents_of`, where they are on the device already.
    """

    level: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    extents: Tensor | None = None

    def select(self, index: Tensor | slice) -> OutputCells:
        level, image, row, column = (field[index] for field in self[:4])
        extents = None if self.extents is None else self.extents[index]
        return OutputCells(level, image, row, column, extents)

    @staticmethod
    def extents_of(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """For each level, of (height, width) cells: these, and the cells of all levels before."""
        cells = [height * width for height, width in sizes]
        return [(*size, sum(cells[:number])) for number, size in enumerate(sizes)]


class Windows(NamedTuple):
    """
    Values on windows of cells, zero outside the feature map.

    Attributes:
        values: (N, T, h, h).
        row, column: (N,) first cell of each window; negative where it sticks out.
    """

    values: Tensor
    row: Tensor
    column: Tensor


class WindowCells(NamedTuple):
    """
    The cells of N windows, as places in a table of all levels, see :meth:`table`.

    Attributes:
        level, image: (N,) int64.
        place: (N, h, h) int64, the table's last cell for those outside the level.
        outside: that one.
    """

    level: Tensor
    image: Tensor
    place: Tensor
    outside: int

    @classmethod
    def around(
        cls, sizes: Sequence[tuple[int, int]], cells: OutputCells, radius: int
    ) -> WindowCells:
        """
        Args:
            sizes: (height, width) of each level.
            cells: the centres.
            radius: h = 2 radius + 1.
        """
        extents = cells.extents
        if extents is None:
            of_levels = OutputCells.extents_of(sizes)
            extents = torch.tensor(of_levels, device=cells.level.device)[cells.level]
        height, width, first = extents[:, :, None, None].unbind(dim=1)
        offsets = torch.arange(-radius, radius + 1, device=cells.row.device)
        row = cells.row[:, None, None] + offsets[:, None]
        column = cells.column[:, None, None] + offsets
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        outside = sum(rows * columns for rows, columns in sizes)
        place = (first + row * width + column).masked_fill_(~inside, outside)
        return cls(cells.level, cells.image, place, outside)

    @staticmethod
    def table(maps: LevelMaps) -> Tensor:
        """(I, cells + 1, C): all cells of all levels, and zero."""
        flat = [level.flatten(2) for level in maps]
        zero = flat[0].new_zeros((*flat[0].shape[:2], 1))
        return torch.cat([*flat, zero], dim=2).transpose(1, 2)

    def read(self, table: Tensor, radius: int) -> Tensor:
        """Values (r, r, N, C) of a table on the inner windows of a radius, r = 2 radius + 1."""
        # Cells of a window are neighbours in the table: reading window by window is quick.
        return table[self.image.view(-1, 1, 1), self._inner(radius)].permute(1, 2, 0, 3)

    def inside(self, radius: int) -> Tensor:
        """Which cells of the inner windows lie on their level, (r, r, N, 1) bool."""
        return (self._inner(radius) != self.outside).permute(1, 2, 0)[..., None]

    def _inner(self, radius: int) -> Tensor:
        cut, side = self.place.shape[1] // 2 - radius, 2 * radius + 1
        return self.place.narrow(1, cut, side).narrow(2, cut, side) if cut else self.place

    def select(self, index: slice) -> WindowCells:
        level, image, place = self.level[index], self.image[index], self.place[index]
        return WindowCells(level, image, place, self.outside)


class FeatureWindows(NamedTuple):
    """
    Windows of features, which several towers of a head may share.

    Attributes:
        cells: of the windows.
        table: of the features.
    """

    cells: WindowCells
    table: Tensor

    @classmethod
    def around(cls, features: LevelMaps, cells: OutputCells, radius: int) -> FeatureWindows:
        """As :meth:`WindowCells.around`."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in features]
        return cls(WindowCells.around(sizes, cells, radius), WindowCells.table(features))

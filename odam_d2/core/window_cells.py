"""
Windows of cells on a pyramid of feature maps, read for many instances at once.

Nothing here asks the device for a value, and no operation is repeated for each instance.

Shape shorthand: N instances, T targets, I images, C channels, h side of a window in cells, odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LevelMaps", "OutputCells", "WindowCells", "Windows"]

LevelMaps = Sequence[Tensor]
"""One (I, C, H, W) map for each pyramid level."""


class OutputCells(NamedTuple):
    """Where the outputs are read: (N,) int64 each, row and column in cells of the level."""

    level: Tensor
    image: Tensor
    row: Tensor
    column: Tensor

    def select(self, index: Tensor) -> OutputCells:
        return OutputCells(*(field[index] for field in self))


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
        place: (N, h, h) int64, the table's last column for cells outside the level.
        outside: that column.
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
        of_levels, start = [], 0
        for rows, columns in sizes:
            # One by one, since a tensor of many numbers would wait for the device.
            of_levels += [cells.level.new_full((), x) for x in (rows, columns, start)]
            start += rows * columns
        of_cells = torch.stack(of_levels).view(-1, 3)[cells.level]
        height, width, first = of_cells[:, :, None, None].unbind(dim=1)
        offsets = torch.arange(-radius, radius + 1, device=cells.row.device)
        row = cells.row[:, None, None] + offsets[:, None]
        column = cells.column[:, None, None] + offsets
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = torch.where(inside, first + row * width + column, start)
        return cls(cells.level, cells.image, place, start)

    @staticmethod
    def table(maps: LevelMaps) -> Tensor:
        """(I, C, cells + 1): all cells of all levels, and zero."""
        flat = [level.flatten(2) for level in maps]
        return torch.cat([*flat, torch.zeros_like(flat[0][:, :, :1])], dim=2)

    def read(self, table: Tensor, radius: int) -> Tensor:
        """Values (r, r, N, C) of a table on the inner windows of a radius, r = 2 radius + 1."""
        # Cells of a window are neighbours in the table: reading window by window is quick.
        values = table.transpose(1, 2)[self.image[:, None, None], self._inner(radius)]
        return values.permute(1, 2, 0, 3)

    def inside(self, radius: int) -> Tensor:
        """Which cells of the inner windows lie on their level, (r, r, N, 1) bool."""
        return (self._inner(radius) != self.outside).permute(1, 2, 0)[..., None]

    def _inner(self, radius: int) -> Tensor:
        cut = self.place.shape[1] // 2 - radius
        end = self.place.shape[1] - cut
        return self.place[:, cut:end, cut:end]

    def select(self, index: slice) -> WindowCells:
        level, image, place = self.level[index], self.image[index], self.place[index]
        return WindowCells(level, image, place, self.outside)

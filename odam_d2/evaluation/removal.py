"""Removing a part of a picture: what shape, where, and what takes its place."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from odam_d2.core.perturbation import filling

__all__ = ["REMOVALS", "Patch", "Removal"]

REMOVALS = ("inpaint", "blur", "mean", "other")
"""
What takes the place of removed pixels: what is around them (Telea's inpainting, radius 3 pixels),
the blurred image, its mean colour (:func:`odam_d2.core.perturbation.filling`), or another image.
"""

_DILATION = 2  # pixels around an annotated part, in which its edge still shows
_RADIUS = 3  # of inpainting
_MARGIN = 16  # pixels around what is inpainted that are looked at


class Patch(NamedTuple):
    """
    A set of pixels that can be put anywhere.

    Attributes:
        rows, columns: of its n pixels, relative to its centre.
        centre: (row, column) where it comes from.
    """

    rows: np.ndarray
    columns: np.ndarray
    centre: tuple[int, int]

    @classmethod
    def of_part(cls, mask: np.ndarray, size: tuple[int, int]) -> Patch | None:
        """
        An annotated part (H, W), dilated by 2 pixels at the size (height, width) of the network's
        input; None where there is nothing.
        """
        resized = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        side = 2 * _DILATION + 1
        rows, columns = cv2.dilate(resized, np.ones((side, side), np.uint8)).nonzero()
        if not len(rows) or not resized.any():
            return None
        row, column = round(float(rows.mean())), round(float(columns.mean()))
        return cls(rows - row, columns - column, (row, column))

    @classmethod
    def of_box(cls, box: Tensor, share: float) -> Patch:
        """A rectangle of a share of a box's width and height, XYXY in pixels."""
        x1, y1, x2, y2 = box.tolist()
        height, width = (max(1, round(share * side)) for side in (y2 - y1, x2 - x1))
        rows, columns = np.indices((height, width)).reshape(2, -1)
        centre = (int((y1 + y2) / 2), int((x1 + x2) / 2))
        return cls(rows - height // 2, columns - width // 2, centre)

    @property
    def area(self) -> int:
        """Pixels."""
        return len(self.rows)

    def at(self, place: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """(H, W) of bool: the patch centred on a (row, column), cut off at the border."""
        rows, columns = self.rows + place[0], self.columns + place[1]
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        mask = np.zeros(size, bool)
        mask[rows[inside], columns[inside]] = True
        return mask


class Removal:
    """
    Removes pixels from one image.

    Args:
        image: (C, H, W), in [0, 255].
        other: another image of that size, for ``"other"``; None where it is not used.
    """

    def __init__(self, image: Tensor, other: Tensor | None = None):
        self.image = image if image.is_floating_point() else image.float()
        self.size = (image.shape[-2], image.shape[-1])
        self._other = other
        self._fillings: dict[str, Tensor] = {}

    def __call__(self, mask: np.ndarray, kind: str) -> Tensor:
        """
        The image (C, H, W) with other pixels where a mask (H, W) is true.

        Args:
            kind: one of :data:`REMOVALS`.
        """
        if not mask.any():
            return self.image
        where = torch.as_tensor(mask, device=self.image.device)
        filled = self._inpainted(mask) if kind == "inpaint" else self._filling(kind)
        return torch.where(where, filled, self.image)

    def _filling(self, kind: str) -> Tensor:
        if kind not in self._fillings:
            if kind == "other":
                assert self._other is not None
                found = self._other.to(self.image)
            else:
                found = filling(self.image, kind, torch.Generator())
            self._fillings[kind] = found
        return self._fillings[kind]

    @cached_property
    def _picture(self) -> np.ndarray:
        """(H, W, C) uint8."""
        rounded = self.image.round().clamp(0, 255).byte()
        return np.ascontiguousarray(rounded.permute(1, 2, 0).cpu().numpy())

    def _inpainted(self, mask: np.ndarray) -> Tensor:
        crop = tuple(
            slice(max(0, int(index.min()) - _MARGIN), int(index.max()) + 1 + _MARGIN)
            for index in mask.nonzero()
        )
        holes = mask[crop].astype(np.uint8)
        found = cv2.inpaint(self._picture[crop], holes, _RADIUS, cv2.INPAINT_TELEA)
        filled = self.image.clone()
        filled[:, crop[0], crop[1]] = torch.as_tensor(found).permute(2, 0, 1).to(filled)
        return filled

"""
Random soft masks whose grain follows the boxes of an image, what they hide, and what depends on
them: RISE (Petsiuk et al., BMVC 2018) where the value of a masked image is read in place.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import box_iou

__all__ = ["STRIDE", "Region", "blurred_regions", "lengths_of", "part_masks", "regions", "slopes"]

STRIDE = 4
"""Pixels per cell of maps made of masks: those vary no faster. Regions are made of whole cells."""

_BEYOND = 0.25
"""The region of a box reaches so far beyond each side, in shares of its length there."""

_SAME = 0.5
"""A box whose IoU with one before it is no less shares that one's region."""

_SHORTEST = 2.0 * STRIDE
"""Pixels: a box counts as no shorter, since no map would show what is finer."""

_REACH = 4.0
"""Standard deviations after which a Gaussian is cut."""


class Region(NamedTuple):
    """
    A part of an image in which lengths are shares of one box.

    Attributes:
        rows, columns: of pixels.
        length: geometric mean of the box's width and height, in pixels.
    """

    rows: slice
    columns: slice
    length: float


def regions(boxes: Tensor, size: tuple[int, int]) -> list[Region]:
    """
    Of an image and its boxes, each on top of those before it: all of the image, whose length is the
    median of the boxes', and around each box, the largest first, so that small ones stay seen.

    Args:
        boxes: (N, 4), XYXY in pixels. There are no regions without a box.
        size: (height, width) of the image.
    """
    if not len(boxes):
        return []
    boxes, lengths = _clipped(boxes, size), lengths_of(boxes, size)
    kept: list[int] = []
    iou = box_iou(boxes, boxes)
    for number in range(len(boxes)):
        if not (iou[number, kept] >= _SAME).any():
            kept.append(number)
    beyond = _BEYOND * (boxes[:, 2:] - boxes[:, :2])
    grown = torch.cat([boxes[:, :2] - beyond, boxes[:, 2:] + beyond], dim=1)
    found = [Region(slice(0, size[0]), slice(0, size[1]), float(lengths.median()))]
    for number in sorted(kept, key=lambda number: -float(lengths[number])):
        left, top, right, bottom = (grown[number] / STRIDE).tolist()
        rows, columns = _cells(top, bottom, size[0]), _cells(left, right, size[1])
        if rows.start < rows.stop and columns.start < columns.stop:  # not outside of the image
            found.append(Region(rows, columns, float(lengths[number])))
    return found


def _cells(start: float, stop: float, count: int) -> slice:
    """The pixels, of ``count``, of all cells that are touched from ``start`` to ``stop``."""
    return slice(max(0, int(start)) * STRIDE, min(count, (int(stop) + 1) * STRIDE))


def lengths_of(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Geometric mean of the width and height of boxes (N, 4) inside an image of (height, width), in
    pixels: (N,) on the CPU.
    """
    boxes = _clipped(boxes, size)
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=_SHORTEST).prod(dim=1).sqrt()


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    limits = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    return boxes.detach().cpu().double().clamp(min=0).minimum(limits)


def part_masks(
    size: tuple[int, int],
    of: Sequence[Region],
    cell: float,
    parts: int,
    generator: torch.Generator,
    stride: int = 1,
) -> Tensor:
    """
    Masks that hide each place once: the cells of a random grid in each region, shifted at random,
    are dealt out to the masks, and a mask is 0 in the middle of its own cells, 1 in the middle of
    the others, and linear between them.

    Args:
        size: (height, width) of the image.
        of: what :func:`regions` found in it.
        cell: length of the grid's cells, as a share of the region's.
        parts: how many masks.
        generator: on the CPU.
        stride: 1 for masks of pixels; :data:`STRIDE` for their means over the cells of maps, those
            at the border over what is inside.

    Returns:
        (parts, height, width) in [0, 1], of sum ``parts - 1`` everywhere.
    """
    masks = torch.ones(parts, *(-(-side // stride) for side in size))
    for rows, columns, length in of:
        pixels = max(1.0, cell * length)
        down, across = (
            _interpolation(part.stop - part.start, pixels, stride, generator)
            for part in (rows, columns)
        )
        grid = torch.randint(parts, (down.shape[1], across.shape[1]), generator=generator)
        hidden = (grid == torch.arange(parts)[:, None, None]).to(down.dtype)
        inside = [slice(part.start // stride, -(-part.stop // stride)) for part in (rows, columns)]
        masks[:, inside[0], inside[1]] = 1 - down @ hidden @ across.t()
    return masks


def _interpolation(count: int, length: float, stride: int, generator: torch.Generator) -> Tensor:
    """Linear weights (pixels, cells) of a grid whose cells have a length, at a random shift."""
    shift = torch.rand(1, generator=generator, dtype=torch.float64)
    at = (torch.arange(count) + 0.5) / length + shift
    cells = torch.arange(int(count / length) + 3)
    weights = (1 - (at[:, None] - cells).abs()).clamp(min=0)
    means = [of_cell.mean(dim=0) for of_cell in weights.split(stride)] if stride > 1 else []
    return (torch.stack(means) if means else weights).float()


def blurred_regions(image: Tensor, of: Sequence[Region], sigma: float) -> Tensor:
    """
    What is seen of an image (C, h, w) where it is hidden: each region is smoothed by a Gaussian
    of ``sigma`` times its length.
    """
    result = image.clone()
    for rows, columns, length in of:
        (down, above), (across, beside) = (
            _gaussian(side, count, sigma * length)
            for side, count in zip((rows, columns), image.shape[1:], strict=True)
        )
        around = image[:, above, beside]
        result[:, rows, columns] = down.to(image) @ around @ across.t().to(image)
    return result


def _gaussian(of: slice, count: int, sigma: float) -> tuple[Tensor, slice]:
    """
    Weights (pixels of a slice, pixels around it), of sum one inside the image of ``count`` pixels,
    and which those around it are.
    """
    margin = int(_REACH * sigma) + 1
    around = slice(max(0, of.start - margin), min(count, of.stop + margin))
    distance = torch.arange(of.start, of.stop)[:, None] - torch.arange(around.start, around.stop)
    return (-0.5 * (distance / sigma).square()).softmax(dim=1), around


def slopes(values: Tensor, masks: Iterable[Tensor]) -> Tensor:
    """
    ``cov(value, mask) / var(mask)`` at each place: how much more the value is where a place is seen
    than where it is hidden.

    Args:
        values: (K, M), of each masked image.
        masks: (k, h, w), the K masks, some at a time.

    Returns:
        (M, h, w), zero where masks do not vary.
    """
    centred = values - values.mean(dim=0)
    start, shape, sums = 0, torch.Size(), [values.new_zeros(()) for _ in range(3)]
    for some in masks:
        shape, flat = some.shape[1:], some.to(values).flatten(1)
        of_some = centred[start : start + len(flat)]
        parts = (of_some.t() @ flat, flat.sum(dim=0), flat.square().sum(dim=0))
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
        start += len(flat)
    products, total, squares = (x / len(values) for x in sums)
    variance = squares - total.square()
    varies = variance > torch.finfo(values.dtype).eps
    result = torch.where(varies, products / torch.where(varies, variance, 1.0), 0.0)
    return result.view(len(result), *shape)

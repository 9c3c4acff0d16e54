"""What is wrong with one annotation of a data set; None where nothing is."""

import math
import operator
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, PolygonMasks

from odam_d2.errors import one_line

__all__ = ["box_fault", "category_fault", "keypoints_fault", "segmentation_fault", "writing_fault"]

FARTHEST = 100_000
"""
Pixels from the corner of a picture beyond which a coordinate is taken for a mistake: no file format
of photos is so large, and what is drawn from there fills the memory.
"""

_VALUES = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}  # of a box


def category_fault(category: Any, classes: Sequence[str] | None) -> str | None:
    """
    Args:
        category: contiguous id, from 0.
        classes: their names, None where they are not known.
    """
    try:
        number = int(category) if category == int(category) else operator.index(category)
    except (TypeError, ValueError, OverflowError):
        return f"category_id must be a whole number, not {short(category)}"
    if number < 0 or (classes is not None and number >= len(classes)):
        count = "" if classes is None else f", and there are {len(classes)} classes"
        return f"category_id is {number}{count}; ids are counted from 0"
    return None


def box_fault(box: Any, mode: object) -> str | None:
    """
    Args:
        box: its 4 numbers (5 with an angle) in pixels; zero width or height is right.
        mode: of Detectron2's ``BoxMode``, not relative.
    """
    count = _VALUES.get(mode) if isinstance(mode, (int, np.integer)) else None
    if count is None:
        return f"bbox_mode must be BoxMode.XYXY_ABS, XYWH_ABS or XYWHA_ABS, not {short(mode)}"
    if mode != BoxMode.XYXY_ABS and not isinstance(box, (list, tuple)) and hasattr(box, "__len__"):
        # Detectron2 converts arrays of many boxes, and of single ones lists and tuples only.
        return f"bbox must be a list or tuple in that bbox_mode, not {type(box).__name__}"
    try:
        values = [float(value) for value in box if math.isfinite(value)]
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != count or len(box) != count:
        return f"bbox must be {count} finite numbers, not {short(box)}"
    width, height = values[2], values[3]
    if count == 4 and mode == BoxMode.XYXY_ABS:
        width, height = width - values[0], height - values[1]
    if width < 0 or height < 0:
        return f"bbox {short(box)} has a negative width or height; is bbox_mode right?"
    if max(map(abs, values[:4])) > FARTHEST:
        return f"bbox {short(box)} lies more than {FARTHEST} pixels out"
    return None


def segmentation_fault(segmentation: object, size: tuple) -> str | None:
    """
    Args:
        segmentation: list of polygons, or run lengths (RLE) as a dict.
        size: (height, width) of the image, None for what is not known.
    """
    if isinstance(segmentation, Mapping):
        return _rle_fault(segmentation, size)
    if not isinstance(segmentation, list):
        return f"segmentation must be polygons or RLE, not {type(segmentation).__name__}"
    return next(filter(None, map(_polygon_fault, segmentation)), None)


def writing_fault(segmentation: object) -> str | None:
    """What Detectron2 cannot write in COCO's format, which takes any numbers."""
    if isinstance(segmentation, Mapping):
        return None
    try:
        PolygonMasks([segmentation])
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        return f"segmentation {short(segmentation)} is not usable: {one_line(error)}"
    return None


def _polygon_fault(polygon: object) -> str | None:
    try:
        if isinstance(polygon, list) and not isinstance(polygon[0], (list, tuple)):
            count, total, least, most = len(polygon), sum(polygon), min(polygon), max(polygon)
        else:
            values = np.asarray(polygon)
            if values.dtype.kind not in "iuf":
                raise TypeError
            count, total, least, most = values.size, values.sum(), values.min(), values.max()
        finite = math.isfinite(total)  # neither nan nor inf is lost in a sum
    except (TypeError, ValueError, IndexError, OverflowError):
        return f"segmentation has a polygon that is not a list of numbers, {short(polygon)}"
    if count < 6 or count % 2:
        return f"segmentation has a polygon of {count} numbers, where pairs are needed, at least 3"
    if not finite:
        return "segmentation has a polygon with numbers that are not finite"
    if max(-least, most) > FARTHEST:
        return f"segmentation has a polygon that lies more than {FARTHEST} pixels out"
    return None


def _rle_fault(rle: Mapping, size: tuple) -> str | None:
    if not {"size", "counts"} <= rle.keys():
        return "segmentation as RLE needs size and counts"
    try:
        height, width = map(operator.index, rle["size"])
    except (TypeError, ValueError):
        return f"segmentation: size of RLE must be height and width, not {short(rle['size'])}"
    if any(known is not None and known != of_rle
           for known, of_rle in zip(size, (height, width), strict=True)):  # fmt: skip
        return (
            f"segmentation: RLE is of {height} x {width} pixels (height x width), the image of "
            f"{size[0]} x {size[1]}"
        )
    counts = rle["counts"]
    try:
        if isinstance(counts, (str, bytes)):
            counts = _uncompressed(counts)
        fits = min(map(operator.index, counts)) >= 0 and sum(counts) == height * width
    except (TypeError, ValueError):
        fits = False
    return None if fits else f"segmentation: counts of RLE do not add up to {height} x {width}"


def _uncompressed(counts: str | bytes) -> list[int]:
    """
    Run lengths of COCO's compressed form, which pycocotools decodes to whatever is in the memory
    where they are too few: digits of 5 bits from the lowest on, in characters from 48 on, 32 where
    more follow, of a signed number; from the fourth on, the difference to the last but one.

    Raises:
        ValueError: it is something else.
    """
    content = counts.encode("ascii") if isinstance(counts, str) else counts
    digits = np.frombuffer(content, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((digits & 32) == 0)
    if not len(last) or last[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("not compressed run lengths")
    first = np.concatenate([[0], last[:-1] + 1])
    places = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    if places.max() > 50:
        raise ValueError("a run length is too long")
    values = np.add.reduceat((digits & 31) << places, first)
    values -= np.where(digits[last] & 16, np.int64(1) << (places[last] + 5), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values.tolist()


def keypoints_fault(keypoints: object, points: int | None) -> str | None:
    """
    Args:
        keypoints: x, y in pixels and visibility of each, one after the other.
        points: how many there are, None where that is not known.
    """
    values = np.asarray(keypoints)
    if values.dtype.kind not in "iuf" or values.size % 3 or not np.isfinite(values).all():
        return f"keypoints must be x, y, visibility of each point, not {short(keypoints)}"
    if points is not None and values.size != 3 * points:
        return f"keypoints are {values.size // 3} points, and keypoint_names are {points}"
    return None

"""
One heat map over its picture.

Images are (H, W, 3) uint8 RGB arrays and are never changed in place. Boxes are (x1, y1, x2, y2) in
pixels of the image that they are drawn on, continuous coordinates: pixel (y, x) covers
[x, x + 1) x [y, y + 1).
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from odam_d2.core.targets import SIDES
from odam_d2.structures.heat_colors import as_array, blend_heat, has_evidence, no_evidence

from .text import Color, draw_label

__all__ = [
    "ACCENT",
    "SATURATED",
    "describe_target",
    "draw_box",
    "draw_explanation",
    "explained_side",
]

# The explained side: a colour that the colour map does not have.
ACCENT: Color = (0, 229, 255)
SATURATED = "score saturated"
"""What pictures say of a map that is lost, see :class:`odam_d2.OdamMaps`."""

_LINE: Color = (255, 255, 255)
_HALO: Color = (17, 20, 26)


def explained_side(target: str) -> str | None:
    """The side of the box that a target explains, or None (class scores, ``combined``)."""
    return target if target in SIDES else None


def describe_target(target: str, class_name: str, score: float, saturated: bool = False) -> str:
    """
    One line for people that says what a map explains.

    Args:
        target: a target string of :func:`odam_d2.explain`.
        class_name: name of the predicted class.
        score: of the detection, in [0, 1].
        saturated: whether the map is lost, see :class:`odam_d2.OdamMaps`.
    """
    found = f"{class_name} {score:.2f}" + (f" · {SATURATED}" if saturated else "")
    if target in SIDES:
        return f"{target} side · {found}"
    if target == "class":
        return f"class: {found}"
    if target.startswith("class:"):
        return f"class: {target.removeprefix('class:')}? · {found}"
    return f"{target} · {found}"


def line_width(height: int, width: int) -> int:
    """Width in pixels of a box's line on an image of this height and width."""
    return max(1, round(math.sqrt(height * width) / 300))


def draw_box(
    image: np.ndarray,
    box: Sequence[float],
    *,
    side: str | None = None,
    color: Color = _LINE,
    width: int | None = None,
) -> np.ndarray:
    """
    Draw a box, and one of its sides thick in the accent colour.

    Lines lie just outside the box, so that they hide no evidence in it, and are moved inwards
    where the image ends. A box that reaches beyond the image is drawn along the image's border.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: (x1, y1, x2, y2) in pixels of ``image``.
        side: "left", "top", "right" or "bottom" to mark.
        color: RGB of the other sides.
        width: of the line in pixels; by default it follows the size of the image.

    Returns:
        A new (H, W, 3) uint8 image.
    """
    out = image.copy()
    rows, columns = image.shape[:2]
    width = width or line_width(rows, columns)
    x1, x2 = _whole_pixels(box[0], box[2], columns)
    y1, y2 = _whole_pixels(box[1], box[3], rows)
    thick = max(width + 2, 3 * width)
    halo = max(1, width // 2)
    for name in SIDES:
        _fill(out, _strip(name, (x1, y1, x2, y2), width, (rows, columns)), _HALO, halo)
    for name in SIDES:
        _fill(out, _strip(name, (x1, y1, x2, y2), width, (rows, columns)), color)
    if side is not None:
        strip = _strip(side, (x1, y1, x2, y2), thick, (rows, columns))
        _fill(out, strip, _HALO, halo)
        _fill(out, strip, ACCENT)
    return out


def _whole_pixels(start: float, end: float, limit: int) -> tuple[int, int]:
    """The pixels [first, last) of an axis that [start, end) covers: one at least, all inside."""
    first = min(max(math.floor(start), 0), limit - 1)
    return first, min(max(math.ceil(end), first + 1), limit)


def _strip(
    side: str, box: tuple[int, int, int, int], width: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The pixels [x1, x2) x [y1, y2) of one side's line, ``width`` wide, inside the image."""
    rows, columns = size
    x1, x2 = max(box[0] - width, 0), min(box[2] + width, columns)
    y1, y2 = max(box[1] - width, 0), min(box[3] + width, rows)
    return {
        "left": (x1, y1, min(x1 + width, columns), y2),
        "top": (x1, y1, x2, min(y1 + width, rows)),
        "right": (max(x2 - width, 0), y1, x2, y2),
        "bottom": (x1, max(y2 - width, 0), x2, y2),
    }[side]


def _fill(image: np.ndarray, strip: tuple[int, int, int, int], color: Color, grow: int = 0) -> None:
    x1, y1, x2, y2 = strip
    image[max(y1 - grow, 0) : y2 + grow, max(x1 - grow, 0) : x2 + grow] = color


def draw_explanation(
    image: np.ndarray,
    heat: np.ndarray | Tensor,
    box: Sequence[float],
    target: str,
    class_name: str,
    score: float,
    saturated: bool = False,
    *,
    signed: bool = False,
) -> np.ndarray:
    """
    The picture of one (detection, target): heat map, box, explained side, label.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W), as :meth:`odam_d2.structures.odam_maps.OdamMaps.dense` renders it.
        box: (x1, y1, x2, y2) in pixels of ``image``.
        target: what ``heat`` explains, a target string of :func:`odam_d2.explain`.
        class_name, score: of the detection.
        saturated: see :func:`describe_target`.
        signed: see :func:`blend_heat`.

    Returns:
        A new (H, W, 3) uint8 image.
    """
    heat = as_array(heat)
    out = draw_box(blend_heat(image, heat, signed=signed), box, side=explained_side(target))
    text = describe_target(target, class_name, score, saturated)
    if not (saturated or has_evidence(heat, signed)):
        text += f" · {no_evidence(signed)}"
    gap = 3 * line_width(*image.shape[:2]) + 3
    return draw_label(out, text, box, color=ACCENT, gap=gap, avoid=abs(heat))

"""
One heat map over its picture.

Images are (H, W, 3) uint8 RGB arrays and are never changed in place. Boxes are (x1, y1, x2, y2) in
pixels of the image that they are drawn on, continuous coordinates: pixel (y, x) covers
[x, x + 1) x [y, y + 1).
"""

import functools
import math
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from odam_d2.core.targets import SIDES

from .text import Color, draw_label

__all__ = [
    "ACCENT",
    "SATURATED",
    "blend_heat",
    "colorize",
    "describe_target",
    "draw_box",
    "draw_explanation",
    "explained_side",
    "has_evidence",
    "no_evidence",
]

# The explained side: a colour that the colour map does not have.
ACCENT: Color = (0, 229, 255)
SATURATED = "score saturated"
"""What pictures say of a map that is lost, see :class:`odam_d2.OdamMaps`."""

_LINE: Color = (255, 255, 255)
_HALO: Color = (17, 20, 26)

# Lightness of inferno rises with the value, also for colour-blind eyes and in greyscale print.
# Its darkest part is left out: on a photograph it would read as shadow.
_COLORMAP, _COLORMAP_START = "inferno", 0.25
# Of signed maps, from against to for: blue and orange are told apart by all colour-blind eyes, and
# both become lighter with their strength.
_AGAINST: tuple[Color, ...] = ((170, 205, 255), (60, 120, 255), (30, 60, 190))
_FOR: tuple[Color, ...] = ((170, 60, 0), (255, 130, 0), (255, 225, 110))
# At a map's maximum the picture still shines through.
_MAX_ALPHA = 0.8
# Under 1: weak evidence is lifted a little, so that it does not drown in the picture.
_ALPHA_POWER = 0.7
# The picture gives up this much of its colour, so that colour means evidence, and white this much
# of its light, so that yellow stands out on it.
_GREY, _DIM = 0.65, 0.2


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


@functools.cache
def _lookup_table(signed: bool) -> np.ndarray:
    """(256, 3) float32 RGB in 0-255."""
    if signed:
        ends = np.array([*_AGAINST, *_FOR]) / 255
        shades = LinearSegmentedColormap.from_list("evidence", ends)(np.linspace(0, 1, 256))
    else:
        shades = matplotlib.colormaps[_COLORMAP](np.linspace(_COLORMAP_START, 1, 256))
    return (255 * shades[:, :3]).astype(np.float32)


def colorize(values: np.ndarray, signed: bool = False) -> np.ndarray:
    """Colours (..., 3), float32 RGB in 0-255, of values in [0, 1], or signed ones in [-1, 1]."""
    shares = (values + 1) / 2 if signed else values
    return _lookup_table(signed)[np.rint(255 * np.clip(shares, 0, 1)).astype(np.intp)]


def blend_heat(
    image: np.ndarray,
    heat: np.ndarray | Tensor,
    peak: float | None = None,
    *,
    signed: bool = False,
) -> np.ndarray:
    """
    Lay a heat map over an image. Opacity follows the value: without evidence the picture stays.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W), not negative unless ``signed``. A map that is zero everywhere leaves the
            (greyed) picture.
        peak: the value that gets the strongest colour; by default the largest size in ``heat``.
        signed: two colours, orange for what is above zero, blue for what is below.

    Returns:
        A new (H, W, 3) uint8 image.

    Raises:
        ValueError: the sizes differ.
    """
    heat = _to_array(heat)
    if heat.shape != image.shape[:2]:
        raise ValueError(f"a heat map of {heat.shape} over an image of {image.shape[:2]} pixels")
    heat = heat if signed else np.maximum(heat, 0)
    peak = abs(heat).max(initial=0) if peak is None else peak
    out = _mute(image)
    rows, columns = (np.flatnonzero(heat.any(axis=axis)) for axis in (1, 0))
    if not (peak > 0 and len(rows)):
        return out
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    value = np.clip(heat[window] / peak, -1, 1).astype(np.float32)
    alpha = _MAX_ALPHA * abs(value[..., None]) ** _ALPHA_POWER
    picture = out[window].astype(np.float32)
    out[window] = np.rint(picture + alpha * (colorize(value, signed) - picture)).astype(np.uint8)
    return out


def _mute(image: np.ndarray) -> np.ndarray:
    """A copy of the image with less colour and softer highlights."""
    mixed = cv2.transform(image, (1 - _GREY) * np.eye(3) + _GREY / 3)
    tone = np.linspace(0, 1, 256)
    return cv2.LUT(mixed, np.rint(255 * tone * (1 - _DIM * tone)).astype(np.uint8))


def _to_array(heat: np.ndarray | Tensor) -> np.ndarray:
    return heat.detach().cpu().float().numpy() if isinstance(heat, Tensor) else np.asarray(heat)


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
    heat = _to_array(heat)
    out = draw_box(blend_heat(image, heat, signed=signed), box, side=explained_side(target))
    text = describe_target(target, class_name, score, saturated)
    if not (saturated or has_evidence(heat, signed)):
        text += f" · {no_evidence(signed)}"
    gap = 3 * line_width(*image.shape[:2]) + 3
    return draw_label(out, text, box, color=ACCENT, gap=gap, avoid=abs(heat))


def has_evidence(heat: np.ndarray, signed: bool) -> bool:
    """Whether a map (H, W) shows anything."""
    return bool(heat.any() if signed else heat.max(initial=0) > 0)


def no_evidence(signed: bool) -> str:
    """What pictures say of a map that is empty."""
    return "no evidence" if signed else "no positive evidence"

"""A row of pictures of one place, with boxes and maps, and words beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from odam_d2.core.targets import SIDES
from odam_d2.structures.heat_colors import blend_heat

from .canvas import resize
from .crops import crop_around
from .overlay import ACCENT
from .text import Color, fit_text, font

__all__ = ["BoxStyle", "Panel", "draw_boxes", "draw_panels"]

_CELL, _GAP, _TEXT, _HEAD = 230, 10, 280, 30  # pixels
_BACK: Color = (17, 20, 26)
_INK: Color = (235, 238, 242)
_SOFT: Color = (150, 158, 170)


@dataclass(frozen=True)
class BoxStyle:
    """
    A box to draw: XYXY in pixels of the image, its colour, whether its line is dashed, and a side
    of it to mark.
    """

    box: Sequence[float]
    color: Color
    dashed: bool = False
    side: str | None = None


@dataclass(frozen=True)
class Panel:
    """
    One picture of a row.

    Attributes:
        title: above it.
        boxes: on it, the first below the others.
        heat: (H, W) over the image; None for the picture itself.
        signed: see :func:`odam_d2.visualization.blend_heat`.
    """

    title: str
    boxes: Sequence[BoxStyle] = ()
    heat: Tensor | None = field(default=None, compare=False)
    signed: bool = False


def draw_panels(
    image: np.ndarray, panels: Sequence[Panel], lines: Sequence[tuple[str, Color | None]]
) -> np.ndarray:
    """
    Draw the panels side by side, all of the window that shows every box and every map's peak.

    Args:
        image: (H, W, 3) uint8 RGB. It is not changed.
        panels: left to right.
        lines: of text to their right, with a colour; the first one is a heading.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    boxes = np.array([style.box for panel in panels for style in panel.boxes]).reshape(-1, 4)
    heats = [None if p.heat is None else p.heat.detach().cpu().float().numpy() for p in panels]
    x1, y1, x2, y2 = crop_around(boxes[0], boxes.reshape(-1, 2), image.shape[:2])
    scale = _CELL / max(x2 - x1, y2 - y1)
    size = (max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale)))
    picture = resize(image[y1:y2, x1:x2], size)
    offset, factor = np.array([x1, y1, x1, y1]), [size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2
    width = _GAP + len(panels) * (_CELL + _GAP) + _TEXT
    sheet = Image.new("RGB", (width, _HEAD + _CELL + _GAP), _BACK)
    draw = ImageDraw.Draw(sheet)
    for column, (panel, heat) in enumerate(zip(panels, heats, strict=True)):
        left = _GAP + column * (_CELL + _GAP)
        face = font(12)
        draw.text((left, _HEAD // 2), fit_text(panel.title, face, _CELL), _SOFT, face, "lm")
        shown = picture
        if heat is not None:
            peak, part = abs(heat).max(), resize(heat[y1:y2, x1:x2], size)
            shown = blend_heat(picture, part, peak, signed=panel.signed)
        styles = [
            BoxStyle((np.array(s.box) - offset) * factor, s.color, s.dashed, s.side)
            for s in panel.boxes
        ]
        sheet.paste(Image.fromarray(draw_boxes(shown, styles)), (left, _HEAD))
    for number, (text, color) in enumerate(lines):
        face = font(15 if number == 0 else 13, bold=number == 0)
        place = (width - _TEXT + 4, _HEAD + 12 + 24 * number)
        draw.text(place, fit_text(text, face, _TEXT - 14), color or _INK, face, "lm")
    return np.array(sheet)


def draw_boxes(picture: np.ndarray, styles: Sequence[BoxStyle], dash: int = 6) -> np.ndarray:
    """Boxes in pixels of the picture (h, w, 3) on a copy of it, in their colours."""
    out = Image.fromarray(picture)
    draw = ImageDraw.Draw(out)
    for style in styles:
        x1, y1, x2, y2 = np.clip(style.box, 1, [out.width - 2, out.height - 2] * 2)
        ends = {"left": ((x1, y1), (x1, y2)), "top": ((x1, y1), (x2, y1)),
                "right": ((x2, y1), (x2, y2)), "bottom": ((x1, y2), (x2, y2))}  # fmt: skip
        for side in SIDES:
            _line(draw, *ends[side], style.color, 2, dash if style.dashed else None)
        if style.side is not None:
            _line(draw, *ends[style.side], ACCENT, 4, dash if style.dashed else None)
    return np.array(out)


def _line(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    color: Color,
    width: int,
    dash: int | None,
) -> None:
    length = max(float(np.hypot(end[0] - start[0], end[1] - start[1])), 1.0)
    step = np.subtract(end, start) / length
    for begin in np.arange(0, length, 2 * dash if dash else length):
        stop = min(begin + (dash or length), length)
        points = [tuple(np.add(start, step * at)) for at in (begin, stop)]
        draw.line(points, fill=color, width=width)

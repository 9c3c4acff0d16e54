"""Text that can be shown, and text on pictures: fonts, labels that stay inside the image."""

import functools
import math
import os
import unicodedata
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_label", "fit_text", "font", "label_size", "printable"]

Color = tuple[int, int, int]

_PLATE: Color = (17, 20, 26)
_INK: Color = (255, 255, 255)
_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, ends of lines, paragraphs


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, at ``size`` pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def label_size(height: int, width: int) -> int:
    """Font size in pixels that reads well on an image of this height and width in pixels."""
    return max(11, round(math.sqrt(height * width) / 40))


def printable(text: str) -> str:
    """
    ``text`` in one line, with a question mark for each line break, control character, and byte that
    is not Unicode: names of files and classes can have them, and not every font can draw them.
    """
    return "".join("?" if unicodedata.category(c) in _NOT_SHOWN else c for c in text)


def fit_text(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """
    Make ``text`` printable, and shorten it with an ellipsis until it is at most ``width`` pixels
    wide; it becomes empty when not even its first letter fits.
    """
    text = printable(text)
    if face.getlength(text) <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        short = text[:end].rstrip() + "…"
        if face.getlength(short) <= width:
            return short
    return ""


def draw_label(
    image: np.ndarray,
    text: str,
    box: Sequence[float],
    *,
    color: Color = _INK,
    size: int | None = None,
    gap: int = 0,
    avoid: np.ndarray | None = None,
) -> np.ndarray:
    """
    Write a label at a box: above it, below it or at its inner border, always inside the image.

    Args:
        image: (H, W, 3) uint8, RGB. It is not changed.
        text: one line. It is shortened where the image is too narrow, and left out where the
            image is too small for a single letter.
        box: (x1, y1, x2, y2) in pixels of ``image``, which may reach beyond it.
        color: RGB of the stripe at the label's left end.
        size: of the font in pixels; by default it follows the size of the image.
        gap: pixels between box and label.
        avoid: (H, W), not negative: a heat map whose high places the label should not cover.

    Returns:
        A new (H, W, 3) uint8 image.
    """
    height, width = image.shape[:2]
    size = size or label_size(height, width)
    face, pad, stripe = font(size), max(2, size // 4), max(2, size // 4)
    text = fit_text(text, face, width - 2 * pad - stripe)
    plate_height = size + 2 * pad
    if not text or plate_height > height:
        return image.copy()
    plate_width = math.ceil(face.getlength(text)) + 2 * pad + stripe
    x, y = _place(box, (plate_height, plate_width), (height, width), gap, avoid)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + plate_width - 1, y + plate_height - 1), fill=_PLATE)
    draw.rectangle((x, y, x + stripe - 1, y + plate_height - 1), fill=color)
    middle = y + plate_height / 2
    draw.text((x + stripe + pad, middle), text, font=face, fill=_INK, anchor="lm")
    return np.array(picture)


def _place(
    box: Sequence[float],
    plate: tuple[int, int],
    size: tuple[int, int],
    gap: int,
    avoid: np.ndarray | None,
) -> tuple[int, int]:
    """
    Top left corner (x, y) of a plate (height, width) at ``box`` in an image (height, width): of
    the places where it fits, the first that covers little of ``avoid``.
    """
    x1, y1, x2, y2 = box
    height, width = plate
    last_x, last_y = size[1] - width, size[0] - height
    columns = [min(max(round(x), 0), last_x) for x in (x1, x2 - width)]
    rows = [round(y) for y in (y1 - gap - height, y2 + gap, y1 + gap, y2 - gap - height)]
    places = [(x, y) for y in rows for x in columns if 0 <= y <= last_y]
    if not places:
        return columns[0], min(max(rows[2], 0), last_y)
    if avoid is None or not avoid.max(initial=0) > 0:
        return places[0]
    covered = [avoid[y : y + height, x : x + width].max() / avoid.max() for x, y in places]
    return min(zip(np.round(covered, 1), range(len(places)), places, strict=True))[2]

"""All detections of an image in one picture, numbered."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .overlay import draw_box
from .text import Color, font, label_size

__all__ = ["detection_color", "draw_detections"]

# Ten colours that differ from one another and are light enough for dark numbers on them.
_COLORS: tuple[Color, ...] = (
    (255, 196, 37), (76, 201, 240), (255, 112, 112), (128, 222, 90), (217, 140, 255),
    (255, 145, 48), (64, 224, 190), (255, 140, 200), (200, 214, 60), (140, 165, 255),
)  # fmt: skip
_INK: Color = (17, 20, 26)


def detection_color(number: int) -> Color:
    """RGB of detection ``number``; the colours repeat after ten."""
    return _COLORS[number % len(_COLORS)]


def draw_detections(
    image: np.ndarray, boxes: Sequence[Sequence[float]], size: int | None = None
) -> np.ndarray:
    """
    Draw every box with its number. Numbers avoid one another where there is room.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: N x (x1, y1, x2, y2) in pixels of ``image``.
        size: of the numbers in pixels; by default it follows the size of the image.

    Returns:
        A new (H, W, 3) uint8 image.
    """
    height, width = image.shape[:2]
    out = image.copy()
    for number, box in reversed(list(enumerate(boxes))):  # the best detection is drawn last
        out = draw_box(out, box, color=detection_color(number))
    size = size or max(10, round(0.8 * label_size(height, width)))
    face = font(size, bold=True)
    picture = Image.fromarray(out)
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[int, int, int, int]] = []
    for number, box in enumerate(boxes):
        text = str(number)
        tag = (round(face.getlength(text)) + size // 2, size + size // 3)
        if tag[0] > width or tag[1] > height:
            continue
        plate = _free_place(box, tag, (height, width), taken)
        taken.append(plate)
        draw.rectangle(
            (plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=detection_color(number)
        )
        centre = ((plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2)
        draw.text(centre, text, font=face, fill=_INK, anchor="mm")
    return np.array(picture)


def _free_place(
    box: Sequence[float],
    tag: tuple[int, int],
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Where on its box a tag (width, height) covers the tags placed before least."""
    x1, y1, x2, y2 = (round(value) for value in box)
    w, h = tag
    left, centre, right = x1, (x1 + x2 - w) // 2, x2 - w
    top, middle, bottom = y1, (y1 + y2 - h) // 2, y2 - h
    corners = [(left, top), (right, top), (left, bottom), (right, bottom)]
    edges = [(centre, top), (left, middle), (right, middle), (centre, bottom)]
    places = []
    for x, y in [*corners, (centre, middle), *edges]:
        x, y = min(max(x, 0), size[1] - w), min(max(y, 0), size[0] - h)
        places.append((x, y, x + w, y + h))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)

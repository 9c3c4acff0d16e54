"""Rasterising shapes with anti-aliasing, shading and outlines, bit for bit the same everywhere.

Shape shorthand: (H, W) canvas pixels. Colours are (red, green, blue) floats in [0, 255]. Pictures
are planar, (3, H, W), while they are drawn: numpy is faster along rows than along triples.
"""

import math
from dataclasses import dataclass

import numpy as np

from .shapes import Shape

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Style:
    """How :func:`paint` fills a shape.

    Attributes:
        colour: the fill, (red, green, blue) in [0, 255].
        outline: width in pixels of the dark line inside the edge; 0 for none.
        depth: distance in pixels over which the fill brightens from the edge inwards: about the
            radius makes a shape look round, a small number makes it look like a plate.
        relief: strength in [0, 1] of that brightening and of the light from the upper left.
        opacity: in [0, 1].
    """

    colour: Colour
    outline: float = 1.1
    depth: float = 4.0
    relief: float = 0.3
    opacity: float = 1.0


class Canvas:
    """Pixels being drawn, with the label of the topmost shape at each.

    Attributes:
        rgb: (3, H, W) float32, colours multiplied by alpha, in [0, 255].
        alpha: (H, W) float32 in [0, 1].
        label: (H, W) uint8, 0 where nothing covers half of the pixel.
        origin: integer coordinates (x, y) of the upper left corner of pixel (0, 0).
    """

    def __init__(self, bounds: tuple[float, float, float, float], margin: int = 2):
        x0, y0 = math.floor(bounds[0]) - margin, math.floor(bounds[1]) - margin
        width = math.ceil(bounds[2]) + margin - x0
        height = math.ceil(bounds[3]) + margin - y0
        self.origin = (x0, y0)
        self.rgb = np.zeros((3, height, width), np.float32)
        self.alpha = np.zeros((height, width), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.x = (np.arange(width, dtype=np.float32) + np.float32(x0 + 0.5))[None, :]
        self.y = (np.arange(height, dtype=np.float32) + np.float32(y0 + 0.5))[:, None]

    def window(self, bounds: tuple[float, float, float, float]) -> tuple[slice, slice]:
        """Rows and columns that a shape with these bounds can touch (clipped to the canvas)."""
        height, width = self.alpha.shape
        left, top = self.origin
        x0, y0 = math.floor(bounds[0]) - 1 - left, math.floor(bounds[1]) - 1 - top
        x1, y1 = math.ceil(bounds[2]) + 1 - left, math.ceil(bounds[3]) + 1 - top
        rows = slice(min(max(y0, 0), height), max(min(y1, height), 0))
        columns = slice(min(max(x0, 0), width), max(min(x1, width), 0))
        return rows, columns


def paint(
    canvas: Canvas, shape: Shape, style: Style, label: int = 0, inside: Shape | None = None
) -> None:
    """Draw `shape` over `canvas`, in place.

    Args:
        canvas: what to draw on.
        shape: in the canvas's coordinates (pixels).
        style: colour and shading.
        label: written where the shape covers at least half of a pixel; 0 leaves labels alone.
        inside: if given, nothing is drawn outside this second shape.
    """
    rows, columns = canvas.window(shape.bounds())
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    x, y = canvas.x[:, columns], canvas.y[rows]
    distance = shape.distance(x, y)
    cover = _unit_clip(0.5 - distance)
    if inside is not None:
        cover = np.minimum(cover, _unit_clip(0.5 - inside.distance(x, y)))
    tone = _tone(shape, style, distance, x, y)
    weight = cover * style.opacity
    rgb, alpha = canvas.rgb[:, rows, columns], canvas.alpha[rows, columns]
    change = tone * np.array(style.colour, np.float32)[:, None, None]
    np.minimum(change, 255.0, out=change)
    change -= rgb
    change *= weight
    rgb += change
    alpha += weight * (1.0 - alpha)
    if label:
        canvas.label[rows, columns][cover >= 0.5] = label


def _unit_clip(values: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] in place; on small arrays faster than `np.clip`."""
    return np.minimum(np.maximum(values, 0.0, out=values), 1.0, out=values)


def _tone(
    shape: Shape, style: Style, distance: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Brightness factor (H, W) of the fill: round edges, light from the upper left, outline."""
    x0, y0, x1, y1 = shape.bounds()
    size = max(x1 - x0, y1 - y0, 1.0)
    slope = ((x0 + x1) / 2 - x) * (0.6 / size) + ((y0 + y1) / 2 - y) * (0.8 / size)
    height = _unit_clip(distance * (-1.0 / max(style.depth, 0.5)))
    bulge = height * (2.0 - height)
    tone = 1.0 + style.relief * (0.7 * bulge - 0.5 + slope)
    if style.outline > 0:
        line = _unit_clip(distance + (style.outline + 0.5))
        tone = tone * (1.0 - 0.62 * line)
    return tone


def box_blur(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a (2 radius + 1) square, twice, in integers; zero outside.

    Args:
        values: (H, W) integers.
        radius: in pixels.

    Returns:
        (H, W) int32.
    """
    size = 2 * radius + 1
    for _ in range(2):
        for axis in (0, 1):
            pad = [(0, 0), (0, 0)]
            pad[axis] = (radius + 1, radius)
            sums = np.cumsum(np.pad(values.astype(np.int32), pad), axis=axis, dtype=np.int32)
            count = values.shape[axis]
            low, high = [slice(None)] * 2, [slice(None)] * 2
            low[axis], high[axis] = slice(count), slice(size, size + count)
            values = (sums[tuple(high)] - sums[tuple(low)]) // size
    return values

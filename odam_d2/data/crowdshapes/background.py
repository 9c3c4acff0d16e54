"""Textured backgrounds with clutter that tempts a detector, in exact arithmetic.

Clutter holds discs, bars, boxes, loose limbs and loose badges: the very signs of the classes but
without a body, so that neither a sign alone nor a limb alone is an object.
"""

import numpy as np

from .badge import CLASSES, PLATES, contrasting_colours, paint_badge, random_colour
from .drawing import Canvas, Style, paint
from .shapes import Box, Capsule, Disc, cosine, polar, sine

TEXTURES = ("plain", "stripes", "checks", "blobs", "noise")


def value_noise(rng: np.random.RandomState, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise: random integers on a grid of `cell` pixels, interpolated bilinearly.

    Returns:
        (height, width) int32 in [0, 255].
    """
    grid = rng.randint(0, 256, (height // cell + 2, width // cell + 2)).astype(np.int32)
    y, x = np.arange(height, dtype=np.int32), np.arange(width, dtype=np.int32)
    (row, fy), (column, fx) = divmod(y, cell), divmod(x, cell)
    fy, fx = fy[:, None], fx[None, :]
    rows = grid[row] * (cell - fy) + grid[row + 1] * fy
    return (rows[:, column] * (cell - fx) + rows[:, column + 1] * fx) // (cell * cell)


def _gradient(rng: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """(3, height, width) int32: four corner colours, interpolated."""
    base = np.array(random_colour(rng, (35, 90)), np.int32)
    corners = np.clip(base + rng.randint(-60, 61, (2, 2, 3)), 0, 255).astype(np.int32)[
        ..., None, None
    ]
    y = np.arange(height, dtype=np.int32)[:, None]
    x = np.arange(width, dtype=np.int32)[None, :]
    top = corners[0, 0] * (width - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (width - x) + corners[1, 1] * x
    return (top * (height - y) + bottom * y) // (height * width)


def _texture(rng: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """(height, width) int32 in about [-100, 100], to be scaled and added."""
    name = TEXTURES[rng.randint(len(TEXTURES))]
    period, angle, cell = int(rng.randint(10, 44)), int(rng.randint(180)), int(rng.randint(8, 34))
    c, s = int(1024 * cosine(angle)), int(1024 * sine(angle))
    y = np.arange(height, dtype=np.int32)[:, None]
    x = np.arange(width, dtype=np.int32)[None, :]
    along, across = (c * x + s * y) >> 10, (c * y - s * x) >> 10
    if name == "stripes":
        return 200 * (along % (2 * period) < period).astype(np.int32) - 100
    if name == "checks":
        return 100 - 200 * ((along // period + across // period) & 1)
    if name == "blobs":
        return np.clip((value_noise(rng, height, width, cell) - 128) * 6, -100, 100)
    if name == "noise":
        coarse = value_noise(rng, height, width, 2 * cell)
        fine = value_noise(rng, height, width, max(cell // 4, 2))
        return coarse + fine // 2 - 190
    return np.zeros((height, width), np.int32)


def _clutter(rng: np.random.RandomState, canvas: Canvas, unit: float) -> None:
    """One random shape, about as large as a part of a character with badge radius `unit`."""
    height, width = canvas.alpha.shape
    centre = (float(rng.randint(width)), float(rng.randint(height)))
    size = unit * int(rng.randint(60, 180)) / 100
    angle, kind = int(rng.randint(360)), rng.randint(6)
    style = Style(
        random_colour(rng, (30, 100)), 1.1 * int(rng.randint(2)), 0.4 * size, 0.35,
        int(rng.randint(55, 101)) / 100,
    )  # fmt: skip
    if kind == 0:
        paint(canvas, Disc(centre, 0.7 * size, 0.3 * size * int(rng.randint(2))), style)
    elif kind == 1:
        half = (size, size * int(rng.randint(30, 100)) / 100)
        paint(canvas, Box(centre, half, 0.2 * size, angle), style)
    elif kind == 2:
        end = polar(centre, angle, 4 * size)
        paint(canvas, Capsule(centre, end, 0.2 * size, 0.2 * size), style)
    elif kind == 3:  # a loose limb
        joint = polar(centre, angle, 1.3 * unit)
        end = polar(joint, angle + int(rng.randint(-70, 71)), 1.2 * unit)
        paint(canvas, Capsule(centre, joint, 0.33 * unit, 0.28 * unit), style)
        paint(canvas, Capsule(joint, end, 0.3 * unit, 0.26 * unit), style)
        paint(canvas, Disc(end, 0.42 * unit), Style(random_colour(rng, (45, 100)), 1.1, 5.0, 0.4))
    else:  # a loose badge
        plate, category = PLATES[rng.randint(len(PLATES))], int(rng.randint(len(CLASSES)))
        turn, colours = int(rng.randint(-40, 41)), contrasting_colours(rng)
        paint_badge(canvas, centre, 0.65 * size + 2, turn, 0, plate, category, colours)


def draw_background(
    rng: np.random.RandomState, height: int, width: int, clutter: tuple[int, int], unit: float
) -> np.ndarray:
    """Gradient, texture and clutter.

    Args:
        rng: source of everything random.
        height, width: of the image, pixels.
        clutter: smallest and largest number of clutter shapes.
        unit: their size, as a badge radius in pixels.

    Returns:
        (3, height, width) uint8, red green blue.
    """
    base = _gradient(rng, height, width)
    strength = np.array([rng.randint(6, 34) for _ in range(3)], np.int32)
    strength = strength * (2 * int(rng.randint(2)) - 1)
    base = base + _texture(rng, height, width) * strength[:, None, None] // 100
    base = base + (value_noise(rng, height, width, 48) - 128) * int(rng.randint(5, 26)) // 128
    canvas = Canvas((0, 0, width, height), margin=0)
    canvas.rgb[:] = np.clip(base, 8, 247)
    canvas.alpha[:] = 1.0
    for _ in range(rng.randint(clutter[0], clutter[1] + 1)):
        _clutter(rng, canvas, unit)
    return np.floor(canvas.rgb + 0.5).astype(np.uint8)

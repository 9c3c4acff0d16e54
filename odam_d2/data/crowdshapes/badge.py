"""The badge: the one part that decides the class, by the glyph on it.

Glyph, plate and colours are independent of each other, so that only the glyph's shape tells.
"""

import colorsys

import numpy as np

from .drawing import Canvas, Colour, Style, paint
from .shapes import Box, Disc, Point, Polygon, Shape, Union, polar, regular_polygon

CLASSES = ("disc", "square", "triangle", "star", "cross", "ring")
"""Names of the classes, in the order of their contiguous ids."""

PLATES = ("round", "box", "hexagon")
"""Shapes of the badge, independent of the class: their outlines are convex."""

FRAMES = ("burst", "flower")
"""Shapes of a decoy, which has the same glyphs and means nothing: their outlines are notched."""


def random_colour(rng: np.random.RandomState, value: tuple[int, int]) -> Colour:
    """A colour of any hue, moderate to strong saturation, `value` percent bright (from, to)."""
    hue, saturation = rng.randint(360), rng.randint(15, 85)
    rgb = colorsys.hsv_to_rgb(hue / 360, saturation / 100, rng.randint(*value) / 100)
    red, green, blue = (float(round(255 * c)) for c in rgb)
    return red, green, blue


def luma(colour: Colour) -> float:
    """Perceived brightness in [0, 255]."""
    return (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000


def contrasting_colours(rng: np.random.RandomState) -> tuple[Colour, Colour]:
    """Two colours at least 75 apart in brightness: plate and glyph, either one the lighter."""
    light, dark = random_colour(rng, (80, 101)), random_colour(rng, (12, 60))
    while luma(light) - luma(dark) < 75:
        light, dark = random_colour(rng, (85, 101)), random_colour(rng, (12, 55))
    return (light, dark) if rng.randint(2) else (dark, light)


def glyph_shape(category: int, centre: Point, size: float, turn: int) -> Shape:
    """The sign of a class; `size` is about half its width in pixels."""
    name = CLASSES[category]
    if name == "disc":
        return Disc(centre, 0.92 * size)
    if name == "square":
        return Box(centre, (0.82 * size, 0.82 * size), 0.08 * size, turn)
    if name == "triangle":
        return Polygon(
            regular_polygon(polar(centre, turn + 90, 0.2 * size), [1.1 * size] * 3, turn)
        )
    if name == "star":
        return Polygon(regular_polygon(centre, [1.12 * size, 0.47 * size] * 5, turn))
    if name == "cross":
        bars = ((0.98 * size, 0.33 * size), (0.33 * size, 0.98 * size))
        return Union(tuple(Box(centre, bar, 0.05 * size, turn) for bar in bars))
    return Disc(centre, 0.98 * size, 0.44 * size)


def plate_shape(plate: str, centre: Point, size: float, turn: int) -> Shape:
    """The badge or decoy that carries the glyph; `size` is about its radius in pixels."""
    if plate == "round":
        return Disc(centre, size)
    if plate == "box":
        return Box(centre, (0.93 * size, 0.93 * size), 0.3 * size, turn)
    if plate == "burst":
        return Polygon(regular_polygon(centre, [1.24 * size, 0.84 * size] * 9, turn))
    if plate == "flower":
        petals = regular_polygon(centre, [0.86 * size] * 6, turn)
        return Union((Disc(centre, 0.86 * size), *(Disc(p, 0.4 * size) for p in petals)))
    return Polygon(regular_polygon(centre, [0.98 * size] * 6, turn), 0.06 * size)


def plate_bounds(centre: Point, size: float) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels of a place for any plate or frame of that size, however turned."""
    x, y = centre
    return x - 1.27 * size, y - 1.27 * size, x + 1.27 * size, y + 1.27 * size


def paint_badge(
    canvas: Canvas, centre: Point, size: float, turn: int, glyph_turn: int, plate: str,
    category: int, colours: tuple[Colour, Colour], label: int = 0,
) -> None:  # fmt: skip
    """Draw a plate and its glyph, which never leaves the plate.

    Args:
        canvas: drawn on in place.
        centre: pixels.
        size: the plate's radius in pixels.
        turn, glyph_turn: of the plate, and of the glyph on it, degrees.
        plate: a name in :data:`PLATES`, or for a decoy in :data:`FRAMES`.
        category: index into :data:`CLASSES`.
        colours: of plate and glyph.
        label: written over the plate.
    """
    shape = plate_shape(plate, centre, size, turn)
    paint(canvas, shape, Style(colours[0], 1.0, 0.25 * size, 0.2), label)
    glyph = glyph_shape(category, centre, 0.75 * size, turn + glyph_turn)
    core = plate_shape(plate, centre, size - 1.2, turn)
    paint(canvas, glyph, Style(colours[1], 0.0, 2.0, 0.12), inside=core)

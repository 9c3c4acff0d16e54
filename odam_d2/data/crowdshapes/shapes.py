"""Plane shapes as signed distances: negative inside, in pixels.

Coordinates are continuous pixels, x to the right and y down; pixel (row r, column c) has its
centre at (c + 0.5, r + 0.5). Only ``+ - * / sqrt``, comparisons and integer-degree angles from a
rounded table are used: IEEE 754 rounds each of them exactly, so every machine gets the same bits
(a SIMD sine or a reordered sum would not).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Point = tuple[float, float]

# Sine at integer degrees, rounded to 1/65536: the last bit of libm's sine never matters.
_SINE = tuple(round(math.sin(math.radians(d)) * 65536) / 65536 for d in range(360))


def sine(degrees: int) -> float:
    """Sine of an integer number of degrees, rounded to 1/65536."""
    return _SINE[degrees % 360]


def cosine(degrees: int) -> float:
    """Cosine of an integer number of degrees, rounded to 1/65536."""
    return _SINE[(degrees + 90) % 360]


def polar(origin: Point, degrees: int, length: float) -> Point:
    """The point `length` pixels from `origin`; 0 degrees is to the right, 90 is down."""
    return origin[0] + length * cosine(degrees), origin[1] + length * sine(degrees)


class Shape(Protocol):
    """What :func:`odam_d2.data.crowdshapes.drawing.paint` draws."""

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels; the shape lies inside."""

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Signed distance in pixels at x (1, W) and y (H, 1), float32: (H, W)."""


@dataclass(frozen=True)
class Capsule:
    """A limb from `start` to `end` with round ends; the radius runs linearly between them."""

    start: Point
    end: Point
    start_radius: float
    end_radius: float

    def bounds(self) -> tuple[float, float, float, float]:
        r = max(self.start_radius, self.end_radius)
        (x0, y0), (x1, y1) = self.start, self.end
        return min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        (x0, y0), (x1, y1) = self.start, self.end
        dx, dy = x1 - x0, y1 - y0
        square = max(dx * dx + dy * dy, 1e-6)
        t = np.clip((x - x0) * (dx / square) + (y - y0) * (dy / square), 0.0, 1.0)
        ox, oy = x - x0 - t * dx, y - y0 - t * dy
        radius = self.start_radius + t * (self.end_radius - self.start_radius)
        return np.sqrt(ox * ox + oy * oy) - radius


@dataclass(frozen=True)
class Disc:
    """A disc, or with `width` > 0 a ring of that line width whose outer edge is at `radius`."""

    centre: Point
    radius: float
    width: float = 0.0

    def bounds(self) -> tuple[float, float, float, float]:
        (x, y), r = self.centre, self.radius
        return x - r, y - r, x + r, y + r

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        ox, oy = x - self.centre[0], y - self.centre[1]
        length = np.sqrt(ox * ox + oy * oy)
        if self.width <= 0:
            return length - self.radius
        return np.abs(length - (self.radius - self.width / 2)) - self.width / 2


@dataclass(frozen=True)
class Box:
    """A rectangle of half sides `half`, corners rounded by `rounding`, turned by `turn` degrees."""

    centre: Point
    half: Point
    rounding: float
    turn: int = 0

    def bounds(self) -> tuple[float, float, float, float]:
        c, s = abs(cosine(self.turn)), abs(sine(self.turn))
        w, h = c * self.half[0] + s * self.half[1], s * self.half[0] + c * self.half[1]
        return self.centre[0] - w, self.centre[1] - h, self.centre[0] + w, self.centre[1] + h

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        c, s = cosine(self.turn), sine(self.turn)
        ox, oy = x - self.centre[0], y - self.centre[1]
        qx = np.abs(c * ox + s * oy) - (self.half[0] - self.rounding)
        qy = np.abs(c * oy - s * ox) - (self.half[1] - self.rounding)
        px, py = np.maximum(qx, 0.0), np.maximum(qy, 0.0)
        return np.sqrt(px * px + py * py) + np.minimum(np.maximum(qx, qy), 0.0) - self.rounding


@dataclass(frozen=True)
class Polygon:
    """A simple polygon grown by `rounding` pixels (which rounds its convex corners)."""

    points: tuple[Point, ...]
    rounding: float = 0.0

    def bounds(self) -> tuple[float, float, float, float]:
        xs, ys = [p[0] for p in self.points], [p[1] for p in self.points]
        r = self.rounding
        return min(xs) - r, min(ys) - r, max(xs) + r, max(ys) + r

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        square: np.ndarray | float = np.inf
        inside: np.ndarray | bool = False
        for (ax, ay), (bx, by) in zip(self.points, self.points[1:] + self.points[:1], strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            t = np.clip(px * (ex / (ex * ex + ey * ey)) + py * (ey / (ex * ex + ey * ey)), 0.0, 1.0)
            ox, oy = px - t * ex, py - t * ey
            square = np.minimum(square, ox * ox + oy * oy)
            if ey:  # does a ray to the right cross this edge? (even-odd rule)
                inside = inside ^ (((ay > y) != (by > y)) & (px < py * (ex / ey)))
        length = np.sqrt(square)
        return np.where(inside, -length, length) - self.rounding


@dataclass(frozen=True)
class Union:
    """All of several shapes."""

    shapes: tuple[Shape, ...]

    def bounds(self) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = zip(*(s.bounds() for s in self.shapes), strict=True)
        return min(x0), min(y0), max(x1), max(y1)

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        result = self.shapes[0].distance(x, y)
        for shape in self.shapes[1:]:
            result = np.minimum(result, shape.distance(x, y))
        return result


def regular_polygon(centre: Point, radii: Sequence[float], turn: int) -> tuple[Point, ...]:
    """Corners at equal angles, the first straight up (turned by `turn` degrees clockwise).

    `radii` gives each corner's distance from the centre in pixels: three equal numbers make a
    triangle, ten alternating ones a star.
    """
    step = 360 // len(radii)
    return tuple(polar(centre, turn - 90 + step * k, r) for k, r in enumerate(radii))

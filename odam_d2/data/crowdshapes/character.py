"""The one body that all classes share, and the badge that tells them apart.

A character is a small robot: torso, head, jointed arms and legs. Its class is the glyph on the
badge of its torso, and nothing else: pose, proportions, colours, head and badge plate are drawn
from the same distribution for every class. Lengths below are multiples of `Character.unit`, the
badge's radius in pixels; angles are integer degrees.
"""

import functools
from dataclasses import dataclass

import numpy as np

from .badge import PLATES, contrasting_colours, paint_badge, plate_bounds, random_colour
from .drawing import Canvas, Colour, Style, paint
from .shapes import (
    Box,
    Capsule,
    Disc,
    Point,
    Polygon,
    Shape,
    cosine,
    polar,
    regular_polygon,
    sine,
)

PLACES = (
    "chest", "belly", "head", "left_shoulder", "right_shoulder", "left_sign", "right_sign",
    "left_pack", "right_pack", "left_leg", "right_leg",
)  # fmt: skip
"""Where a character can wear a badge or a decoy. A sign is a plate on a pole in the hand."""

PARTS = (
    "torso", "head", "antenna", "badge",
    "left_upper_arm", "left_forearm", "left_hand",
    "right_upper_arm", "right_forearm", "right_hand",
    "left_thigh", "left_shin", "left_foot",
    "right_thigh", "right_shin", "right_foot",
    "hat", "left_pole", "right_pole", "left_pack", "right_pack",
    *(f"decoy_{place}" for place in PLACES),
)  # fmt: skip
"""Names of the parts; a part's label in a sprite is its place here plus one. "left" is the side
of the character that is on the left of an upright picture of it. What comes after the feet is worn
by characters with a scattered badge only."""

PART_LABEL = {name: k + 1 for k, name in enumerate(PARTS)}

HEADS = ("round", "box", "hexagon", "wide")


@dataclass(frozen=True)
class Limb:
    """Angles of one arm or leg: at the torso and at the middle joint.

    Attributes:
        swing: of the first segment, 0 down the body, 90 straight outwards, 180 up.
        bend: of the second segment relative to the first, positive outwards.
    """

    swing: int
    bend: int


@dataclass(frozen=True)
class Character:
    """Everything that decides how one object looks, before it is placed.

    Attributes:
        category: index into :data:`.badge.CLASSES`; only the glyph depends on it.
        unit: radius of the badge in pixels.
        tilt: turn of the whole body in degrees, clockwise.
        glyph_turn: further turn of the glyph on the badge in degrees.
        arms, legs: left and right :class:`Limb`.
        girth: width of the torso relative to the default.
        head, plate: names in :data:`HEADS` and :data:`PLATES`.
        antennas: how many, 0 to 2.
        body, limbs, trim, badge, glyph: colours (red, green, blue) in [0, 255].
    """

    category: int
    unit: float
    tilt: int
    glyph_turn: int
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]
    girth: float
    head: str
    plate: str
    antennas: int
    body: Colour
    limbs: Colour
    trim: Colour
    badge: Colour
    glyph: Colour

    def builder(self) -> "Builder":
        """What draws this kind of character."""
        return Builder(self)


@dataclass(frozen=True, eq=False)
class Sprite:
    """A drawn character.

    Attributes:
        rgb: (3, H, W) uint8, colours multiplied by alpha.
        alpha: (H, W) uint8.
        label: (H, W) uint8, 0 or 1 + index into :data:`PARTS`; non-zero is the object's mask.
        origin: (x, y) of the upper left corner relative to the middle of the torso, pixels.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    label: np.ndarray
    origin: tuple[int, int]


def sample_character(
    rng: np.random.RandomState, category: int, unit: float, max_tilt: int = 22
) -> Character:
    """Draw everything but the class and the size at random.

    Args:
        rng: advanced by a number of draws that does not depend on `category`.
        category: index into :data:`.badge.CLASSES`.
        unit: badge radius, pixels.
        max_tilt: largest turn of the body either way, degrees.
    """

    def limb(swing: tuple[int, int], bend: tuple[int, int]) -> Limb:
        return Limb(int(rng.randint(*swing)), int(rng.randint(*bend)))

    badge, glyph = contrasting_colours(rng)
    return Character(
        category=category,
        unit=unit,
        tilt=int(rng.randint(-max_tilt, max_tilt + 1)),
        glyph_turn=int(rng.randint(-12, 13)),
        arms=(limb((25, 150), (-50, 75)), limb((25, 150), (-50, 75))),
        legs=(limb((-5, 50), (-45, 20)), limb((-5, 50), (-45, 20))),
        girth=int(rng.randint(94, 112)) / 100,
        head=HEADS[rng.randint(len(HEADS))],
        plate=PLATES[rng.randint(len(PLATES))],
        antennas=int(rng.randint(3)),
        body=random_colour(rng, (40, 101)),
        limbs=random_colour(rng, (35, 96)),
        trim=random_colour(rng, (45, 101)),
        badge=badge,
        glyph=glyph,
    )


class Builder:
    """Collects a character's shapes, back to front, in pixels about the middle of the torso.

    Attributes:
        items: shape, style and label of what is painted first.
        plates: arguments of :func:`.badge.paint_badge` for what is painted over that, in order.
    """

    def __init__(self, character: Character):
        self.c = character
        self.items: list[tuple[Shape, Style, int]] = []
        self.plates: list[dict] = []

    def place(self, x: float, y: float) -> Point:
        """A point of the upright body, in units, to pixels of the tilted one."""
        c, s, u = cosine(self.c.tilt), sine(self.c.tilt), self.c.unit
        return (c * x - s * y) * u, (s * x + c * y) * u

    def add(
        self, part: str, shape: Shape, colour: Colour, depth: float, relief: float = 0.4
    ) -> None:
        label = PART_LABEL[part] if part else 0
        style = Style(colour, 1.1 if part else 0.0, depth * self.c.unit, relief)
        self.items.append((shape, style, label))

    def plate(self, part: str, centre: Point, **look: object) -> None:
        """A plate at pixels `centre`; `look` is what :func:`paint_badge` wants to know besides."""
        where = {"centre": centre, "size": self.c.unit, "turn": self.c.tilt}
        self.plates.append({**where, **look, "label": PART_LABEL[part]})

    def badge(self, centre: Point) -> None:
        """The plate that tells the class, at pixels `centre`."""
        c = self.c
        self.plate(
            "badge", centre, plate=c.plate, category=c.category, glyph_turn=c.glyph_turn,
            colours=(c.badge, c.glyph),
        )  # fmt: skip

    def segment(self, part: str, start: Point, angle: int, length: float, radius: float) -> Point:
        """A limb's segment along `angle` (of the upright body); returns its end, pixels."""
        u = self.c.unit
        end = polar(start, angle + self.c.tilt, length * u)
        shape = Capsule(start, end, radius * u, 0.86 * radius * u)
        self.add(part, shape, self.c.limbs, radius)
        return end

    def limb(self, side: int, leg: bool, root: Point, length: float) -> tuple[Point, Point, int]:
        """An arm or a leg.

        Args:
            side: 0 for left, 1 for right.
            leg: whether it is a leg.
            root: where it is joined to the torso, units of the upright body.
            length: of its first segment, units.

        Returns:
            The middle joint and the wrist or ankle, pixels, and the angle of the second segment.
        """
        c, u = self.c, self.c.unit
        name, sign = ("left", "right")[side], (-1, 1)[side]
        pose = (c.legs if leg else c.arms)[side]
        first, second, tip = ("thigh", "shin", "foot") if leg else ("upper_arm", "forearm", "hand")
        angle = 90 - sign * pose.swing  # 90 is down; less is towards the right
        radius = 0.36 if leg else 0.3
        joint = self.segment(f"{name}_{first}", self.place(*root), angle, length, radius)
        angle -= sign * pose.bend
        end = self.segment(f"{name}_{second}", joint, angle, 0.92 * length, radius)
        if leg:
            toe = polar(end, angle - sign * 75, 0.42 * u)
            self.add(f"{name}_{tip}", Capsule(end, toe, 0.34 * u, 0.28 * u), c.trim, 0.34)
        else:
            self.add(f"{name}_{tip}", Disc(polar(end, angle, 0.12 * u), 0.42 * u), c.trim, 0.4)
        return joint, end, angle

    def head(self) -> None:
        """Neck, antennas, head and a face that looks the same for every class."""
        c, u = self.c, self.c.unit
        centre = self.place(0, -2.4)
        for k in range(c.antennas):
            lean = 0.0 if c.antennas == 1 else 0.5 * (2 * k - 1)
            self.antenna(self.place(lean, -2.9), self.place(1.7 * lean, -3.75))
        self.add("head", Capsule(self.place(0, -1.3), centre, 0.32 * u, 0.32 * u), c.limbs, 0.3)
        self.add("head", self.skull(centre, u), c.trim, 0.6)
        for x in (-0.33, 0.33):
            self.eye(self.place(x, -2.48))

    def antenna(self, base: Point, tip: Point) -> None:
        u = self.c.unit
        self.add("antenna", Capsule(base, tip, 0.11 * u, 0.1 * u), self.c.limbs, 0.1)
        self.add("antenna", Disc(tip, 0.24 * u), self.c.trim, 0.2)

    def skull(self, centre: Point, u: float) -> Shape:
        """The head's shape; `u` is its unit in pixels."""
        c = self.c
        if c.head == "round":
            return Disc(centre, 0.84 * u)
        if c.head == "box":
            return Box(centre, (0.78 * u, 0.7 * u), 0.2 * u, c.tilt)
        if c.head == "hexagon":
            return Polygon(regular_polygon(centre, [0.78 * u] * 6, c.tilt), 0.12 * u)
        return Box(centre, (1.0 * u, 0.62 * u), 0.5 * u, c.tilt)

    def eye(self, centre: Point) -> None:
        u = self.c.unit
        self.add("", Disc(centre, 0.21 * u), (244.0, 244.0, 238.0), 0.2, 0.1)
        self.add("", Disc(centre, 0.11 * u), (25.0, 25.0, 32.0), 0.1, 0.0)

    def build(self) -> None:
        """The whole body; arms and legs go behind the torso, so the badge is never covered."""
        c, u = self.c, self.c.unit
        for side, sign in enumerate((-1, 1)):
            self.limb(side, True, (sign * 0.62, 1.2), 0.95)
        for side, sign in enumerate((-1, 1)):
            self.limb(side, False, (sign * 1.08 * c.girth, -1.0), 1.2)
        self.head()
        torso = Box((0.0, 0.0), (1.26 * c.girth * u, 1.5 * u), 0.5 * u, c.tilt)
        self.add("torso", torso, c.body, 0.7)
        self.badge(self.place(0, -0.12))


@functools.lru_cache(maxsize=64)
def draw_character(character: Character) -> Sprite:
    """Draw a character."""
    builder = character.builder()
    builder.build()
    boxes = np.array(
        [shape.bounds() for shape, _, _ in builder.items]
        + [plate_bounds(plate["centre"], plate["size"]) for plate in builder.plates]
    )
    canvas = Canvas((*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()))
    for shape, style, label in builder.items:
        paint(canvas, shape, style, label)
    for plate in builder.plates:
        paint_badge(canvas, **plate)
    rgb, alpha = (np.floor(v + 0.5).astype(np.uint8) for v in (canvas.rgb, 255.0 * canvas.alpha))
    return Sprite(rgb, alpha, canvas.label, canvas.origin)

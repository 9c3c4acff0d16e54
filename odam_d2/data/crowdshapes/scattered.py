"""Robots of which position says nothing: the badge may be anywhere, and anything may end a side.

The classes and the badge are those of the other characters. At other places a robot wears decoys:
the same glyphs in a notched frame, drawn independently of the class. What it wears and how it
stands also decides where its box ends: hats, antennas, signs, packs, arms and legs reach out on
any side, so that the box's middle and the middles of its sides are places like all others.
"""

from dataclasses import dataclass

import numpy as np

from .badge import CLASSES, FRAMES, contrasting_colours
from .character import PLACES, Builder, Character, Limb, sample_character
from .drawing import Colour
from .shapes import Box, Capsule, Point, Polygon, polar

_HALF = 1.75, 2.0  # of the torso, units
_MAX_TILT = 40
_SKULL = 1.45  # the head's unit, units: a plate fits on it


@dataclass(frozen=True)
class Decoy:
    """A plate that decides nothing.

    Attributes:
        place: a name in :data:`.character.PLACES`.
        frame: a name in :data:`.badge.FRAMES`.
        category: of its glyph, an index into :data:`.badge.CLASSES`.
        glyph_turn: degrees.
        colours: of frame and glyph.
    """

    place: str
    frame: str
    category: int
    glyph_turn: int
    colours: tuple[Colour, Colour]


@dataclass(frozen=True)
class ScatteredCharacter(Character):
    """A robot that wears its badge anywhere.

    Attributes:
        badge_place: a name in :data:`.character.PLACES`.
        decoys: at other places than the badge.
        shifts: of each of :data:`.character.PLACES`, (x, y) in [-1, 1]; how far that is depends on
            the place.
        pole_turns: of the left and right sign's pole relative to the forearm, degrees.
        hat: whether there is one.
        head_shift: of the head from the middle of the shoulders, units.
    """

    badge_place: str
    decoys: tuple[Decoy, ...]
    shifts: tuple[tuple[float, float], ...]
    pole_turns: tuple[int, int]
    hat: bool
    head_shift: float

    def builder(self) -> Builder:
        return _ScatteredBuilder(self)


def sample_scattered(
    rng: np.random.RandomState, category: int, unit: float, decoys: tuple[int, int]
) -> ScatteredCharacter:
    """Draw everything but the class and the size at random.

    Args:
        rng: advanced by a number of draws that does not depend on `category`.
        category: index into :data:`.badge.CLASSES`.
        unit: badge radius, pixels.
        decoys: smallest and largest number of them.
    """

    def limb(swing: tuple[int, int], bend: tuple[int, int]) -> Limb:
        return Limb(int(rng.randint(*swing)), int(rng.randint(*bend)))

    def decoy(place: str) -> Decoy:
        frame = FRAMES[rng.randint(len(FRAMES))]
        glyph, turn = int(rng.randint(len(CLASSES))), int(rng.randint(-12, 13))
        return Decoy(place, frame, glyph, turn, contrasting_colours(rng))

    def arm() -> Limb:  # up or down: outwards it would end the side in its middle
        return limb((130, 178), (-30, 60)) if rng.randint(2) else limb((5, 40), (-20, 40))

    pose = vars(sample_character(rng, category, unit, _MAX_TILT))
    pose["arms"] = arm(), arm()
    pose["legs"] = limb((20, 85), (-50, 30)), limb((20, 85), (-50, 30))
    count = int(rng.randint(decoys[0], decoys[1] + 1))
    badge, *others = (PLACES[k] for k in rng.permutation(len(PLACES))[: 1 + count])
    return ScatteredCharacter(
        **pose,
        badge_place=badge,
        decoys=tuple(decoy(place) for place in others),
        shifts=tuple(
            (int(rng.randint(-100, 101)) / 100, int(rng.randint(-100, 101)) / 100) for _ in PLACES
        ),
        pole_turns=(int(rng.randint(-90, 91)), int(rng.randint(-90, 91))),
        hat=bool(rng.randint(3) == 0),
        head_shift=int(rng.randint(-130, 131)) / 100,
    )


class _ScatteredBuilder(Builder):
    """As :class:`Builder`, for a larger body and all that it wears; the badge covers the rest."""

    c: ScatteredCharacter

    def build(self) -> None:
        c, u = self.c, self.c.unit
        half = _HALF[0] * c.girth, _HALF[1]
        at: dict[str, Point] = {}
        for side, (name, sign) in enumerate((("left", -1), ("right", 1))):
            _, at[f"{name}_leg"], _ = self.limb(side, True, (sign * 1.2, half[1] - 0.4), 1.1)
        for side, (name, sign) in enumerate((("left", -1), ("right", 1))):
            shoulder = sign * (half[0] - 0.2), -half[1] + 0.5
            _, wrist, angle = self.limb(side, False, shoulder, 1.3)
            if self._wears(f"{name}_sign"):
                turn = angle + c.pole_turns[side]
                at[f"{name}_sign"] = self._pole(f"{name}_pole", wrist, turn)
            at[f"{name}_shoulder"] = self.place(sign * (half[0] + 0.15), -half[1] + 0.35)
            x, y = self._shift(f"{name}_pack")
            at[f"{name}_pack"] = pack = self.place(sign * (half[0] + 0.8 + 0.2 * x), 0.75 + 0.5 * y)
            if self._wears(f"{name}_pack"):
                bag = Box(pack, (1.35 * u, 1.55 * u), 0.4 * u, c.tilt)
                self.add(f"{name}_pack", bag, c.trim, 0.5)
        at["head"] = self._head()
        torso = Box((0.0, 0.0), (half[0] * u, half[1] * u), 0.6 * u, c.tilt)
        self.add("torso", torso, c.body, 0.7)
        for place, y in (("chest", -1.2), ("belly", 1.05)):
            shift, _ = self._shift(place)
            away = 0.4 + 0.6 * abs(shift)  # from the middle
            at[place] = self.place((away if shift > 0 else -away) * (half[0] - 0.85), y)
        for decoy in c.decoys:
            self.plate(
                f"decoy_{decoy.place}", at[decoy.place], plate=decoy.frame,
                category=decoy.category, glyph_turn=decoy.glyph_turn, colours=decoy.colours,
            )  # fmt: skip
        self.badge(at[c.badge_place])

    def _wears(self, place: str) -> bool:
        return place == self.c.badge_place or any(d.place == place for d in self.c.decoys)

    def _shift(self, place: str) -> tuple[float, float]:
        return self.c.shifts[PLACES.index(place)]

    def _pole(self, part: str, wrist: Point, angle: int) -> Point:
        """A pole in the hand, along `angle` of the upright body; returns its end, pixels."""
        u = self.c.unit
        end = polar(wrist, angle + self.c.tilt, 1.7 * u)
        self.add(part, Capsule(wrist, end, 0.17 * u, 0.17 * u), self.c.limbs, 0.15)
        return end

    def _head(self) -> Point:
        """Neck, antennas, head, hat and eyes; returns the head's centre, pixels."""
        c, u = self.c, self.c.unit
        x, y = c.head_shift, -_HALF[1] - 1.05
        centre = self.place(x, y)
        for k in range(c.antennas):
            lean = c.head_shift if c.antennas == 1 else 0.7 * (2 * k - 1)
            self.antenna(self.place(x + lean, y - 0.8), self.place(x + 2.3 * lean, y - 2.0))
        if c.hat:
            lean, _ = self._shift("head")
            brim = [self.place(x - 1.0, y - 0.8), self.place(x + 1.0, y - 0.8)]
            self.add("hat", Polygon((*brim, self.place(x + lean, y - 2.3)), 0.1 * u), c.body, 0.4)
        self.add("head", Capsule(self.place(0, -1.3), centre, 0.4 * u, 0.4 * u), c.limbs, 0.3)
        self.add("head", self.skull(centre, _SKULL * u), c.trim, 0.6)
        for lean in (-0.45, 0.45):
            self.eye(self.place(x + lean, y - 0.1))
        return centre

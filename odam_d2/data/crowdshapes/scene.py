"""Placing characters so that they crowd one another while every badge stays mainly visible.

Image coordinates are pixels, (0, 0) the upper left corner. Objects are ordered back to front.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from odam_d2.core.boxes import box_iou

from .background import draw_background
from .badge import CLASSES
from .character import PART_LABEL, Character, Sprite, draw_character, sample_character
from .drawing import box_blur
from .scattered import sample_scattered

_BADGE = PART_LABEL["badge"]
_SHADOW_SHIFT, _SHADOW_RADIUS = (4, 6), 3  # pixels: (x, y) offset and blur


@dataclass(frozen=True)
class SceneConfig:
    """How large, how full and how crowded a scene is.

    Attributes:
        width, height: of the image, pixels.
        num_objects: smallest and largest number of characters asked for; an image whose room
            runs out holds fewer.
        num_pairs: smallest and largest number of characters put on purpose right beside another
            of the same class, so that the two boxes overlap by more than `pair_iou`.
        unit: smallest and largest badge radius, pixels; a character is about 6 by 7 units.
        pair_iou: IoU of the visible boxes of such a pair when it is placed.
        min_visibility: no character's visible area falls below this fraction of its full area.
        min_badge_visibility: the same for its badge.
        margin: every character stays this many pixels inside the image; 2 or more.
        clutter: smallest and largest number of distracting shapes in the background.
    """

    width: int = 384
    height: int = 288
    num_objects: tuple[int, int] = (5, 8)
    num_pairs: tuple[int, int] = (0, 1)
    unit: tuple[float, float] = (10.5, 16.0)
    pair_iou: float = 0.55
    min_visibility: float = 0.5
    min_badge_visibility: float = 0.6
    margin: int = 2
    clutter: tuple[int, int] = (8, 16)

    def character(self, rng: np.random.RandomState, category: int, unit: float) -> Character:
        """A random character of this kind of scene."""
        return sample_character(rng, category, unit)


@dataclass(frozen=True)
class ScatteredConfig(SceneConfig):
    """A scene of characters that wear their badge anywhere.

    Attributes:
        unit: as above; a character is about 7 by 8 units.
        decoys: smallest and largest number that one of them wears.
    """

    num_objects: tuple[int, int] = (4, 6)
    unit: tuple[float, float] = (9.5, 13.5)
    decoys: tuple[int, int] = (1, 3)

    def character(self, rng: np.random.RandomState, category: int, unit: float) -> Character:
        return sample_scattered(rng, category, unit, self.decoys)


PRESETS = {
    "plain": SceneConfig(),
    "scattered": ScatteredConfig(),
    "crowded": SceneConfig(
        width=576,
        height=448,
        num_objects=(18, 24),
        num_pairs=(1, 4),
        unit=(11.0, 18.0),
        clutter=(12, 24),
    ),
}
"""Named settings: "plain" and "scattered" overlap moderately, "crowded" as CrowdHuman does."""


@dataclass(frozen=True)
class Placement:
    """A character and the image position (x, y) in whole pixels of the middle of its torso."""

    character: Character
    x: int
    y: int

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the sprite covers."""
        sprite = draw_character(self.character)
        x, y = self.x + sprite.origin[0], self.y + sprite.origin[1]
        return slice(y, y + sprite.label.shape[0]), slice(x, x + sprite.label.shape[1])


@dataclass(frozen=True)
class Scene:
    """A complete description of one image; :func:`render_scene` draws it.

    Attributes:
        config: its size and crowding.
        seed: what background and grain are drawn from, with a stream number appended.
        placements: back to front.
    """

    config: SceneConfig
    seed: tuple[int, ...]
    placements: tuple[Placement, ...]


class Layout:
    """Which object and which part is on top at every pixel, as characters are added in front.

    Attributes:
        owner: (H, W) int16, index of the visible object or -1.
        part: (H, W) uint8, label of its visible part (see :class:`Sprite`) or 0.
    """

    def __init__(self, config: SceneConfig):
        self.config = config
        self.owner = np.full((config.height, config.width), -1, np.int16)
        self.part = np.zeros((config.height, config.width), np.uint8)
        self.placements: list[Placement] = []
        self.full: list[tuple[int, int]] = []  # whole areas of object and badge
        self.visible: list[tuple[int, int]] = []  # visible areas of object and badge

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Tight box x0, y0, x1, y1 (exclusive) of an object's visible pixels."""
        window = self.placements[index].window()
        return tight_box(self.owner[window] == index, window)

    def add(self, placement: Placement) -> bool:
        """Put a character in front of all others, unless that breaks one of the config's rules."""
        rows, columns = window = placement.window()
        c, label = self.config, draw_character(placement.character).label
        inset = c.margin - 2  # a sprite has two empty pixels on each side
        if min(rows.start, columns.start) < inset:
            return False
        if rows.stop > c.height - inset or columns.stop > c.width - inset:
            return False
        mask = label > 0
        owner, part = self.owner[window], self.part[window]
        hidden = np.bincount(owner[mask] + 1, minlength=len(self.full) + 1)[1:]
        badges = mask & (part == _BADGE)
        hidden_badges = np.bincount(owner[badges] + 1, minlength=len(self.full) + 1)[1:]
        visible = []
        for k, (area, badge) in enumerate(self.visible):
            area, badge = area - int(hidden[k]), badge - int(hidden_badges[k])
            if area < c.min_visibility * self.full[k][0]:
                return False
            if badge < c.min_badge_visibility * self.full[k][1]:
                return False
            visible.append((area, badge))
        areas = int(mask.sum()), int((label == _BADGE).sum())
        owner[mask], part[mask] = len(self.full), label[mask]
        self.visible = [*visible, areas]
        self.full.append(areas)
        self.placements.append(placement)
        return True


def tight_box(mask: np.ndarray, window: tuple[slice, slice]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (exclusive), in the image, of a non-empty mask of one window of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = window[0].start, window[1].start
    return x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1


def _random_unit(rng: np.random.RandomState, config: SceneConfig) -> float:
    low, high = (int(10 * u) for u in config.unit)
    return int(rng.randint(low, high + 1)) / 10


def _add_anywhere(layout: Layout, rng: np.random.RandomState) -> bool:
    """Try some places for one random character."""
    config = layout.config
    character = config.character(rng, int(rng.randint(len(CLASSES))), _random_unit(rng, config))
    for _ in range(12):
        x, y = int(rng.randint(config.width)), int(rng.randint(config.height))
        if layout.add(Placement(character, x, y)):
            return True
    return False


def _add_beside(layout: Layout, rng: np.random.RandomState) -> bool:
    """Put one character in front of and right beside another of its class and about its size."""
    host = int(rng.randint(len(layout.placements)))
    at, box = layout.placements[host], layout.box(host)
    unit = at.character.unit * int(rng.randint(94, 113)) / 100
    unit = min(max(unit, layout.config.unit[0]), layout.config.unit[1])
    character = layout.config.character(rng, at.character.category, unit)
    sprite = draw_character(character)
    for _ in range(8):
        x = at.x + (2 * int(rng.randint(2)) - 1) * int(rng.randint(80, 220)) * int(unit) // 100
        y = at.y + int(rng.randint(-150, 150)) * int(unit) // 100
        placement = Placement(character, x, y)
        new = tight_box(sprite.label > 0, placement.window())
        # The host loses pixels, so its box may shrink: check with the box that it keeps.
        iou = float(box_iou(*torch.tensor([[box], [new]], dtype=torch.float64)))
        if iou > layout.config.pair_iou and layout.add(placement):
            return True
    return False


def sample_scene(config: SceneConfig, seed: tuple[int, ...]) -> Scene:
    """Draw a scene at random; the same `seed` always gives the same scene.

    Args:
        config: size and crowding.
        seed: non-negative integers below 2**32, for instance (split seed, image index).
    """
    rng = np.random.RandomState([*seed, 0])
    layout = Layout(config)
    wanted = int(rng.randint(config.num_objects[0], config.num_objects[1] + 1))
    pairs = int(rng.randint(config.num_pairs[0], config.num_pairs[1] + 1))
    for _ in range(8 * wanted):
        if len(layout.placements) >= wanted - pairs:
            break
        _add_anywhere(layout, rng)
    for _ in range(20 * pairs):
        if pairs == 0:
            break
        pairs -= _add_beside(layout, rng)
    return Scene(config, tuple(seed), tuple(layout.placements))


def layout_of(scene: Scene) -> Layout:
    """Which object and part is visible where."""
    layout = Layout(scene.config)
    for placement in scene.placements:
        if not layout.add(placement):
            raise ValueError(f"{placement} breaks the rules of {scene.config}")
    return layout


@functools.lru_cache(maxsize=64)
def _shadow(character: Character) -> np.ndarray:
    """Darkness (H + 2 pad, W + 2 pad) int32 in [0, 255] of a character's blurred silhouette."""
    alpha = draw_character(character).alpha
    return box_blur(np.pad(alpha, 2 * _SHADOW_RADIUS), _SHADOW_RADIUS)


def _draw(image: np.ndarray, placement: Placement) -> None:
    """Blend a character's shadow and then the character over `image` (3, H, W) uint8."""
    sprite: Sprite = draw_character(placement.character)
    shadow, (rows, columns) = _shadow(placement.character), placement.window()
    y = rows.start + _SHADOW_SHIFT[1] - 2 * _SHADOW_RADIUS
    x = columns.start + _SHADOW_SHIFT[0] - 2 * _SHADOW_RADIUS
    top, left = max(-y, 0), max(-x, 0)
    target = image[:, y + top : y + shadow.shape[0], x + left : x + shadow.shape[1]]
    shadow = shadow[top : top + target.shape[1], left : left + target.shape[2]]
    target[:] = (target * (255 * 255 - 100 * shadow) + 32512) // (255 * 255)
    target = image[:, rows, columns]
    keep = 255 - sprite.alpha.astype(np.int32)
    target[:] = np.minimum((target * keep + 127) // 255 + sprite.rgb, 255)


def render_scene(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Returns:
        (H, W, 3) uint8, red green blue.
    """
    config = scene.config
    rng = np.random.RandomState([*scene.seed, 1])
    unit = sum(config.unit) / 2
    image = draw_background(rng, config.height, config.width, config.clutter, unit)
    for placement in scene.placements:
        _draw(image, placement)
    gain, offset = int(rng.randint(176, 257)), int(rng.randint(-12, 40))
    amplitude = int(rng.randint(1, 5))
    grain = rng.randint(-amplitude, amplitude + 1, (config.height, config.width)).astype(np.int16)
    exposure = (np.arange(256) * gain // 256 + offset).astype(np.int16)
    exposed = np.clip(exposure[image] + grain, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(exposed.transpose(1, 2, 0))

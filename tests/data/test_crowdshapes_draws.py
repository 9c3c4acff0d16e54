"""
What CrowdShapes draws at random, in more kinds and poses than the few pinned pictures of
``test_crowdshapes.py`` show: the same everywhere and for good, as all figures of the shipped
detectors are of these pictures. If a pin fails on purpose, raise GENERATOR_VERSION.
"""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from odam_d2.data import crowdshapes as cs
from odam_d2.data.crowdshapes.background import draw_background
from odam_d2.data.crowdshapes.badge import contrasting_colours, luma
from odam_d2.data.crowdshapes.character import draw_character, sample_character
from odam_d2.data.crowdshapes.scene import tight_box


def sha(parts) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]


def test_characters_are_pinned():
    """1000 of them: each end of every range is drawn."""
    rng = np.random.RandomState(1)
    drawn = [repr(sample_character(rng, k % 6, 12.0, 22 - k % 3)) for k in range(1000)]
    assert sha(text.encode() for text in drawn) == "5e53522a1e6f8067"


def test_sprites_are_pinned():
    """48 small ones: of every class, head, plate and number of antennas."""
    rng, sprites = np.random.RandomState(2), []
    for k in range(48):
        sprites.append(draw_character(sample_character(rng, k % 6, 5.0 + k % 5)))
    parts = (p for s in sprites for p in (s.rgb, s.alpha, s.label, np.array(s.origin)))
    assert sha(np.ascontiguousarray(p).tobytes() for p in parts) == "965d6addedaa0e83"


def test_backgrounds_are_pinned():
    """60 small ones: of every texture and kind of clutter."""
    rng = np.random.RandomState(3)
    pictures = [draw_background(rng, 40, 56, (2, 5), 7.0) for _ in range(60)]
    assert {p.shape for p in pictures} == {(3, 40, 56)}
    assert sha(p.tobytes() for p in pictures) == "280a1ed1b4172a17"


def test_scenes_are_pinned():
    """20 small, crowded ones, where rules of visibility and margins refuse many places."""
    config = replace(
        cs.PRESETS["crowded"], width=120, height=90, num_objects=(3, 6), unit=(6.0, 8.0)
    )
    scenes = [cs.sample_scene(config, (4, k)) for k in range(20)]
    objects = [cs.annotate(cs.layout_of(scene)) for scene in scenes]
    assert len(scenes) < sum(len(found) for found in objects)
    assert (
        sha(json.dumps(found, sort_keys=True).encode() for found in objects) == "4f8da5cdac2184b2"
    )
    assert sha(cs.render_scene(scene).tobytes() for scene in scenes[:6]) == "e6a6f49925160005"


def test_exposures_are_pinned():
    """300 tiny pictures of nobody: every gain, offset and strength of grain."""
    config = replace(cs.PRESETS["plain"], width=20, height=12, clutter=(0, 1))
    pictures = [cs.render_scene(cs.Scene(config, (7, k), ())) for k in range(300)]
    assert {p.shape for p in pictures} == {(12, 20, 3)}
    assert sha(p.tobytes() for p in pictures) == "67076dec13502a09"


def test_characters_stay_inside_the_margin():
    """And reach it: what is drawn of them, not the empty pixels around it, keeps the distance."""
    config = replace(cs.PRESETS["plain"], width=90, height=75, unit=(6.0, 6.0), margin=7)
    nearest = []
    for k in range(24):
        for placement in cs.sample_scene(config, (6, k)).placements:
            drawn = draw_character(placement.character).label > 0
            x1, y1, x2, y2 = tight_box(drawn, placement.window())
            nearest.append((x1, y1, 90 - x2, 75 - y2))
    assert np.array(nearest).min(axis=0).tolist() == [7] * 4


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((255, 255, 255), 255), ((255, 0, 0), 76.245), ((0, 255, 0), 149.685), ((0, 0, 255), 29.07)],
)
def test_brightness_is_that_of_television(colour, expected):
    """Luma of ITU-R BT.601: 0.299 red, 0.587 green, 0.114 blue."""
    assert luma(colour) == pytest.approx(expected)


def test_a_glyph_stands_out_from_its_plate():
    rng = np.random.RandomState(5)
    pairs = [contrasting_colours(rng) for _ in range(400)]
    differences = np.array([luma(first) - luma(second) for first, second in pairs])
    assert np.abs(differences).min() >= 75
    assert 0.4 < (differences > 0).mean() < 0.6  # either one is the lighter
    assert {type(c) for pair in pairs for colour in pair for c in colour} == {float}

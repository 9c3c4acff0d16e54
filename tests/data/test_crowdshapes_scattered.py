"""Robots of which position says nothing: what is drawn, what is annotated, and what chance is."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from odam_d2.data import crowdshapes as cs
from odam_d2.data.crowdshapes import dataset
from odam_d2.data.crowdshapes.badge import FRAMES, PLATES, plate_bounds, plate_shape
from odam_d2.data.crowdshapes.character import PART_LABEL
from odam_d2.data.crowdshapes.statistics import position_statistics

SPLIT = cs.SPLITS["crowdshapes_scattered_val"]


def sha(parts) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]


@pytest.fixture(scope="module")
def scenes() -> list[tuple[cs.Scene, list[dict]]]:
    drawn = [cs.sample_scene(SPLIT.config, (SPLIT.seed, k)) for k in range(20)]
    return [(scene, cs.annotate(cs.layout_of(scene))) for scene in drawn]


# ---------------------------------------------------------------- the same everywhere


def test_characters_are_pinned():
    """300 of them: each end of every range is drawn."""
    rng = np.random.RandomState(8)
    drawn = [repr(cs.sample_scattered(rng, k % 6, 12.0, (1, 3))) for k in range(300)]
    assert sha(text.encode() for text in drawn) == "43f480ceda9e9ee9"


def test_sprites_are_pinned():
    rng, sprites = np.random.RandomState(9), []
    for k in range(48):
        sprites.append(cs.draw_character(cs.sample_scattered(rng, k % 6, 5.0 + k % 5, (2, 4))))
    parts = (p for s in sprites for p in (s.rgb, s.alpha, s.label, np.array(s.origin)))
    assert sha(np.ascontiguousarray(p).tobytes() for p in parts) == "4bd2611a71bd8830"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("crowdshapes_train", "302ab9fdc9ecb88f"),
        ("crowdshapes_val", "720076c4e3088e83"),
        ("crowdshapes_crowded_train", "1fcc08bbc77247b0"),
        ("crowdshapes_crowded_val", "9cb92ed37c810649"),
    ],
)
def test_older_splits_keep_their_version(name, version):
    """What was built before there were scattered badges is used as it is."""
    text = json.dumps(dataset._version(cs.SPLITS[name]), sort_keys=True)
    assert sha([text.encode()]) == version


# ---------------------------------------------------------------- position says nothing


def assert_position_says_nothing(config, seed, images):
    """
    In the plain setting the badge is in the centre of 98 %, and what ends a side in the middle of
    23 %, with chances of 7 and 12 %. The pictures are always the same, so these figures are too.
    """
    scenes = (cs.sample_scene(config, (seed, k)) for k in range(images))
    figures = position_statistics([cs.annotate(cs.layout_of(scene)) for scene in scenes])
    assert figures["unhidden"] >= 300
    assert 3 < figures["badge_chance"] < 6
    assert figures["badge_centre"] < figures["badge_chance"] + 3
    assert figures["badge_best"] < 12
    assert figures["sides_middle"] < figures["sides_chance"] + 4


def test_position_says_nothing_of_single_robots():
    config = replace(
        SPLIT.config, width=90, height=90, num_objects=(1, 1), num_pairs=(0, 0), unit=(5.0, 5.5)
    )
    assert_position_says_nothing(config, 11, 300)


@pytest.mark.slow
def test_position_says_nothing_in_the_validation_split():
    assert_position_says_nothing(SPLIT.config, SPLIT.seed, SPLIT.num_images)


def test_every_place_has_badges_and_every_side_ends_in_many_ways(scenes):
    objects = [a for _, annotations in scenes for a in annotations]
    assert {a["badge_place"] for a in objects} == set(cs.PLACES)
    for side in cs.SIDES:
        ends = Counter(a["part_names"][side].split("_")[-1] for a in objects)
        assert len(ends) >= 7
        assert max(ends.values()) < 0.7 * len(objects)


def test_statistics_by_hand():
    """
    A box of 40 x 20 pixels with a badge of 20 x 10 in its middle (chance 25 %) and decoys of
    10 x 20 and 10 x 10 (37.5 %), and one whose badge, the right half, just misses the centre pixel
    that belongs to the left half. The parts that end sides are whole, half or a quarter of the line
    2 pixels (5 % of 40) and 1 pixel (5 % of 20) inside, and on its middle or not.
    """

    def rle(y1, y2, x1, x2):
        mask = np.zeros((60, 80), np.uint8, order="F")
        mask[30 + y1 : 30 + y2, 10 + x1 : 10 + x2] = 1
        return coco_mask.encode(mask)

    sides = {
        "left": rle(0, 20, 2, 3),  # the whole line and its middle
        "top": rle(1, 2, 0, 10),  # a quarter, off the middle
        "right": rle(5, 15, 37, 38),  # a half with the middle
        "bottom": rle(19, 20, 0, 40),  # at the very edge only: not on the line
    }
    first = {
        "bbox": [10.0, 30.0, 40.0, 20.0],
        "visibility": {"object": 1.0, "class": 1.0},
        "part_segmentations": {"class": rle(5, 15, 10, 30), **sides},
        "decoy_segmentations": {"head": rle(0, 20, 0, 10), "chest": rle(10, 20, 15, 25)},
    }
    second = {**first, "part_segmentations": {"class": rle(0, 20, 21, 40), **sides}}
    del second["decoy_segmentations"]
    hidden = {**first, "visibility": {"object": 0.999, "class": 1.0}}
    assert position_statistics([[first, hidden], [], [second]], grid=4) == pytest.approx(
        {
            "unhidden": 2,
            "badge_chance": (25 + 47.5) / 2,
            "badge_centre": 50,
            "badge_best": 100,  # relative places 5/8 are at pixels (12, 25): on both badges
            "decoys_chance": 37.5 / 2,
            "decoys_centre": 50,
            "sides_chance": 100 * (1 + 0.25 + 0.5 + 0) / 4,
            "sides_middle": 50,
        }
    )
    assert position_statistics([[hidden]]) == {"unhidden": 0}


# ---------------------------------------------------------------- badge and decoys


def test_decoys_are_annotated_as_painted(scenes):
    """Oracle: of each decoy, in each picture, the pixels that keep its label at the very top."""
    count = 0
    for scene, objects in scenes[:10]:
        top = np.zeros((scene.config.height, scene.config.width, 2), int)
        for k, placement in enumerate(scene.placements):
            label = cs.draw_character(placement.character).label
            top[placement.window()][label > 0] = np.stack((label, label * 0 + k), 2)[label > 0]
        for k, (placement, a) in enumerate(zip(scene.placements, objects, strict=True)):
            assert a["badge_place"] == placement.character.badge_place
            assert a["badge_place"] not in a["decoy_segmentations"]
            for decoy in placement.character.decoys:
                label = PART_LABEL[f"decoy_{decoy.place}"]
                expected = (top == (label, k)).all(2)
                if not expected.any():
                    assert decoy.place not in a["decoy_segmentations"]
                    continue
                mask, count = coco_mask.decode(a["decoy_segmentations"][decoy.place]), count + 1
                np.testing.assert_array_equal(mask, expected)
    assert count > 50


def test_nothing_a_robot_wears_covers_its_badge():
    """Wherever it is, the badge's mask is the whole plate: a disc of pi unit^2, or nearly."""
    rng = np.random.RandomState(0)
    for k in range(60):
        character = replace(cs.sample_scattered(rng, k % 6, 14.0, (3, 3)), plate="round")
        area = (cs.draw_character(character).label == PART_LABEL["badge"]).sum()
        assert area == pytest.approx(np.pi * 14**2, rel=0.01)


def test_decoys_do_not_depend_on_the_class():
    """Same draws for every class, and glyphs of all classes equally often: 1/6 +- 4 s.d."""
    for seed in range(20):
        first, second = (
            cs.sample_scattered(np.random.RandomState(seed), k, 12.0, (1, 3)) for k in (0, 4)
        )
        assert replace(second, category=0) == first
    rng = np.random.RandomState(1)
    robots = [cs.sample_scattered(rng, 2, 12.0, (1, 3)) for _ in range(600)]
    glyphs = Counter(decoy.category for robot in robots for decoy in robot.decoys)
    expected = glyphs.total() / 6
    assert all(abs(glyphs[k] - expected) < 4 * np.sqrt(expected * 5 / 6) for k in range(6))
    assert {len(robot.decoys) for robot in robots} == {1, 2, 3}
    for robot in robots:
        places = [robot.badge_place, *(decoy.place for decoy in robot.decoys)]
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("turn", [0, 17, 40])
def test_frames_are_notched_and_plates_are_not(turn):
    """What tells badge from decoy: how much of its convex hull a plate fills."""
    x, y = np.arange(200, dtype=np.float32)[None] + 0.5, np.arange(200, dtype=np.float32)[:, None]
    for name in (*PLATES, *FRAMES):
        mask = plate_shape(name, (100.0, 100.0), 70.0, turn).distance(x, y) <= 0
        rows, columns = np.nonzero(mask)
        x0, y0, x1, y1 = plate_bounds((100.0, 100.0), 70.0)
        assert x0 <= columns.min() < columns.max() <= x1
        assert y0 <= rows.min() < rows.max() <= y1
        hull = cv2.contourArea(cv2.convexHull(np.stack((columns, rows), 1).astype(np.int32)))
        assert (mask.sum() < 0.9 * hull) == (name in FRAMES)

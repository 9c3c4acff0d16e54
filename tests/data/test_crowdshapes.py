"""CrowdShapes: the same bytes everywhere, true annotations, atomic builds."""

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_mask

from odam_d2.data import crowdshapes as cs
from odam_d2.data import paths
from odam_d2.data.crowdshapes import dataset, shapes
from odam_d2.data.crowdshapes.__main__ import main
from odam_d2.data.crowdshapes.character import PART_LABEL
from odam_d2.data.crowdshapes.statistics import crowding_statistics

TINY = cs.Split(
    replace(cs.PRESETS["plain"], width=200, height=150, num_objects=(2, 3), unit=(9.0, 11.0)),
    seed=5,
    num_images=3,
)
NAME = "crowdshapes_tiny_for_tests"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def annotations_of(split: cs.Split, index: int) -> list[dict]:
    """What `generate` returns beside the image, without drawing it."""
    return cs.annotate(cs.layout_of(cs.sample_scene(split.config, (split.seed, index))))


@pytest.fixture(scope="module")
def scenes() -> list[tuple[cs.Scene, list[dict]]]:
    result = []
    for name in ("crowdshapes_val", "crowdshapes_crowded_val", "crowdshapes_scattered_val"):
        for index in range(4):
            scene = cs.sample_scene(cs.SPLITS[name].config, (cs.SPLITS[name].seed, index))
            result.append((scene, cs.annotate(cs.layout_of(scene))))
    return result


# ---------------------------------------------------------------- the same bytes everywhere


@pytest.mark.parametrize(
    ("name", "index", "pixels", "annotations"),
    [
        ("crowdshapes_train", 0, "dbf871f2c67df93f", "8e990a3a56d032fe"),
        ("crowdshapes_train", 799, "38705681b1864746", "11ac2e0ff20ce444"),
        ("crowdshapes_val", 0, "8c57607f2f0ed731", "b5a31cf17d82ae87"),
        ("crowdshapes_val", 119, "c3fba14335b62565", "e2d976284abe9bcf"),
        ("crowdshapes_crowded_train", 299, "f040e313583a440d", "a4b0abc215d06d96"),
        ("crowdshapes_crowded_val", 0, "b53783e433145dc1", "78d60aa41bbf47c2"),
        ("crowdshapes_scattered_train", 0, "ab6e17ad3c4b5f14", "39ca3a0233dba21d"),
        ("crowdshapes_scattered_train", 799, "5bf3f0bfdff88d7c", "485aa3d5dd0b0d35"),
        ("crowdshapes_scattered_train", 3199, "c46ce3608579ce8a", "41713f3fbf042068"),
        ("crowdshapes_scattered_val", 0, "1dc21332fcbe8007", "42a55716109a12a8"),
        ("crowdshapes_scattered_val", 119, "4bfb012b64378157", "5057707380189b5c"),
    ],
)
def test_bytes_are_pinned(name, index, pixels, annotations):
    """If this fails on purpose, raise GENERATOR_VERSION."""
    split = cs.SPLITS[name]
    image, objects = cs.generate(split.config, split.seed, index)
    assert image.shape == (split.config.height, split.config.width, 3)
    assert image.dtype == np.uint8
    assert sha(image.tobytes()) == pixels
    assert sha(json.dumps(objects, sort_keys=True).encode()) == annotations


def test_image_depends_on_its_index_alone(tmp_path):
    """Longer splits, other orders and other images before it change nothing."""
    few = cs.build_split(NAME, tmp_path / "few", replace(TINY, num_images=2))
    many = cs.build_split(NAME, tmp_path / "many", TINY)
    for index in (1, 0):
        image, _ = cs.generate(TINY.config, TINY.seed, index)
        for folder in (few, many):  # PNG, read back as blue green red
            stored = cv2.imread(str(folder / "images" / f"{index:06d}.png"))
            np.testing.assert_array_equal(stored[..., ::-1], image)
    few, many = (json.loads((f / "annotations.json").read_text()) for f in (few, many))
    assert len(many["images"]) == 3
    assert many["images"][:2] == few["images"]
    assert many["annotations"][: len(few["annotations"])] == few["annotations"]
    assert not np.array_equal(
        cs.generate(TINY.config, 5, 0)[0], cs.generate(TINY.config, 6, 0)[0]
    ), "the seed of the split is ignored"


def test_polygon_and_box_distances_against_opencv():
    y, x = np.mgrid[0:30, 0:40].astype(np.float32) + np.float32(0.5)
    x, y = x[:1], y[:, :1]
    star = shapes.regular_polygon((20.3, 14.8), [12.0, 5.0] * 5, turn=7)
    corners = [shapes.polar((19.0, 15.0), a + 25, 10.0) for a in (30, 150, 210, 330)]
    box = shapes.Box((19.0, 15.0), (10 * np.cos(np.pi / 6).item(), 5.0), 0.0, turn=25)
    for shape, points in ((shapes.Polygon(star), star), (box, corners)):
        contour = np.array(points, np.float32)[:, None]
        expected = [[-cv2.pointPolygonTest(contour, (u, v), True) for u in x[0]] for v in y[:, 0]]
        np.testing.assert_allclose(shape.distance(x, y), expected, atol=2e-3)


# ---------------------------------------------------------------- crowding


def test_crowded_setting_is_as_crowded_as_crowdhuman():
    """About 20 objects and 2.4 same-class pairs of IoU > 0.5 an image; the standard error of the
    mean over 25 images is 0.4 objects and 0.25 pairs."""
    split = cs.SPLITS["crowdshapes_crowded_val"]
    stats = crowding_statistics(annotations_of(split, k) for k in range(25))
    assert stats["images"] == 25
    assert 19.5 < stats["objects_per_image"] < 22.5
    assert 1.8 < stats["same_class_pairs_per_image"] < 3.1
    assert 0.35 < stats["overlapping_fraction"] < 0.55


def test_plain_setting_overlaps_moderately():
    split = cs.SPLITS["crowdshapes_val"]
    stats = crowding_statistics(annotations_of(split, k) for k in range(25))
    assert 5.5 < stats["objects_per_image"] < 7.5
    assert 0.2 < stats["same_class_pairs_per_image"] < 0.8
    assert 0.15 < stats["overlapping_fraction"] < 0.4


def test_statistics_by_hand():
    """10 x 10 boxes: shifted by 3, IoU 70/130 = 0.54; by 5, 50/150 = 0.33; by 6, 40/160 = 0.25."""

    def box(x, y, category):
        return {"bbox": [x, y, 10, 10], "category_id": category}

    first = [box(0, 0, 1), box(3, 0, 1), box(0, 50, 1), box(3, 50, 2)]  # one pair is of one class
    second = [box(0, 0, 1), box(5, 0, 1), box(0, 50, 1), box(6, 50, 1)]  # two objects beyond 0.3
    assert crowding_statistics([first, second, []]) == {
        "images": 3,
        "objects_per_image": 8 / 3,
        "same_class_pairs_per_image": 1 / 3,
        "overlapping_fraction": 6 / 8,
    }


# ---------------------------------------------------------------- annotations


def test_boxes_and_areas_fit_the_visible_masks(scenes):
    for scene, objects in scenes:
        covered = np.zeros((scene.config.height, scene.config.width), int)
        for a in objects:
            rle = a["segmentation"]
            assert rle["size"] == [scene.config.height, scene.config.width]
            assert a["bbox"] == coco_mask.toBbox(rle).tolist()
            assert a["area"] == coco_mask.area(rle)
            assert a["iscrowd"] == 0
            covered += coco_mask.decode(rle)
        assert covered.max() == 1, "two objects own one pixel"
        assert len(objects) == len(scene.placements)


def test_visible_masks_against_painting_back_to_front(scenes):
    """Oracle: write whole silhouettes in order; the last writer owns the pixel."""
    for scene, objects in scenes:
        owner = np.full((scene.config.height, scene.config.width), -1)
        for k, placement in enumerate(scene.placements):
            label = cs.draw_character(placement.character).label
            owner[placement.window()][label > 0] = k
        for k, a in enumerate(objects):
            np.testing.assert_array_equal(coco_mask.decode(a["segmentation"]), owner == k)


def test_parts_lie_inside_the_object_and_end_its_box(scenes):
    for _, objects in scenes:
        for a in objects:
            mask = coco_mask.decode(a["segmentation"]).astype(bool)
            parts = {k: coco_mask.decode(v) > 0 for k, v in a["part_segmentations"].items()}
            assert set(parts) == set(a["part_names"]) == {"class", *cs.SIDES}
            assert all(not (part & ~mask).any() for part in parts.values())
            x, y, width, height = a["bbox"]
            assert parts["left"][:, x].any()
            assert parts["top"][y].any()
            assert parts["right"][:, x + width - 1].any()
            assert parts["bottom"][y + height - 1].any()
            assert a["part_names"]["class"] == "badge"
            # whatever ends a side, it is one part, the same mask under every side it ends
            for side in cs.SIDES:
                for other in cs.SIDES:
                    same = a["part_names"][side] == a["part_names"][other]
                    assert same == np.array_equal(parts[side], parts[other])


def test_side_parts_are_where_their_names_say(scenes):
    """Of upright, unhidden characters feet end the bottom and nothing of the left the right.
    (Those with a scattered badge end in many other ways.)"""
    checked = 0
    for scene, objects in scenes[:8]:
        for placement, a in zip(scene.placements, objects, strict=True):
            if abs(placement.character.tilt) > 8 or a["visibility"]["object"] < 1:
                continue
            names, checked = a["part_names"], checked + 1
            assert names["bottom"].endswith(("foot", "shin"))
            assert not names["left"].startswith("right")
            assert not names["right"].startswith("left")
            assert (
                names["top"] in ("antenna", "head")
                or "arm" in names["top"]
                or "hand" in (names["top"])
            )
    assert checked >= 8


def test_badges_stay_visible(scenes):
    for scene, objects in scenes:
        for placement, a in zip(scene.placements, objects, strict=True):
            label = cs.draw_character(placement.character).label
            whole = int((label == PART_LABEL["badge"]).sum())
            seen = int(coco_mask.area(a["part_segmentations"]["class"]))
            assert a["visibility"]["class"] == pytest.approx(seen / whole, abs=5.1e-4)
            assert a["visibility"]["object"] == pytest.approx(
                a["area"] / int((label > 0).sum()), abs=5.1e-4
            )
            assert seen >= 0.5 * whole
            assert a["visibility"]["object"] >= 0.5


def test_an_object_never_covers_its_own_badge():
    """Whatever the pose, the badge's mask is the whole plate: a disc of pi unit^2, or nearly."""
    rng = np.random.RandomState(0)
    for k in range(40):
        character = replace(cs.sample_character(rng, k % 6, 14.0), plate="round")
        area = (cs.draw_character(character).label == PART_LABEL["badge"]).sum()
        assert area == pytest.approx(np.pi * 14**2, rel=0.01)


# ---------------------------------------------------------------- classes share the body


def with_categories(scene: cs.Scene, categories: list[int]) -> cs.Scene:
    """The same scene, pose for pose and colour for colour, with other classes."""
    placements = tuple(
        replace(p, character=replace(p.character, category=k))
        for p, k in zip(scene.placements, categories, strict=True)
    )
    return replace(scene, placements=placements)


@pytest.mark.parametrize("which", [1, 5, 9])
def test_classes_differ_only_inside_the_badge(scenes, which):
    scene, objects = scenes[which]
    count = len(cs.CLASSES)
    changed = [(p.character.category + 1 + k) % count for k, p in enumerate(scene.placements)]
    changed = [
        c if c != p.character.category else (c + 1) % count
        for c, p in zip(changed, scene.placements, strict=True)
    ]
    other = with_categories(scene, changed)
    differs = (cs.render_scene(scene) != cs.render_scene(other)).any(2)

    badges = np.zeros(differs.shape, np.uint8)
    for a in objects:
        visible = coco_mask.decode(a["part_segmentations"]["class"])
        assert (differs & (visible > 0)).sum() >= 8, "the class cannot be seen"
        badges |= visible
    # One pixel beyond a hidden border of a badge the occluder's edge is translucent.
    assert not (differs & (cv2.dilate(badges, np.ones((3, 3), np.uint8)) == 0)).any()
    others = cs.annotate(cs.layout_of(other))
    assert [a.pop("category_id") - 1 for a in others] == changed
    assert others == [{k: v for k, v in a.items() if k != "category_id"} for a in objects]


def test_every_class_has_its_own_glyph():
    character = cs.sample_character(np.random.RandomState(3), 0, 14.0)
    pictures = [cs.draw_character(replace(character, category=k)).rgb for k in range(6)]
    for k, picture in enumerate(pictures):
        for other in pictures[:k]:
            assert (picture != other).any(0).sum() >= 30


def test_appearance_is_drawn_independently_of_the_class():
    for seed in range(20):
        first, second = (cs.sample_character(np.random.RandomState(seed), k, 12.0) for k in (0, 4))
        assert replace(second, category=0) == first


# ---------------------------------------------------------------- building


def leftovers(root: Path) -> list[str]:
    """Everything in the folder of the data set but lock files."""
    return sorted(p.name for p in (root / "crowdshapes").iterdir() if p.suffix != ".lock")


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    real, calls = dataset.generate, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(dataset, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cs.build_split(NAME, tmp_path, TINY)
    assert leftovers(tmp_path) == []
    folder = cs.build_split(NAME, tmp_path, TINY)
    assert leftovers(tmp_path) == [NAME]
    assert len(list((folder / "images").iterdir())) == 3


def test_a_killed_build_is_not_used_and_cleaned_up(tmp_path):
    killed = tmp_path / "crowdshapes" / f".odam-{32 * 'a'}.partial" / "new"
    killed.mkdir(parents=True)
    half = tmp_path / "crowdshapes" / NAME
    half.mkdir()
    (half / "annotations.json").write_text("{}")
    folder = cs.build_split(NAME, tmp_path, TINY)
    assert len(json.loads((folder / "annotations.json").read_text())["images"]) == 3
    assert leftovers(tmp_path) == [NAME]


def test_a_built_split_is_kept_until_the_version_changes(tmp_path, monkeypatch):
    folder = cs.build_split(NAME, tmp_path, TINY)
    marker = folder / "images" / "marker"
    marker.touch()
    cs.build_split(NAME, tmp_path, TINY)
    assert marker.exists()
    monkeypatch.setattr(dataset, "GENERATOR_VERSION", -1)
    cs.build_split(NAME, tmp_path, TINY)
    assert not marker.exists()
    marker.touch()
    cs.build_split(NAME, tmp_path, replace(TINY, num_images=1))
    assert [p.name for p in (folder / "images").iterdir()] == ["000000.png"]


def test_a_second_builder_waits_for_the_first(tmp_path, monkeypatch):
    real, started, release, writes = dataset._write, threading.Event(), threading.Event(), []

    def slow(*args):
        writes.append(args)
        started.set()
        assert release.wait(20)
        real(*args)

    monkeypatch.setattr(dataset, "_write", slow)
    threads = [
        threading.Thread(target=cs.build_split, args=(NAME, tmp_path, TINY)) for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(20)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive(), "the second did not wait"
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(writes) == 1
    assert cs.dataset.is_built(TINY, tmp_path / "crowdshapes" / NAME)


def test_unwritable_folder_is_named_with_the_variable(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()  # a folder cannot be made below a file, not even by root
    with pytest.raises(PermissionError) as error:
        cs.build_split(NAME, blocked, TINY)
    assert str(blocked / "crowdshapes") in str(error.value)
    assert "ODAM_DATASETS" in str(error.value)
    folder = cs.build_split(NAME, tmp_path, TINY)
    monkeypatch.setattr(paths.os, "access", lambda *_: False)
    assert cs.build_split(NAME, tmp_path, TINY) == folder, "reading needs no write permission"
    with pytest.raises(PermissionError, match="ODAM_DATASETS"):
        cs.build_split(NAME, tmp_path, replace(TINY, seed=6))


def test_data_folder_of_the_environment(monkeypatch):
    monkeypatch.setenv("ODAM_DATASETS", "/a")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/b")
    assert paths.datasets_root() == Path("/a")
    monkeypatch.setenv("ODAM_DATASETS", "")
    assert paths.datasets_root() == Path("/b")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert paths.datasets_root() == Path("datasets")


# ---------------------------------------------------------------- Detectron2


def test_splits_are_registered_once():
    cs.register_crowdshapes()  # a second time
    counts = {"train": 800, "val": 120, "crowded_train": 300, "crowded_val": 80}
    counts |= {"scattered_train": 3200, "scattered_val": 120}
    for name, count in counts.items():
        name = f"crowdshapes_{name}"
        assert name in DatasetCatalog.list()
        assert cs.SPLITS[name].num_images == count
        meta = MetadataCatalog.get(name)
        assert meta.thing_classes == list(cs.CLASSES)
        assert meta.evaluator_type == "coco"
        assert meta.json_file.endswith(f"crowdshapes/{name}/annotations.json")
        assert meta.image_root.endswith(f"crowdshapes/{name}/images")
    assert len({split.seed for split in cs.SPLITS.values()}) == 6, "train images in val"


@pytest.fixture
def tiny_registered(tmp_path, monkeypatch):
    """A tiny split under a name of its own, registered as the real ones are."""
    monkeypatch.setattr(dataset, "SPLITS", {NAME: TINY})
    cs.register_crowdshapes(tmp_path)
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_loading_builds_and_keeps_the_parts(tiny_registered):
    assert not (tiny_registered / "crowdshapes").exists(), "registering must not build"
    dicts = DatasetCatalog.get(NAME)
    assert [d["file_name"][-10:] for d in dicts] == ["000000.png", "000001.png", "000002.png"]
    assert (dicts[0]["height"], dicts[0]["width"]) == (150, 200)
    image = cv2.imread(dicts[2]["file_name"])
    assert image.shape == (150, 200, 3)
    expected = annotations_of(TINY, 2)
    for a, b in zip(dicts[2]["annotations"], expected, strict=True):
        assert a["category_id"] == b["category_id"] - 1  # contiguous
        for key in ("bbox", "segmentation", "part_segmentations", "part_names", "visibility"):
            assert a[key] == b[key]


def test_command_line(tiny_registered, monkeypatch, capsys):
    monkeypatch.setattr("odam_d2.data.crowdshapes.__main__.SPLITS", {NAME: TINY})
    main(["--split", NAME, "--out", str(tiny_registered), "--stats"])
    folder, stats = capsys.readouterr().out.splitlines()
    assert Path(folder, "version.json").is_file()
    stats = json.loads(stats)
    assert stats["images"] == 3
    assert stats["badge_centre"] > 50  # in the plain setting the badge is in the middle

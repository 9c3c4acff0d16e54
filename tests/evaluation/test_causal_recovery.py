"""Causal recovery on a detector whose effects are derived by hand, H != W."""

import json

import cv2
import numpy as np
import pytest
import torch
from causal_detector import (
    BOX,
    CORNERS,
    HEIGHT,
    MEAN,
    TARGETS,
    WIDTH,
    causal_detector,
    causal_entries,
    maps_of,
    middle,
    spots,
    white_picture,
)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from odam_d2.core.errors import InputError
from odam_d2.evaluation import CausalRecoveryEvaluator, CausalRecoverySettings
from odam_d2.evaluation.recovery import results
from odam_d2.evaluation.recovery_files import compare_recovery

NAME = "toy_causes"
MEAN_ONLY = CausalRecoverySettings(fills=("mean",), areas=(), batch_size=3)
TRUE = [middle(target) for target in TARGETS]
NOWHERE = [(4, 4)] * 5  # black before and, but for the mean colour, after


@pytest.fixture
def dataset(tmp_path):
    yield from _registered(causal_entries(tmp_path, 2))


@pytest.fixture
def unknown(tmp_path):
    yield from _registered(causal_entries(tmp_path, 2, parts=False))


def _registered(entries):
    DatasetCatalog.register(NAME, lambda: entries)
    MetadataCatalog.get(NAME).thing_classes = ["a", "b"]
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def given(number):
    image = torch.as_tensor(white_picture()).permute(2, 0, 1)
    return {"image_id": f"image {number}", "image": image, "height": HEIGHT, "width": WIDTH}


def explained(model, maps):
    (output,) = model([given(0)])
    found = output["instances"]
    assert len(found) == 2  # the object, and the other one, equally sure
    assert found.pred_boxes.tensor[:, 0].sort().values.tolist() == [8, BOX[0]]
    found.odam_maps = maps
    return [output]


def run(evaluator, model, maps, images=1):
    evaluator.reset()
    for number in range(images):
        evaluator.process([given(number)], explained(model, maps))
    return evaluator.evaluate()["causal_recovery"]


def recovery(maps, settings=MEAN_ONLY, **options):
    model = causal_detector(**options)
    evaluator = CausalRecoveryEvaluator(NAME, settings=settings, model=model)
    return run(evaluator, model, maps), evaluator.effects


def effects_of(effects, edit, reading):
    """By target."""
    fill = effects.fills[0]
    return {key[2]: value for key, value in effects.column(reading, edit, fill).items()}


def test_effects_of_the_true_parts(dataset):
    """The region gets the mean colour: 4 (1 - m) of logit, and 8 (1 - m) pixels of a side."""
    _, effects = recovery(spots(TRUE))
    drop = torch.tensor([3.0, 3 - 4 * (1 - MEAN)]).sigmoid()
    expected = {"class": float(drop[0] - drop[1])} | dict.fromkeys(TARGETS[1:], 8 * (1 - MEAN))
    for reading in ("place", "detection"):
        found = effects_of(effects, "part", reading)
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_right_place_is_worth_100_and_any_other_0(dataset):
    right, _ = recovery(spots(TRUE))
    wrong, _ = recovery(spots(NOWHERE))
    nothing, _ = recovery(spots([None] * 5))
    for name in ("class", "sides", *TARGETS[1:]):
        for key in (name, f"{name}_detection"):
            assert right[key] == pytest.approx(100, abs=1e-3)
            assert wrong[key] == pytest.approx(0, abs=1e-3)
            assert nothing[key] == 0
    assert right["num_objects"] == 1


def test_patches_have_the_shape_of_the_part_dilated_by_two_pixels(dataset):
    """6 columns to the right, a patch of 12 x 12 covers the right half of a region of 8 x 8."""
    for shift, share in ((2, 1), (6, 1 / 2), (-6, 1 / 2), (8, 1 / 4), (10, 0)):
        found, _ = recovery(spots([(row, column + shift) for row, column in TRUE]))
        assert found["left"] == pytest.approx(100 * share, abs=0.1)


def test_areas_are_the_highest_pixels_in_areas_of_the_patch(dataset):
    """A map on the 64 pixels of its region: 36 of them are a quarter of the patch of 144."""
    values = torch.zeros(2, 5, HEIGHT, WIDTH)
    for number, target in enumerate(TARGETS):
        row, column = CORNERS[target]
        values[:, number, row : row + 8, column : column + 8] = 1
    settings = CausalRecoverySettings(fills=("mean",), areas=(0.25, 1.0))
    _, effects = recovery(maps_of(values), settings)
    areas = results(effects)["areas"]["place"]["sides"]
    assert areas["0.25"]["value"] == pytest.approx(100 * 36 / 64, abs=0.1)
    assert areas["1"]["value"] == pytest.approx(100, abs=0.1)  # not more than what is positive


def test_a_detection_that_is_gone_has_no_probability_and_tells_nothing_of_sides(dataset):
    """Above a score of 0.5 nothing is left without the badge, also where its sides are asked."""
    maps = spots([middle("class")] * 5)
    found, effects = recovery(maps, test_score_thresh=0.5)
    assert effects_of(effects, "part", "detection")["class"] == pytest.approx(
        float(torch.tensor(3.0).sigmoid()), abs=1e-4
    )
    assert found["class_detection"] == pytest.approx(100, abs=1e-3)
    assert found["sides_detection"] == 0
    lost = {row["target"]: row["lost"] for row in effects.rows if row["edit"] == "peak"}
    assert all(lost.values())
    assert results(effects)["lost"]["mean"] == {"peak": 100, "part": 20}  # of 5 parts, the badge


def test_evidence_against_is_removed_by_itself(dataset, tmp_path):
    """What is found below zero is the other object's region, or with a wrong sign the cause."""
    maps, nowhere = spots(TRUE), spots([middle("other")] * 5)
    maps.values = maps.values - 2 * nowhere.values  # the larger of the two
    wrong, maps.signed = maps._replace(values=-maps.values), True
    wrong.signed = True
    found, effects = recovery(maps)
    plain, _ = recovery(spots(TRUE))
    np.testing.assert_equal(found, plain)  # nan too: of one image there is no interval
    assert results(effects)["against"]["place"]["sides"]["mean"]["value"] == pytest.approx(0)
    _, turned = recovery(wrong)
    for reading in ("place", "detection"):
        of_group = results(turned)["against"][reading]
        assert of_group["sides"]["mean"]["value"] == pytest.approx(100, abs=1e-3)
    text = compare_recovery(tmp_path, {"mine": effects, "wrong": turned}).read_text()
    table = text.split("evidence against")[1].split("Edits that")[0]
    assert "| wrong | 100 | 100 | 100 | 100 |" in table  # of one image: no interval
    assert "| mine | 0 |" in table


def test_edits_that_change_other_detections_are_counted(dataset):
    """The map of one of five targets is on the other detection's region."""
    _, effects = recovery(spots([*TRUE[:4], middle("other")]))
    assert results(effects)["others_changed"]["mean"] == {"peak": 20, "part": 0}


def test_every_fill_is_another_picture(dataset):
    """The other image is the same here, so that nothing changes; inpainting black gives black."""
    settings = CausalRecoverySettings(fills=("inpaint", "mean", "other"), areas=())
    _, effects = recovery(spots(TRUE), settings)
    by_fill = {
        fill: effects.column("place", "part", fill)[("image 0", 0, "left")]
        for fill in settings.fills
    }
    assert by_fill["inpaint"] == pytest.approx(8, abs=0.01)
    assert by_fill["mean"] == pytest.approx(8 * (1 - MEAN), abs=0.01)
    assert by_fill["other"] == pytest.approx(0, abs=1e-4)
    assert results(effects)["recovery"]["place"]["class"]["other"] is None


def test_without_parts_the_best_place_of_a_grid_stands_for_the_cause(unknown):
    """
    Patches of 16 x 16, a quarter of the box, every 8 pixels: one of them covers a whole region. The
    mean of the grid is less than that.
    """
    _, effects = recovery(spots(TRUE))
    assert effects.truth == "best"
    best = effects_of(effects, "best", "place")
    assert best == pytest.approx(
        {"class": best["class"]} | dict.fromkeys(TARGETS[1:], 8 * (1 - MEAN)), rel=1e-3
    )
    found = results(effects)
    assert found["recovery"]["place"]["sides"]["mean"]["value"] == pytest.approx(100, abs=0.1)
    anywhere = found["references"]["place"]["sides"]["anywhere"]["value"]
    # Of the 81 places along each axis those within 4 pixels of the best one cover all or half.
    assert 1 < anywhere < 10


def test_a_coco_file_whose_pictures_are_shown_at_another_size(tmp_path):
    """
    A data set of one's own, half as large as what the detector sees, with a crowd and another class
    in it: the same effects as above.
    """
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "b"},
                                                               {"id": 7, "name": "a"}]}  # fmt: skip
    x1, y1, x2, y2 = (value / 2 for value in BOX)
    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 900}
    size = {"height": HEIGHT // 2, "width": WIDTH // 2}
    for number in range(2):
        small = cv2.resize(white_picture(), (size["width"], size["height"]))
        cv2.imwrite(str(tmp_path / f"small {number}.png"), small)
        content["images"].append({"id": number, "file_name": f"small {number}.png", **size})
        for category, crowd in ((7, 1), (3, 0), (7, 0)):
            known = {"id": len(content["annotations"]) + 1, "image_id": number, "iscrowd": crowd}
            content["annotations"].append({**box, **known, "category_id": category})
    (tmp_path / "mine.json").write_text(json.dumps(content))
    register_coco_instances("mine", {}, str(tmp_path / "mine.json"), str(tmp_path))
    try:
        settings = CausalRecoverySettings(fills=("mean", "other"), areas=(), batch_size=20)
        model = causal_detector()
        # Detectron2 numbers classes by their ids: "b" is 0, which the detector finds.
        evaluator = CausalRecoveryEvaluator("mine", settings=settings, model=model)
        own = given(0) | size | {"image_id": 0}
        (output,) = model([own])
        output["instances"].odam_maps = spots(TRUE)
        evaluator.reset()
        evaluator.process([own], [output])
        found = evaluator.evaluate()["causal_recovery"]
    finally:
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")
    assert found["num_objects"] == 1
    assert found["sides"] == pytest.approx(100, abs=0.1)
    assert found["class"] == pytest.approx(100, abs=0.1)
    best = effects_of(evaluator.effects, "best", "place")
    assert best["left"] == pytest.approx(8 * (1 - MEAN), rel=1e-3)


def test_hidden_objects_and_other_classes_do_not_count(dataset):
    entries = DatasetCatalog.get(NAME)
    entries[0]["annotations"][0]["visibility"] = {"class": 1.0, "object": 0.9}
    entries[1]["annotations"][0]["category_id"] = 1
    model = causal_detector()
    evaluator = CausalRecoveryEvaluator(NAME, settings=MEAN_ONLY, model=model)
    assert run(evaluator, model, spots(TRUE), images=2) == {"num_objects": 0}


def test_interrupted_and_resumed_and_shared(dataset, tmp_path):
    """Images are not asked again, nor what does not depend on the maps for another method."""

    def evaluator(method, resume=True):
        return CausalRecoveryEvaluator(
            NAME, str(tmp_path / method), MEAN_ONLY, model=model, targets=TARGETS,
            references=str(tmp_path / "references"), resume=resume, fingerprint={"method": method},
        )  # fmt: skip

    def passes(number, evaluator, maps):
        output = explained(model, maps)
        model.backbone.images.clear()
        evaluator.process([given(number)], output)
        return sum(model.backbone.images)

    model = causal_detector()
    whole = run(evaluator("whole", resume=False), model, spots(TRUE), images=2)
    for path in (tmp_path / "references").iterdir():
        path.unlink()
    first = evaluator("a")
    first.reset()
    # The image itself; 5 peaks; for each target the part and a random place.
    assert passes(0, first, spots(TRUE)) == 1 + 5 + 10
    again = evaluator("a")
    assert again.done == {"image 0"}
    again.reset()
    assert passes(0, again, spots(TRUE)) == 0
    assert passes(1, again, spots(TRUE)) == 16
    assert again.evaluate()["causal_recovery"] == whole
    other = evaluator("b")
    other.reset()
    assert passes(0, other, spots(NOWHERE)) == 6
    assert passes(1, other, spots(NOWHERE)) == 6
    assert other.evaluate()["causal_recovery"]["class"] == pytest.approx(0, abs=1e-3)
    changed = CausalRecoverySettings(fills=("blur",), areas=())
    assert not CausalRecoveryEvaluator(
        NAME, str(tmp_path / "a"), changed, model=model, resume=True
    ).done


def test_tables_and_files(dataset, tmp_path):
    """Two methods, one right and one wrong: the right one is ahead, and in bold."""
    effects = {}
    settings = CausalRecoverySettings(fills=("mean", "inpaint"), areas=(0.5, 1.0))
    for name, places in (("odam", NOWHERE), ("mine", TRUE), ("side_middle", TRUE)):
        model = causal_detector()
        evaluator = CausalRecoveryEvaluator(NAME, str(tmp_path / name), settings, model=model)
        run(evaluator, model, spots(places), images=2)
        effects[name] = evaluator.effects
        content = json.loads((tmp_path / name / "causal_recovery.json").read_text())
        assert content["truth"] == "part"
    text = compare_recovery(tmp_path, effects).read_text()
    content = json.loads((tmp_path / "causal_recovery.json").read_text())
    ahead = content["mine"]["ahead_of"]["odam"]["place"]["sides"]["mean"]
    assert (ahead["value"], ahead["low"]) == pytest.approx((100, 100), abs=0.01)
    assert ahead["decisions"] == 8  # two images, four sides
    line = next(row for row in text.splitlines() if row.startswith("| mine |"))
    assert line.count("**+100 [+100, +100]**") == 2
    assert line.endswith("| 2 |")
    assert (tmp_path / "causal_recovery.png").stat().st_size > 5000


def test_a_method_of_the_class_alone_leaves_the_others_their_columns(dataset, tmp_path):
    effects = {}
    for name, maps in (("d_rise", maps_of(torch.ones(2, 1, HEIGHT, WIDTH))), ("odam", spots(TRUE))):
        model = causal_detector()
        evaluator = CausalRecoveryEvaluator(NAME, settings=MEAN_ONLY, model=model, targets=TARGETS)
        run(evaluator, model, maps)
        effects[name] = evaluator.effects
    lines = compare_recovery(tmp_path, effects).read_text().splitlines()
    assert lines[2].startswith("Without side_middle among the methods")
    place = {line.split(" | ")[0]: line.split(" | ") for line in reversed(lines)}
    # method, class, class - odam, sides, sides - odam, objects
    assert place["| d_rise"][3:5] == ["", ""]
    assert place["| odam"][3] == "100"  # of one image: no interval
    assert place["| the effect itself (probability, px)"][3] == f"{8 * (1 - MEAN):.2f}"
    assert place["| a random place"][3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CausalRecoverySettings(fills=()), "FILLS is empty"),
        (lambda: CausalRecoverySettings(fills=("black",)), "FILLS is 'black'; it must be one of"),
        (lambda: CausalRecoverySettings(areas=(0.0,)), r"AREAS is 0\.0"),
        (lambda: CausalRecoverySettings(per_image=-2), "PER_IMAGE is -2"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_one_image_has_no_other(tmp_path):
    for _ in _registered(causal_entries(tmp_path, 1)):
        with pytest.raises(InputError, match=r"has one image; .* 'other' needs two"):
            CausalRecoveryEvaluator(NAME, model=causal_detector())

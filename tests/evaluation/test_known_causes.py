"""The known-cause evaluator, on cases worked out by hand, H != W."""

import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from odam_d2 import OdamMaps
from odam_d2.evaluation.known_causes import (
    KnownCauseEvaluator,
    in_half_of_side,
    match_to_objects,
    peak_on_mask,
)

HEIGHT, WIDTH = 16, 24


def spot(row, column):
    heat = torch.zeros(HEIGHT, WIDTH)
    heat[row, column] = 1.0
    return heat


def test_flat_and_zero_maps_do_not_win():
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[:4, :6] = True  # a sixteenth
    assert peak_on_mask(torch.ones(HEIGHT, WIDTH), mask) == 1 / 16
    assert peak_on_mask(torch.zeros(HEIGHT, WIDTH), mask) == 0
    assert peak_on_mask(spot(3, 5), mask) == 1
    assert peak_on_mask(spot(5, 3), mask) == 0


@pytest.mark.parametrize(
    ("row", "column", "hits"),
    [(2, 3, {"left", "top"}), (2, 20, {"right", "top"}), (14, 3, {"left", "bottom"})],
)
def test_halves_of_the_box(row, column, hits):
    """The box's centre is (x, y) = (10, 6), not the image's (12, 8)."""
    box = (4.0, 2.0, 16.0, 10.0)
    found = {s for s in ("left", "top", "right", "bottom")
             if in_half_of_side(spot(row, column), box, s)}  # fmt: skip
    assert found == hits
    assert in_half_of_side(spot(7, 11), box, "right") == 1
    assert in_half_of_side(spot(7, 11), box, "top") == 0


@pytest.mark.parametrize("lines", [(6, 10), (5, 9)], ids=["even", "odd"])
def test_halves_are_cut_at_the_centre_of_pixels(lines):
    """Pixel x has its centre at x + 0.5: beside a cut at 10 lie pixels 9 and 10."""
    row, column = lines
    box = (4.0, 2.0, 2 * column - 4.0, 2 * row - 2.0)  # cut at y = row, x = column
    for side, before, after in (("left", 1, 0), ("right", 0, 1)):
        assert in_half_of_side(spot(3, column - 1), box, side) == before
        assert in_half_of_side(spot(3, column), box, side) == after
    for side, before, after in (("top", 1, 0), ("bottom", 0, 1)):
        assert in_half_of_side(spot(row - 1, 6), box, side) == before
        assert in_half_of_side(spot(row, 6), box, side) == after


def test_a_pixel_on_the_cut_lies_in_both_halves():
    """A box of odd width and height, 4..15 x 2..11, is cut through the middle of a pixel."""
    for side in ("left", "top", "right", "bottom"):
        assert in_half_of_side(spot(6, 9), (4.0, 2.0, 15.0, 11.0), side) == 1


def detections(boxes, scores, classes):
    return Instances(
        (HEIGHT, WIDTH), pred_boxes=Boxes(boxes), scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )  # fmt: skip


def test_matching_takes_each_object_once_and_the_right_class():
    objects = Boxes([[0.0, 0, 10, 10], [12, 0, 22, 10]])
    labels = torch.tensor([0, 1])
    found = detections(
        [[0.0, 0, 10, 9], [0, 0, 10, 10], [12, 0, 22, 10], [12, 0, 22, 9]],
        [0.9, 0.8, 0.95, 0.3],
        [0, 0, 0, 1],
    )
    # Best score first: the third has the wrong class there; the second finds object 0 taken.
    assert match_to_objects(found, objects, labels, 0.5) == [(0, 0), (3, 1)]
    assert match_to_objects(found, objects, labels, 0.95) == [(1, 0)]
    assert match_to_objects(found[:0], objects, labels, 0.5) == []


@pytest.fixture
def toy_set():
    """Three images of one object: box 4..16 x 2..10, badge in its middle, parts at its ends."""

    def mask(x1, y1, x2, y2):
        canvas = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        canvas[y1:y2, x1:x2] = 1
        return mask_utils.encode(canvas.numpy().copy(order="F"))

    parts = {
        "class": mask(8, 4, 12, 8), "left": mask(4, 4, 6, 6), "top": mask(8, 2, 10, 4),
        "right": mask(14, 4, 16, 6), "bottom": mask(8, 8, 10, 10),
    }  # fmt: skip
    annotation = {
        "bbox": [4, 2, 12, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1,
        "part_segmentations": parts,
    }  # fmt: skip
    hidden = annotation | {"visibility": {"object": 0.9, "class": 0.8}}
    annotation["visibility"] = {"object": 0.9, "class": 1.0}
    images = [
        {"image_id": image_id, "height": HEIGHT, "width": WIDTH, "annotations": [a]}
        for image_id, a in ((7, annotation), (8, hidden), (9, annotation))
    ]
    name = "toy_known_causes"
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def explained(cells, targets, classes=(1,)):
    """A detection of the object whose maps peak at the given (row, column) cells of stride 2."""
    values = torch.zeros(1, len(targets), HEIGHT // 2, WIDTH // 2)
    for t, (row, column) in enumerate(cells):
        values[0, t, row, column] = 1.0
    pair = torch.tensor([[HEIGHT, WIDTH]])
    found = detections([[4.0, 2, 16, 10]], [0.9], list(classes))
    found.odam_maps = OdamMaps(
        targets, values, origins=pair * 0, strides=torch.tensor([2.0]), grid_sizes=pair // 2,
        image_sizes=pair, levels=torch.tensor([0]),
    )  # fmt: skip
    return [{"instances": found}]


def test_evaluator(toy_set):
    evaluator = KnownCauseEvaluator(toy_set)
    inputs = [[{"image_id": number}] for number in (7, 8, 9)]
    # Cell (2, 4) covers pixels 4..5 x 8..9, on the badge; (2, 2) covers the left part; (1, 10) is
    # above, far off the top part; the right map peaks on the left.
    targets = ("class", "left", "top", "right")
    evaluator.process(inputs[0], explained([(2, 4), (2, 2), (1, 10), (2, 2)], targets))
    evaluator.process(inputs[1], explained([(7, 11), (2, 2), (1, 4), (2, 7)], targets))
    evaluator.process(inputs[2], explained([(2, 4)] * 4, targets, classes=(0,)))  # wrong class
    result = evaluator.evaluate()["known_causes"]
    assert result["num_detections"] == 2
    assert result["class"] == 50
    assert result["class_unoccluded"] == 100  # of the second object, the badge is partly hidden
    assert result["class_chance"] == pytest.approx(100 * 16 / 96)
    assert (result["left"], result["left_on_part"]) == (100, 100)
    assert (result["top"], result["top_on_part"]) == (100, 50)
    assert (result["right"], result["right_on_part"]) == (50, 50)
    assert "bottom" not in result
    for side in ("left", "top", "right"):  # 2 x 2 pixels of 12 x 8
        assert result[f"{side}_on_part_chance"] == pytest.approx(100 * 4 / 96)
    evaluator.reset()
    assert evaluator.evaluate()["known_causes"] == {"num_detections": 0}


def test_peaks_on_decoys(toy_set):
    """Two decoys of 4 x 4 and 2 x 2 pixels, 20 of the box's 96; the peak is on the smaller one."""
    first, second = (DatasetCatalog.get(toy_set)[k]["annotations"][0] for k in (0, 1))
    sizes = {"head": (slice(2, 6), slice(4, 8)), "belly": (slice(8, 10), slice(12, 14))}
    first["decoy_segmentations"] = {}
    for place, where in sizes.items():
        canvas = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        canvas[where] = 1
        rle = mask_utils.encode(canvas.numpy().copy(order="F"))
        first["decoy_segmentations"][place] = rle
    second["decoy_segmentations"] = {}  # all are hidden
    evaluator = KnownCauseEvaluator(toy_set)
    evaluator.process([{"image_id": 7}], explained([(4, 6)], ("class",)))
    result = evaluator.evaluate()["known_causes"]
    assert (result["class"], result["class_on_decoys"]) == (0, 100)
    assert result["class_on_decoys_chance"] == pytest.approx(100 * 20 / 96)
    evaluator.process([{"image_id": 8}], explained([(2, 4)], ("class",)))
    result = evaluator.evaluate()["known_causes"]
    assert (result["class"], result["class_on_decoys"]) == (50, 50)
    assert result["class_on_decoys_chance"] == pytest.approx(100 * 10 / 96)


def test_evidence_against_is_counted_by_itself(toy_set):
    """Evidence for peaks on the badge and on the left part, that against elsewhere and there."""
    (output,) = explained([(2, 4), (2, 2)], ("class", "left"))
    maps = output["instances"].odam_maps
    maps.signed = True
    maps.values[0, 0, 7, 11] = maps.values[0, 1, 2, 2] = -2.0  # larger than the evidence for
    maps.values[0, 1, 2, 3] = 1.0  # beside it; the part ends at column 6
    evaluator = KnownCauseEvaluator(toy_set)
    evaluator.process([{"image_id": 7}], [output])
    result = evaluator.evaluate()["known_causes"]
    assert (result["class"], result["class_against_on_part"]) == (100, 0)
    assert (result["left_on_part"], result["left_against_on_part"]) == (0, 100)


def test_a_data_set_without_parts_is_refused(toy_set):
    DatasetCatalog.get(toy_set)[0]["annotations"][0].pop("part_segmentations")
    with pytest.raises(ValueError, match="no part_segmentations"):
        KnownCauseEvaluator(toy_set)

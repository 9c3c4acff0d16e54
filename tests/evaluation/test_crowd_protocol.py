"""CrowdHuman's protocol: a published case, values by hand, and plain loops."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odam_d2.evaluation.crowd_protocol import (
    Case,
    average_precision,
    box_overlaps,
    jaccard_index,
    match,
    miss_rate,
    recall_at_precision,
)

GOLDEN = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "crowdhuman_golden"


def golden_cases():
    truth = [json.loads(line) for line in (GOLDEN / "gt.odgt").read_text().splitlines()]
    found = {x["ID"]: x for x in map(json.loads, (GOLDEN / "det.jsonl").read_text().splitlines())}
    for image in truth:
        given_boxes = found[image["ID"]]
        objects = np.array([b["fbox"] for b in image["gtboxes"]], float).reshape(-1, 4)
        ignore = [b["tag"] != "person" or b.get("extra", {}).get("ignore", 0) != 0
                  for b in image["gtboxes"]]  # fmt: skip
        boxes = np.array([b["box"] for b in given_boxes["dtboxes"]], float).reshape(-1, 4)
        scores = np.array([b["score"] for b in given_boxes["dtboxes"]])
        for xywh in (objects, boxes):
            xywh[:, 2:] += xywh[:, :2]
        size = (given_boxes["height"], given_boxes["width"])
        yield Case.clipped(size, objects, np.array(ignore), boxes, scores)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="DETECTRON2_DATASETS has no crowdhuman_golden")
def test_the_published_case():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    cases = list(golden_cases())
    matches = match(cases)
    assert len(cases) == expected["images"]
    assert average_precision(matches) == pytest.approx(expected["AP"], abs=1e-6)
    assert recall_at_precision(matches, 0) == pytest.approx(expected["Recall"], abs=1e-6)
    assert miss_rate(matches) == pytest.approx(expected["MR"], abs=1e-6)
    by_threshold = jaccard_index(cases)
    assert by_threshold.tolist() == pytest.approx(expected["JI_by_threshold"], abs=1e-6)
    assert by_threshold.max() == pytest.approx(expected["JI"], abs=1e-6)


def case(objects, boxes, scores, ignore=None, size=(100, 200)):
    objects = np.array(objects, float).reshape(-1, 4)
    ignore = np.zeros(len(objects), bool) if ignore is None else np.array(ignore)
    return Case.clipped(
        size, objects, ignore, np.array(boxes, float).reshape(-1, 4), np.array(scores, float)
    )


TWO = [[0, 0, 10, 20], [40, 0, 50, 20]]


def test_precision_and_recall_by_hand():
    """
    Two objects; detections by score: the first object, nothing, the first again, the second.

    Recall 1/2 1/2 1/2 1, precision 1 1/2 1/3 1/2: the only step of recall is the last one, of
    width 1/2 and mean height (1/3 + 1/2) / 2, so AP is 5/24.
    """
    found = match([case(TWO, [TWO[0], [90, 0, 99, 20], TWO[0], TWO[1]], [0.9, 0.8, 0.7, 0.6])])
    assert found.hits.tolist() == [True, False, False, True]
    assert found.objects.tolist() == [0, -1, -1, 1]
    assert average_precision(found) == pytest.approx(5 / 24)
    assert recall_at_precision(found, 0) == 1
    assert recall_at_precision(found, 0.5) == 1
    assert recall_at_precision(found, 0.6) == 0.5
    assert recall_at_precision(found, 0.6, np.array([False, True])) == 0
    assert recall_at_precision(found, 0.5, np.array([False, True])) == 1
    assert math.isnan(recall_at_precision(found, 0.5, np.array([False, False])))


def test_a_threshold_takes_equal_scores_together():
    """Right, then right and wrong with the same score: precision 1 and 2/3, never 2/2."""
    found = match([case(TWO, [TWO[0], TWO[1], [90, 0, 99, 20]], [0.9, 0.5, 0.5])])
    assert recall_at_precision(found, 0.9) == 0.5
    assert recall_at_precision(found, 0.6) == 1


def test_miss_rate_by_hand():
    """
    One image, as above: false positives per image 0 1 2 2, missed 1/2 1/2 1/2 0. All nine points
    ask for more than none and at most one, so each is read at the second detection.
    """
    found = match([case(TWO, [TWO[0], [90, 0, 99, 20], TWO[0], TWO[1]], [0.9, 0.8, 0.7, 0.6])])
    assert miss_rate(found) == pytest.approx(0.5)
    # In a hundred images the points up to 0.01 are read there, the others at the very end.
    empty = case(np.zeros((0, 4)), np.zeros((0, 4)), [])
    spread = match(
        [case(TWO, [TWO[0], [90, 0, 99, 20], [0, 50, 9, 60]], [0.9, 0.8, 0.7]), *[empty] * 99]
    )
    assert miss_rate(spread) == pytest.approx(0.5)
    all_found = match([case(TWO, TWO, [0.9, 0.8])])
    assert miss_rate(all_found) == 0


def test_jaccard_index_by_hand():
    """Two of two objects and one false detection: 2 / 3; above its score of 0.35, 2 / 2."""
    crowd = case(TWO, [TWO[0], TWO[1], [90, 0, 99, 20]], [0.9, 0.8, 0.35])
    found = jaccard_index([crowd])
    assert found[:4].tolist() == pytest.approx([2 / 3] * 4, abs=1e-6)
    assert found[4:8].tolist() == pytest.approx([1] * 4, abs=1e-6)
    # A score of 0.8 is not above 0.8.
    assert found[8:].tolist() == pytest.approx([1 / 2, 0], abs=1e-6)


def test_jaccard_index_matches_for_the_greatest_sum():
    """The better detection overlaps both; only if it takes the second one, both are found."""
    objects = [[0, 0, 10, 20], [4, 0, 14, 20]]
    boxes = [[3, 0, 13, 20], [0, 0, 10, 20]]  # the first overlaps them by 7/13 and 9/11
    assert jaccard_index([case(objects, boxes, [0.9, 0.8])])[0] == pytest.approx(1, abs=1e-6)


def test_ignore_regions_swallow_by_the_detections_own_area():
    """A small detection in a large region, and a large one around a small region."""
    region = [[100, 0, 200, 100]]
    boxes = [[110, 10, 120, 30], [100, 0, 200, 100], [0, 50, 200, 100], TWO[0]]
    crowd = case([*TWO, *region], boxes, [0.9, 0.8, 0.7, 0.6], [False, False, True])
    found = match([crowd])
    assert found.num_objects == 2
    assert found.scores.tolist() == [0.7, 0.6]  # the third lies in the region by half, not by more
    assert found.hits.tolist() == [False, True]
    assert jaccard_index([crowd])[0] == pytest.approx(1 / 3, abs=1e-6)


def test_an_object_is_matched_before_a_region_swallows():
    crowd = case([TWO[0], [0, 0, 50, 50]], [TWO[0], TWO[0]], [0.9, 0.8], [False, True])
    found = match([crowd])
    assert found.hits.tolist() == [True]  # the duplicate lies in the region


def test_boxes_are_clipped_to_the_image():
    """Half of the object lies outside: clipped, the detection of the rest is a full match."""
    crowd = case([[-10, 0, 10, 20]], [[0, 0, 10, 20]], [0.9])
    assert match([crowd]).hits.all()
    outside = case([[300, 0, 310, 20]], [[199, 0, 200, 20]], [0.9])
    assert match([outside]).hits.all()  # the last column is left of it


def test_nothing_at_all():
    empty = case(np.zeros((0, 4)), np.zeros((0, 4)), [])
    assert math.isnan(average_precision(match([empty])))
    assert math.isnan(miss_rate(match([empty])))
    assert jaccard_index([empty]).tolist() == [0] * 10
    missed = match([case(TWO, np.zeros((0, 4)), [])])
    assert (average_precision(missed), miss_rate(missed), recall_at_precision(missed, 0)) == (
        0,
        1,
        0,
    )
    assert average_precision(match([case(np.zeros((0, 4)), TWO, [0.5, 0.6])])) != 0  # nan


coordinate = st.integers(0, 12)


@st.composite
def some_boxes(draw, most):
    found = []
    for _ in range(draw(st.integers(0, most))):
        a, b, c, d = (draw(coordinate) for _ in range(4))
        found.append([min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1])
    return np.array(found, float).reshape(-1, 4)


def plain_match(crowd):
    """Detection by detection, object by object, as the public tools' documentation tells it."""
    taken, out = set(), []
    for box in crowd.boxes:
        best, best_iou = None, 0.5
        for number, (thing, ignore) in enumerate(zip(crowd.objects, crowd.ignore, strict=True)):
            if number in taken or ignore:
                continue
            iou = box_overlaps(box[None], thing[None])[0, 0]
            if iou > best_iou:
                best, best_iou = number, iou
        regions = crowd.objects[crowd.ignore]
        if best is not None:
            taken.add(best)
            out.append(best)
        elif any(box_overlaps(box[None], r[None], of_first=True)[0, 0] > 0.5 for r in regions):
            out.append(None)
        else:
            out.append(-1)
    return out


@given(some_boxes(5), some_boxes(8), st.randoms(use_true_random=False))
def test_matching_is_the_plain_loop(objects, boxes, random):
    ignore = np.array([random.random() < 0.3 for _ in objects], dtype=bool)
    scores = np.array([random.choice([0.2, 0.5, 0.9]) for _ in boxes])
    crowd = Case.clipped((20, 30), objects, ignore, boxes, scores)
    expected = plain_match(crowd)
    number = np.cumsum(~ignore) - 1  # among those that are not ignored
    expected = [-1 if x == -1 else number[x] for x in expected if x is not None]
    assert match([crowd]).objects.tolist() == expected

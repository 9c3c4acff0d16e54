"""Error types of detections: cases by hand, and each kind's definition in plain Python."""

import pytest
from error_cases import (
    A_LOW,
    B_HALF,
    C_LOW,
    D_LOW,
    FAR,
    A,
    B,
    C,
    D,
    analysed,
    image_strategy,
    kinds,
    sort,
    tensors,
)
from hypothesis import given, settings

from odam_d2.analysis.ap_costs import AnalysedImage, ap_costs
from odam_d2.analysis.error_types import FIXABLE, KINDS, Finding, sort_detections
from odam_d2.core.errors import InputError


def test_each_kind_by_hand():
    objects = [(A, 0), (B, 0), (C, 1), (D, 1), ([80, 0, 100, 10], 0)]
    detections = [
        (FAR, 0.95, 0), (A_LOW, 0.8, 0), (A, 0.9, 0), (B_HALF, 0.7, 0), (C_LOW, 0.6, 0),
        (D_LOW, 0.5, 0), ([99, 0, 119, 10], 0.4, 1),
    ]  # fmt: skip
    found = sort(detections, objects)
    # The last one shares 1*10 of 200 + 200 - 10 = 390 with the last object: less than 0.1.
    # Missed are D, as to move D_LOW would not find it (with 0.2), and the last object.
    assert [(x.kind, x.detection, x.object) for x in found] == [
        ("background", 0, None), ("duplicate", 1, 0), ("correct", 2, 0), ("localisation", 3, 1),
        ("classification", 4, 2), ("both", 5, 3), ("background", 6, None), ("missed", None, 3),
        ("missed", None, 4),
    ]  # fmt: skip
    assert {x.kind for x in found} == set(KINDS)
    assert [x.iou for x in found] == pytest.approx(
        [0, 0.8, 1, 1 / 3, 0.8, 0.2, 0, 0.2, 10 / 390], abs=1e-6
    )


def test_what_a_finding_lacks_is_no_index():
    """``tensor[None]`` would be an answer, of another shape."""
    missed, background = Finding("missed", None, 3, 0.2), Finding("background", 6, None, 0.0)
    assert (missed.object_row, background.detection_row) == (3, 6)
    with pytest.raises(ValueError, match="missed: there is no detection"):
        _ = missed.detection_row
    with pytest.raises(ValueError, match="background: there is no object"):
        _ = background.object_row


def test_localisation_is_before_classification():
    # A_LOW on an object of class 1 with 0.8, and 5 of 15 rows with one of class 0: 100/260.
    objects = [(A, 1), ([0, 3, 20, 13], 0)]
    found = sort([(A_LOW, 0.9, 0)], objects)
    assert found[0] == Finding("localisation", 0, 1, pytest.approx(100 / 260))
    assert found[1:] == [Finding("missed", None, 0, pytest.approx(0.8))]


def test_localisation_is_before_both():
    # 20*2 of 20*8 + 20*10 - 40 = 320, 0.125, with class 0, and 20*3 / 300 = 0.2 with class 1.
    objects = [([0, 6, 20, 16], 0), ([0, -7, 20, 3], 1)]
    assert kinds([(A_LOW, 0.9, 0)], objects) == ["localisation", "missed"]


def test_classification_is_before_duplicate():
    # Both objects coincide. The first detection takes that of its class.
    objects = [(A, 0), (A, 1)]
    found = sort([(A, 0.9, 0), (A_LOW, 0.8, 0)], objects)
    assert [(x.kind, x.object) for x in found] == [("correct", 0), ("classification", 1)]


def test_duplicate_is_before_both():
    # 20*2 / (160 + 200 - 40) = 0.125 with an object of class 1.
    objects = [(A, 0), ([0, 6, 20, 16], 1)]
    assert kinds([(A, 0.9, 0), (A_LOW, 0.8, 0)], objects) == ["correct", "duplicate", "missed"]


def test_a_taken_object_is_no_localisation_error_of_a_second_box_near_a_free_one():
    # With A, which is taken, 0.8; with a free object of the class 100/260.
    objects = [(A, 0), ([0, 3, 20, 13], 0)]
    assert kinds([(A, 0.9, 0), (A_LOW, 0.8, 0)], objects) == ["correct", "duplicate", "missed"]


def test_a_localisation_error_at_a_taken_object_does_not_explain_another():
    # Two of class 0, far from one another: the second box is near the first object only.
    objects = [(A, 0), (B, 0)]
    found = sort([(A, 0.9, 0), ([10, 0, 30, 10], 0.8, 0)], objects)  # 100 / 300
    assert [(x.kind, x.object) for x in found] == [
        ("correct", 0), ("localisation", 0), ("missed", 1),
    ]  # fmt: skip


def test_thresholds_are_reached_by_their_own_value():
    # 20*5 / 200 = 0.5 and 20*1 / 200 = 0.1, of integers exact; a millionth less is not enough.
    half, tenth = ([0, 0, 20, 5], 0.9, 0), ([0, 0, 20, 1], 0.9, 0)
    assert kinds([half], [(A, 0)]) == ["correct"]
    assert kinds([half], [(A, 0)], iou_thresh=0.5 + 1e-6) == ["localisation"]
    assert kinds([half], [(A, 1)]) == ["classification"]
    assert kinds([tenth], [(A, 0)]) == ["localisation"]
    assert kinds([tenth], [(A, 1)]) == ["both", "missed"]
    assert kinds([tenth], [(A, 0)], background_iou=0.1 + 1e-6) == ["background", "missed"]


def test_an_iou_threshold_of_one_allows_for_rounding_as_pycocotools_does():
    # 1 - 1e-11 of the height: COCOeval takes an IoU from 1 - 1e-10 on for 1.
    boxes, scores, *others = tensors([(A, 0.9, 0), (A_LOW, 0.8, 0)], [(A, 0), (A_LOW, 0)])
    boxes = boxes.double()
    boxes[0, 3] -= 1e-10
    found = sort_detections(boxes, scores, *others, iou_thresh=1)
    assert [(x.kind, x.object) for x in found] == [("correct", 0), ("correct", 1)]
    assert ap_costs([AnalysedImage(boxes, scores, *others, found)], 1, 1.0)["AP"] == pytest.approx(
        100
    )


def test_without_a_background_threshold_boxes_apart_are_background():
    assert kinds([(FAR, 0.9, 0), (FAR, 0.8, 1)], [(A, 0)], background_iou=0) == [
        "background", "background", "missed",
    ]  # fmt: skip


@pytest.mark.parametrize(("scores", "correct"), [((0.5, 0.5), 0), ((0.5, 0.6), 1)])
def test_of_equal_scores_the_first_is_correct(scores, correct):
    found = sort([(A_LOW, scores[0], 0), (A, scores[1], 0)], [(A, 0)])
    assert [x.detection for x in found if x.kind == "correct"] == [correct]


def test_the_better_score_takes_its_best_object_only():
    # The first detection overlaps both objects: A with 1, the other with 20*7 / 260. The second,
    # A_LOW, has 100/260 < 0.5 with the free one.
    objects = [([0, 3, 20, 13], 0), (A, 0)]
    found = sort([(A, 0.9, 0), ([0, 3, 20, 13], 0.8, 0)], objects)
    assert [(x.kind, x.object) for x in found] == [("correct", 1), ("correct", 0)]


def test_of_equal_ious_the_last_object_is_taken_as_in_pycocotools():
    # The first detection lies between two objects, with (20 - 2) / (20 + 2) each. It leaves the
    # first, so that the second detection is right.
    objects = [([0, 0, 20, 10], 0), ([4, 0, 24, 10], 0)]
    image = analysed([([2, 0, 22, 10], 0.9, 0), ([0, 0, 18, 10], 0.8, 0)], objects,
                     iou_thresh=0.8)  # fmt: skip
    assert [(x.kind, x.object) for x in image.findings] == [("correct", 1), ("correct", 0)]
    assert ap_costs([image], 1, 0.8)["AP"] == pytest.approx(100)


def test_one_pixel_boxes():
    pixel, beside = [3, 5, 4, 6], [4, 5, 5, 6]
    found = sort([(pixel, 0.9, 0), (beside, 0.8, 0)], [(pixel, 0)])
    assert found == [Finding("correct", 0, 0, 1.0), Finding("background", 1, None, 0.0)]


def test_no_detections():
    assert sort([], [(A, 0), (C, 1)]) == [
        Finding("missed", None, 0, 0.0), Finding("missed", None, 1, 0.0),
    ]  # fmt: skip


def test_no_objects():
    assert sort([(A, 0.9, 0)], []) == [Finding("background", 0, None, 0.0)]
    assert sort([(A, 0.9, 0), (B, 0.8, 0)], [], [A]) == [Finding("background", 1, None, 0.0)]
    assert sort([], []) == []


def test_ignore_regions_take_the_share_of_the_detection():
    # A region ten times as large as A: an IoU of 0.1, but all of A lies in it.
    region = [0, 0, 20, 100]
    assert sort([(A, 0.9, 1)], [], [region]) == []
    half, less = [10, 0, 30, 10], [11, 0, 31, 10]  # 10 and 9 of 20 columns
    assert [x.detection for x in sort([(half, 0.9, 0), (less, 0.8, 0)], [], [region])] == [1]


def test_ignore_regions_do_not_add_up():
    # 40 % of the box lie in each of two regions that are apart.
    assert kinds([(A, 0.9, 0)], [], [[0, 0, 8, 10], [12, 0, 30, 10]]) == ["background"]


def test_what_is_correct_stays_so_in_an_ignore_region():
    # Its duplicate, and a box near it of the other class, are left out.
    detections = [(A, 0.9, 0), (A_LOW, 0.8, 0), (A_LOW, 0.7, 1)]
    assert sort(detections, [(A, 0)], [[0, 0, 50, 50]]) == [Finding("correct", 0, 0, 1.0)]


def test_an_ignored_detection_fixes_nothing():
    found = sort([(B_HALF, 0.9, 0)], [(B, 0)], [[45, 0, 100, 20]])
    assert found == [Finding("missed", None, 0, pytest.approx(1 / 3))]


@pytest.mark.parametrize("pair", [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (0.1, 1.1)])
def test_thresholds_out_of_range_are_named(pair):
    with pytest.raises(InputError, match=rf"background_iou {pair[0]} and iou_thresh {pair[1]}"):
        sort([], [], background_iou=pair[0], iou_thresh=pair[1])


def plain_iou(first, second, of_first=False):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return shared / (areas[0] if of_first else sum(areas) - shared)


def meets_definition(finding, detections, objects, taken):
    """Is the kind one that the detection may have, all by itself?"""
    if finding.kind == "missed":
        return True
    box, _, category = detections[finding.detection]
    if finding.kind == "background":
        return all(plain_iou(box, x) < 0.1 for x, _ in objects)
    iou = plain_iou(box, objects[finding.object][0])
    same = objects[finding.object][1] == category
    return (
        finding.iou == pytest.approx(iou)
        and {
            "correct": same and iou >= 0.5,
            "localisation": same and 0.1 <= iou < 0.5,
            "classification": not same and iou >= 0.5,
            "both": not same and 0.1 <= iou < 0.5,
            "duplicate": same and iou >= 0.5 and finding.object in taken,
        }[finding.kind]
    )


@settings(max_examples=300, deadline=None)
@given(image_strategy)
def test_everything_is_accounted_for_once(image):
    detections, objects, ignore = image
    found = sort(*image)
    matched = [x.object for x in found if x.kind == "correct"]
    assert len(matched) == len(set(matched))
    fixable = {x.object for x in found if x.kind in FIXABLE}
    missed = [x.object for x in found if x.kind == "missed"]
    assert missed == [n for n in range(len(objects)) if n not in fixable and n not in matched]
    rows = [x.detection for x in found if x.kind != "missed"]
    correct = {x.detection for x in found if x.kind == "correct"}
    assert rows == [
        n for n, (box, _, _) in enumerate(detections)
        if n in correct or not any(plain_iou(box, x, of_first=True) >= 0.5 for x in ignore)
    ]  # fmt: skip
    assert all(meets_definition(x, detections, objects, matched) for x in found)

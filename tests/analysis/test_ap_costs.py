"""What errors cost: cases by hand, and a plain AP of outcomes that are turned over."""

import pytest
import torch
from error_cases import A_LOW, B_HALF, C_LOW, D_LOW, FAR, A, B, C, D, analysed, image_strategy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from odam_d2.analysis.ap_costs import AnalysedImage, ap_costs, fixed_ap
from odam_d2.analysis.error_types import FIXABLE, KINDS
from odam_d2.core.errors import InputError

# pycocotools reads precision at the 101 recalls 0, 0.01 .. 1: 51 of them are at most 1/2.

TAIL = 100 * 50 / 101  # AP of recalls above 1/2, in points, at a precision of 1


def costs(image, num_classes=1):
    result = ap_costs([image], num_classes)
    present = {kind: value for kind, value in result["costs"].items() if value}
    return result["AP"], pytest.approx(present)


def test_cost_of_localisation():
    # Right, wrong, beside B. Fixed: right, wrong, right: 2/3 for the recalls above 1/2. The far one
    # costs nothing as nothing right comes after it; B is not missed.
    image = analysed([(A, 0.9, 0), (FAR, 0.8, 0), (B_HALF, 0.7, 0)], [(A, 0), (B, 0)])
    assert costs(image) == (pytest.approx(100 - TAIL), {"localisation": 2 / 3 * TAIL})


def test_a_localisation_error_at_a_found_object_is_removed():
    # [10, 0, 30, 10] has 1/3 with A. Wrong, right, right: precision 2/3 everywhere (the envelope).
    # Moved onto A, it would take it and leave a false detection of 0.8: less than 100.
    image = analysed([([10, 0, 30, 10], 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])
    assert costs(image) == (pytest.approx(200 / 3), {"localisation": 100 / 3})


def test_of_two_localisation_errors_at_an_object_the_better_scored_is_fixed():
    # The far one comes between them. 0.8 fixed, 0.6 removed: right, wrong. 0.6 instead: half.
    left = [30, 0, 50, 10]  # 1/3 as B_HALF
    image = analysed([(left, 0.6, 0), (FAR, 0.7, 0), (B_HALF, 0.8, 0)], [(B, 0)])
    assert costs(image) == (pytest.approx(0), {"localisation": 100})


def test_cost_of_classification():
    # Class 0: right, then wrong: 100. Class 1: none of C and D: 0. Fixed, class 1 has 0.8 on C;
    # 0.7 on C is removed, and 0.6 finds D: 100. Were 0.7 left, D would come at a precision of 2/3;
    # were 0.6 not fixed, recall would end at 1/2.
    detections = [(A, 0.9, 0), (C_LOW, 0.8, 0), (C, 0.7, 0), (D, 0.6, 0)]
    image = analysed(detections, [(A, 0), (C, 1), (D, 1)])
    assert costs(image, 2) == (pytest.approx(50), {"classification": 50})


def test_one_object_may_be_found_by_either_fix():
    # C is missed for two reasons. Each alone would find it: class 1 at 100 instead of 0. For
    # classification alone, the box that is beside C is then a false detection of 0.7, at the end;
    # for localisation alone, class 0 keeps its false detection, at the end too.
    beside = [5, 30, 15, 60]  # 150 / 450
    image = analysed([(A, 0.9, 0), (C_LOW, 0.8, 0), (beside, 0.7, 1)], [(A, 0), (C, 1)])
    assert costs(image, 2) == (pytest.approx(50), {"classification": 50, "localisation": 50})
    assert fixed_ap([image], 2, FIXABLE) == pytest.approx(100)


def test_cost_of_both_and_of_a_class_of_which_all_is_missed():
    # Class 0: wrong, right: 50. Class 1: 0. Without the wrong one (100 + 0) / 2; without D, class 1
    # has no object and does not count: 50.
    image = analysed([(D_LOW, 0.9, 0), (A, 0.8, 0)], [(A, 0), (D, 1)])
    assert costs(image, 2) == (pytest.approx(25), {"both": 25, "missed": 25})


def test_cost_of_duplicates():
    # Right, wrong, right: 2/3 for the recalls above 1/2.
    image = analysed([(A, 0.9, 0), (A_LOW, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])
    assert costs(image) == (pytest.approx(100 - TAIL / 3), {"duplicate": TAIL / 3})


def test_cost_of_background():
    image = analysed([(FAR, 0.9, 0), (A, 0.8, 0)], [(A, 0)])
    assert costs(image) == (pytest.approx(50), {"background": 50})


def test_cost_of_missed_objects():
    image = analysed([(A, 0.9, 0)], [(A, 0), (B, 0)])
    assert costs(image) == (pytest.approx(100 - TAIL), {"missed": TAIL})


def test_images_share_one_order_of_scores():
    # The false detection of one image comes before the right one of the other.
    images = [analysed([(A, 0.8, 0)], [(A, 0)]), analysed([(A, 0.9, 0)], [])]
    result = ap_costs(images, 1)
    assert (result["AP"], result["costs"]["background"]) == pytest.approx((50, 50))


def test_detections_in_ignore_regions_are_not_counted():
    image = analysed([(FAR, 0.9, 0), (A, 0.8, 0)], [(A, 0)], [FAR])
    assert costs(image) == (pytest.approx(100), {})


def test_inputs_are_left_as_they_were():
    image = analysed([(B_HALF, 0.9, 0), (C, 0.8, 0)], [(B, 0), (C, 1)])
    image = AnalysedImage(image.boxes.double(), *list(vars(image).values())[1:])  # no copy needed
    before = image.boxes.clone(), image.classes.clone()
    fixed_ap([image], 2, KINDS)
    assert torch.equal(image.boxes, before[0])
    assert torch.equal(image.classes, before[1])


def test_only_the_best_detections_of_an_image_count():
    image = analysed([(A, 0.9, 0), (B, 0.8, 0)], [(A, 0), (B, 0)])
    assert fixed_ap([image], 1, max_detections=1) == pytest.approx(100 - TAIL)


def test_a_hundred_detections_of_a_class_count():
    """As in COCO: the right one, in the last place or behind 99 or 100 that are wrong."""
    for wrong, ap in ((99, 100 / 100), (100, 0)):
        given = [(FAR, 0.9, 0)] * wrong + [(A, 0.1, 0)]
        image = analysed(given, [(A, 0)])
        assert fixed_ap([image], 1) == pytest.approx(ap)
        costs = ap_costs([image], 1)
        assert costs["AP"] == pytest.approx(ap)
        # Without the wrong ones, the right one is found at once.
        assert costs["costs"]["background"] == pytest.approx(100 - ap)
        assert fixed_ap([image], 1, max_detections=101) == pytest.approx(100 / (wrong + 1))


def test_ap_is_taken_at_the_threshold():
    image = analysed([(A_LOW, 0.9, 0)], [(A, 0)], iou_thresh=0.9)
    assert ap_costs([image], 1, 0.9) == {
        "AP": 0, "costs": {**dict.fromkeys(KINDS[1:], 0.0), "localisation": pytest.approx(100)},
    }  # fmt: skip


def test_nothing_detected_and_nothing_to_find():
    nothing = dict.fromkeys(KINDS[1:], 0.0)
    assert ap_costs([], 3) == {"AP": 0.0, "costs": nothing}
    assert ap_costs([analysed([], [])], 3) == {"AP": 0.0, "costs": nothing}
    assert ap_costs([analysed([(A, 0.9, 0)], [])], 3) == {"AP": 0.0, "costs": nothing}
    assert ap_costs([analysed([], [(A, 0)])], 3) == {"AP": 0.0, "costs": {**nothing, "missed": 100}}


def test_ap_costs_print_nothing(capsys):
    ap_costs([analysed([(A, 0.9, 0), (FAR, 0.8, 0)], [(A, 0)])], 1)
    assert capsys.readouterr().out == ""


def test_what_cannot_be_is_named():
    image = analysed([(A, 0.9, 4)], [(A, 0)])
    with pytest.raises(InputError, match=r"image 1 has classes from 0 to 4, but .* has 4 of them"):
        ap_costs([image], 4)
    with pytest.raises(InputError, match=r"unknown kinds of errors \['localization'\]"):
        fixed_ap([image], 5, ["localization"])


def plain_ap(outcomes, num_objects):
    """AP in percent of (score, hit), images in order; the mean over classes with objects."""
    averages = []
    for category, count in num_objects.items():
        if not count:
            continue
        mine = sorted((x[1:] for x in outcomes if x[0] == category), key=lambda x: -x[0])
        hits = [sum(hit for _, hit in mine[: n + 1]) for n in range(len(mine))]
        points = [(h / count, h / (n + 1)) for n, h in enumerate(hits)]
        averages.append(sum(max((p for r, p in points if r >= k / 100), default=0)
                            for k in range(101)) / 1.01)  # fmt: skip
    return sum(averages) / len(averages) if averages else 100.0


def plain_fixed_ap(images, kinds):
    """No box is compared again: outcomes are turned over as the findings say."""
    outcomes, num_objects = [], {0: 0, 1: 0}
    for (detections, objects, _), found in images:
        for _, category in objects:
            num_objects[category] += 1
        taken = [x.object for x in found if x.kind == "correct"]
        rows = [x for x in found if x.kind != "missed"]
        for finding in sorted(rows, key=lambda x: -detections[x.detection][1]):
            _, score, category = detections[finding.detection]
            hit = finding.kind == "correct"
            if finding.kind in kinds:
                if finding.kind not in FIXABLE or finding.object in taken:
                    continue
                taken.append(finding.object)
                hit, category = True, objects[finding.object][1]
            outcomes.append((category, score, hit))
        for finding in found:
            if finding.kind == "missed" and "missed" in kinds:
                num_objects[objects[finding.object][1]] -= 1
    return plain_ap(outcomes, num_objects)


@settings(max_examples=150, deadline=None)
@given(st.lists(image_strategy, min_size=1, max_size=2))
@example([([(A, 0.5, 0), (A, 0.5, 1)], [(A, 1), (A, 0), (A, 0)], [])])  # all on one place
def test_costs_agree_with_turned_outcomes(given_images):
    images = [analysed(*image) for image in given_images]
    pairs = [(image, x.findings) for image, x in zip(given_images, images, strict=True)]
    result = ap_costs(images, 2)
    if not any(objects for _, objects, _ in given_images):
        assert result == {"AP": 0, "costs": dict.fromkeys(KINDS[1:], 0)}
        return
    average = plain_fixed_ap(pairs, ())
    assert result["AP"] == pytest.approx(average)
    expected = {kind: plain_fixed_ap(pairs, (kind,)) - average for kind in KINDS[1:]}
    assert result["costs"] == pytest.approx(expected, abs=1e-6)
    assert min(result["costs"].values()) >= -1e-6
    assert fixed_ap(images, 2, KINDS) == pytest.approx(100)

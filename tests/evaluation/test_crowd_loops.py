"""CrowdHuman's figures against plain loops over detections, thresholds and assignments."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odam_d2.evaluation.crowd_protocol import (
    Case,
    Matches,
    average_precision,
    box_overlaps,
    jaccard_index,
    match,
    miss_rate,
    recall_at_precision,
)

# (found, score): found is the number of an object, or -1. Each object is found once.
DETECTIONS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.2, 0.4, 0.6, 0.8])), min_size=1, max_size=12
)


def matches_of(detections, more_objects, images):
    detections = sorted(detections, key=lambda pair: -pair[1])
    numbers = itertools.count()
    objects = np.array([next(numbers) if hit else -1 for hit, _ in detections])
    count = next(numbers) + more_objects
    return Matches(np.array([s for _, s in detections]), objects >= 0, objects, count, images)


@given(DETECTIONS, st.integers(0, 3), st.integers(1, 150))
def test_miss_rate_and_average_precision(detections, more_objects, images):
    found = matches_of(detections, more_objects, images)
    if not found.num_objects:
        assert math.isnan(miss_rate(found))
        assert math.isnan(average_precision(found))
        return
    right = wrong = area = 0
    points = []  # after each detection: false ones per image, share missed, recall, precision
    for hit in found.hits:
        right, wrong = right + int(hit), wrong + int(not hit)
        recall = right / found.num_objects
        points.append((wrong / images, 1 - recall, recall, right / (right + wrong)))
    for (*_, r0, p0), (*_, r1, p1) in itertools.pairwise(points):
        area += (r1 - r0) * (p0 + p1) / 2
    assert average_precision(found) == pytest.approx(area)
    product = 1.0
    # Nine places from 0.01 to 1, equally far apart on a logarithmic scale, to four digits.
    for place in (round(10 ** (k / 4 - 2), 4) for k in range(9)):
        reached = [missed for false, missed, *_ in points if false >= place]
        product *= reached[0] if reached else points[-1][1]
    assert miss_rate(found) == pytest.approx(product ** (1 / 9), abs=1e-9)


@given(DETECTIONS, st.integers(0, 3), st.sampled_from([0, 0.25, 0.5, 2 / 3, 0.8, 1]), st.data())
def test_recall_at_a_precision(detections, more_objects, precision, data):
    """Of the thresholds at which the precision is reached, the lowest counts."""
    found = matches_of(detections, more_objects, 1)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=found.num_objects,
                                         max_size=found.num_objects)), dtype=bool)  # fmt: skip
    recall = recall_at_precision(found, precision, chosen)
    if not chosen.any():
        assert math.isnan(recall)
        return
    expected = 0.0
    for threshold in sorted({score for _, score in detections}):
        taken = found.scores >= threshold
        if found.hits[taken].mean() >= precision:
            mine = [number for number in found.objects[taken & found.hits] if chosen[number]]
            expected = len(mine) / chosen.sum()
            break
    assert recall == pytest.approx(expected)


def some_boxes(most):
    corner = st.integers(0, 4)
    one = st.builds(lambda x, y, w, h: [x, y, x + w, y + h],
                    corner, corner, st.integers(1, 4), st.integers(1, 4))  # fmt: skip
    return st.lists(one, max_size=most).map(lambda rows: np.array(rows, float).reshape(-1, 4))


def possible_indices(case, threshold):
    """JI of an image for every assignment of the greatest sum of IoUs, which may be several."""
    objects, regions = case.objects[~case.ignore], case.objects[case.ignore]
    boxes = case.boxes[case.scores > threshold]
    iou = box_overlaps(boxes, objects)
    in_region = [
        [
            any(box_overlaps(x[None], r[None], of_first=True)[0, 0] > 0.5 for r in regions)
            for x in xs
        ]
        for xs in (boxes, objects)
    ]
    assignments = {}
    for partners in itertools.product([None, *range(len(objects))], repeat=len(boxes)):
        pairs = [(i, j) for i, j in enumerate(partners) if j is not None and iou[i, j] >= 0.5]
        if len({j for _, j in pairs}) == len(pairs):
            total = sum(iou[i, j] for i, j in pairs)
            assignments.setdefault(round(total, 9), []).append(pairs)
    indices = []
    for pairs in assignments[max(assignments)]:
        rows, columns = {i for i, _ in pairs}, {j for _, j in pairs}
        found = sum(i in rows or not in_region[0][i] for i in range(len(boxes)))
        wanted = sum(j in columns or not in_region[1][j] for j in range(len(objects)))
        union = found + wanted - len(pairs)
        indices.append(len(pairs) / union if union else None)
    return indices


@settings(max_examples=60, deadline=None)
@given(some_boxes(4), some_boxes(3), st.randoms(use_true_random=False))
def test_jaccard_index_of_an_image(objects, boxes, random):
    ignore = np.array([random.random() < 0.3 for _ in objects], dtype=bool)
    scores = np.array([random.choice([0.15, 0.35, 0.95]) for _ in boxes])
    case = Case.clipped((9, 9), objects, ignore, boxes, scores)
    for number, found in enumerate(jaccard_index([case])):
        expected = possible_indices(case, number / 10)
        assert any(found == pytest.approx(x or 0, abs=1e-5) for x in expected)


def test_jaccard_index_is_the_mean_over_images_with_anything():
    """An image of nobody, in which nothing is found above 0.5, counts up to there only."""
    box = np.array([[0.0, 0, 4, 4]])
    nobody, seen = np.zeros((0, 4)), np.zeros(1, dtype=bool)
    cases = [
        Case.clipped((9, 9), box, seen, box, np.array([0.95])),
        Case.clipped((9, 9), nobody, seen[:0], box, np.array([0.45])),
        Case.clipped((9, 9), nobody, seen[:0], nobody, np.zeros(0)),
    ]
    found = jaccard_index(cases)
    assert found[:5].tolist() == pytest.approx([1 / 2] * 5, abs=1e-5)
    assert found[5:].tolist() == pytest.approx([1] * 5, abs=1e-5)
    assert match(cases).num_images == 3

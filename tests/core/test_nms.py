"""Suppression against plain loops, Detectron2's own NMS, and values by hand."""

import math

import pytest
import torch
from detectron2.layers import batched_nms
from hypothesis import given, settings
from hypothesis import strategies as st

from odam_d2.core.errors import InputError
from odam_d2.core.nms import nms, odam_nms, soft_nms

corner = st.integers(0, 6)
unit = st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75, 1.0])


@st.composite
def candidates(draw, most=9):
    """Small integers make identical boxes, boxes without area, and equal scores likely."""
    count = draw(st.integers(0, most))
    numbers = [[draw(corner), draw(corner), draw(corner), draw(corner)] for _ in range(count)]
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in numbers]
    scores = [draw(st.sampled_from([0.1, 0.4, 0.5, 0.9])) for _ in range(count)]
    classes = [draw(st.integers(0, 2)) for _ in range(count)]
    correlation = [[draw(unit) for _ in range(count)] for _ in range(count)]
    return (
        torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(correlation, dtype=torch.float64).view(count, count),
    )


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union = areas - width * height
    return width * height / union if union > 0 else 0.0


def plain_greedy(boxes, scores, classes, suppresses):
    """One candidate after the other; who suppressed whom."""
    boxes, scores, classes = boxes.tolist(), scores.tolist(), classes.tolist()
    kept, by = [], {}
    for j in sorted(range(len(scores)), key=lambda k: (-scores[k], k)):
        for i in kept:
            if classes[i] == classes[j] and suppresses(plain_iou(boxes[i], boxes[j]), i, j):
                by[j] = i
                break
        else:
            kept.append(j)
    return kept, by


def assert_same(found, expected, boxes, scores):
    kept, by = expected
    assert found.keep.tolist() == kept
    assert torch.equal(found.scores, scores[kept])
    for j in range(len(boxes)):
        assert found.suppressor[j] == by.get(j, -1)
        if j in by:
            iou = plain_iou(boxes[by[j]].tolist(), boxes[j].tolist())
            assert found.iou[j].item() == pytest.approx(iou)
        else:
            assert found.iou[j].isnan()
            assert found.correlation[j].isnan()


@given(candidates(), unit)
def test_nms_is_the_plain_loop(given_candidates, thresh):
    boxes, scores, classes, _ = given_candidates
    expected = plain_greedy(boxes, scores, classes, lambda iou, i, j: iou > thresh)
    assert_same(nms(boxes, scores, classes, thresh), expected, boxes, scores)


@given(candidates(), unit, unit, unit)
def test_odam_nms_is_the_plain_loop(given_candidates, thresh, one, other):
    boxes, scores, classes, correlation = given_candidates
    high, low = max(one, other), min(one, other)

    def suppresses(iou, i, j):
        survives = (iou <= thresh and correlation[i, j] < high) or (
            iou > thresh and correlation[i, j] < low
        )
        return not survives

    expected = plain_greedy(boxes, scores, classes, suppresses)
    found = odam_nms(boxes, scores, classes, correlation, thresh, high, low)
    assert_same(found, expected, boxes, scores)
    for j, i in expected[1].items():
        assert found.correlation[j] == correlation[i, j]
    asked = odam_nms(
        boxes, scores, classes, lambda index: correlation[index][:, index], thresh, high, low
    )
    assert torch.equal(asked.suppressor, found.suppressor)


def crowd(count, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    size = 10 + 20 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.cat([corner, corner + size], dim=1), scores, labels


@pytest.mark.parametrize("thresh", [0.3, 0.5, 0.7])
def test_nms_of_thousands_is_detectrons(thresh):
    boxes, scores, classes = crowd(3000)
    found = nms(boxes.float(), scores.float(), classes, thresh)
    assert found.keep.tolist() == batched_nms(boxes, scores.float(), classes, thresh).tolist()


def test_odam_nms_of_thousands_is_the_plain_loop():
    boxes, scores, classes = crowd(1500, classes=1)
    maps = torch.rand(1500, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps = torch.nn.functional.normalize(maps**4, dim=1)
    correlation = maps @ maps.t()

    def suppresses(iou, i, j):
        return correlation[i, j] >= (0.3 if iou > 0.5 else 0.8)

    expected = plain_greedy(boxes, scores, classes, suppresses)
    found = odam_nms(boxes, scores, classes, correlation, 0.5, 0.8, 0.3)
    assert_same(found, expected, boxes, scores)
    assert 10 < len(found.keep) < 1000


def test_a_long_chain_is_settled_from_its_head():
    """Every box overlaps the next one only: every second one stays."""
    left = torch.arange(300.0)[:, None] * 4
    boxes = torch.cat([left, left * 0, left + 10, left * 0 + 10], dim=1)
    scores = torch.linspace(1, 0.5, 300)
    found = nms(boxes, scores, torch.zeros(300, dtype=torch.int64), 0.3)  # IoU 6 / 14, then 2 / 18
    assert found.keep.tolist() == list(range(0, 300, 2))
    assert found.suppressor[1::2].tolist() == list(range(0, 300, 2))


def plain_soft_nms(boxes, scores, classes, factor, thresh):
    boxes, scores, classes = boxes.tolist(), scores.tolist(), classes.tolist()
    kept = []
    for label in set(classes):
        left = [i for i in range(len(scores)) if classes[i] == label and scores[i] > thresh]
        now = {i: scores[i] for i in left}
        while left:
            best = max(left, key=lambda i: (now[i], scores[i], -i))
            kept.append((best, now[best]))
            left.remove(best)
            for i in left:
                now[i] *= factor(plain_iou(boxes[best], boxes[i]))
            left = [i for i in left if now[i] > thresh]
    return kept


@settings(max_examples=60)
@given(candidates(), st.sampled_from(["linear", "gaussian"]), st.sampled_from([0.001, 0.3]))
def test_soft_nms_is_the_plain_loop(given_candidates, method, thresh):
    boxes, scores, classes, _ = given_candidates
    # Different scores: which of two equal ones comes first changes what is left.
    scores = scores + torch.arange(len(scores)) * 1e-3
    factors = {
        "linear": lambda iou: 1 - iou if iou >= 0.25 else 1.0,
        "gaussian": lambda iou: math.exp(-(iou**2) / 0.5),
    }
    found = soft_nms(boxes, scores, classes, method, iou_thresh=0.25, score_thresh=thresh)
    expected = dict(plain_soft_nms(boxes, scores, classes, factors[method], thresh))
    assert set(found.keep.tolist()) == set(expected)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    for i, score in zip(found.keep.tolist(), found.scores.tolist(), strict=True):
        assert score == pytest.approx(expected[i])
    for j, i in enumerate(found.suppressor.tolist()):
        assert i == -1 or (j not in expected and classes[i] == classes[j] and found.iou[j] > 0)


def test_soft_nms_by_hand():
    """Two boxes of IoU 1/3: 0.8 stays, 0.6 becomes 0.6 * 2/3 or 0.6 * exp(-2/9)."""
    boxes = torch.tensor([[0.0, 0, 4, 2], [2, 0, 6, 2]])
    scores, classes = torch.tensor([0.8, 0.6]), torch.zeros(2, dtype=torch.int64)
    linear = soft_nms(boxes, scores, classes, "linear", iou_thresh=0.3)
    assert linear.scores.tolist() == pytest.approx([0.8, 0.4])
    gaussian = soft_nms(boxes, scores, classes, "gaussian", sigma=0.5)
    assert gaussian.scores.tolist() == pytest.approx([0.8, 0.6 * math.exp(-2 / 9)])
    gone = soft_nms(boxes, scores, classes, "linear", iou_thresh=0.3, score_thresh=0.45)
    assert gone.keep.tolist() == [0]
    assert gone.suppressor.tolist() == [-1, 0]


@pytest.mark.parametrize(("offset", "lowered"), [(5.5, 1.0), (5.25, 1 - 19 / 61)])
def test_soft_nms_by_itself_has_the_settings_of_its_paper(offset, lowered):
    """Bodla et al.: from an IoU of 0.3 on, sigma 0.5. Of 10 columns 4.5 or 4.75 are shared."""
    boxes = torch.tensor([[0.0, 0, 10, 2], [offset, 0, 10 + offset, 2]])
    scores, classes = torch.tensor([0.8, 0.6]), torch.zeros(2, dtype=torch.int64)
    iou = (10 - offset) / (10 + offset)
    assert soft_nms(boxes, scores, classes).scores.tolist() == pytest.approx([0.8, 0.6 * lowered])
    gaussian = soft_nms(boxes, scores, classes, "gaussian").scores.tolist()
    assert gaussian == pytest.approx([0.8, 0.6 * math.exp(-(iou**2) / 0.5)])
    # What was at 0.001 already goes, and what is above it stays.
    scores = torch.tensor([0.001, 0.0011], dtype=torch.float64)
    apart = boxes + torch.tensor([[0.0], [50]])
    assert soft_nms(apart, scores, classes).keep.tolist() == [1]


@pytest.mark.parametrize(
    ("thresholds", "sentence"),
    [
        ((1.1, 0.7, 0.3), "iou_thresh is 1.1"),
        ((0.5, -0.1, 0.3), "sim_thresh_high is -0.1"),
        ((0.5, 0.7, math.nan), "sim_thresh_low is nan"),
        ((0.5, 0.3, 0.7), "sim_thresh_high is 0.3, below sim_thresh_low, 0.7"),
    ],
)
def test_thresholds_out_of_range_are_refused(thresholds, sentence):
    boxes, scores, classes = crowd(3)
    with pytest.raises(InputError, match=sentence):
        odam_nms(boxes, scores, classes, torch.eye(3), *thresholds)


def test_soft_nms_refuses_what_it_does_not_know():
    boxes, scores, classes = crowd(3)
    with pytest.raises(InputError, match="one of linear, gaussian"):
        soft_nms(boxes, scores, classes, "cubic")
    with pytest.raises(InputError, match="sigma"):
        soft_nms(boxes, scores, classes, "gaussian", sigma=0.0)

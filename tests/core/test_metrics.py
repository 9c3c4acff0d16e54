"""Metrics of heat maps: by hand on a map of 2 x 3, and against plain loops on random ones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odam_d2.core import metrics

# Energy 10; the peak, 4, in row 0, column 2.
HEAT = torch.tensor([[[1.0, 0.0, 4.0], [2.0, 3.0, 0.0]]])


def region(*rows):
    return torch.tensor([rows], dtype=torch.bool)


def test_pointing_game_by_hand():
    assert metrics.pointing_game(HEAT, region([0, 0, 1], [0, 0, 0])).tolist() == [1]
    assert metrics.pointing_game(HEAT, region([1, 1, 0], [1, 1, 1])).tolist() == [0]


def test_equal_peaks_count_as_the_share_that_is_right():
    """A flat map that counted its first peak, or any, would win the pointing game."""
    right = region([1, 1, 0], [0, 0, 0])  # 2 of 6 pixels
    assert metrics.pointing_game(torch.ones(1, 2, 3), right).item() == pytest.approx(2 / 6)
    assert metrics.pointing_game(torch.zeros(1, 2, 3), right).tolist() == [0]


def test_energy_pointing_game_by_hand():
    right = region([1, 0, 0], [1, 1, 0])  # 1 + 2 + 3 of 10
    assert metrics.energy_pointing_game(HEAT, right).item() == pytest.approx(0.6)
    assert metrics.energy_pointing_game(0 * HEAT, right).tolist() == [0]


def test_object_discrimination_index_by_hand():
    # Objects cover 4 + 2 + 3 = 9 of the energy, the others 4 of it.
    others, objects = region([0, 0, 1], [0, 0, 0]), region([0, 0, 1], [1, 1, 0])
    assert metrics.object_discrimination_index(HEAT, others, objects).item() == pytest.approx(4 / 9)
    nowhere = region([0, 1, 0], [0, 0, 1])  # no energy there: nothing can be said
    assert metrics.object_discrimination_index(HEAT, nowhere, nowhere).isnan().all()


def test_compactness_by_hand():
    # Squared distances from (0, 2), times energy: 1 * 4 + 0 + 0 + 2 * (1 + 4) + 3 * (1 + 1) = 20.
    # Mean 20 / 10 = 2. Box 4 x 2: half its diagonal squared is (16 + 4) / 4 = 5. sqrt(2 / 5).
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    assert metrics.compactness(HEAT, boxes).item() == pytest.approx(math.sqrt(2 / 5))
    assert metrics.compactness(0 * HEAT, boxes).isnan().all()
    point = torch.zeros(1, 2, 3)
    point[0, 1, 1] = 7
    assert metrics.compactness(point, boxes).tolist() == [0]


def test_mask_iou_by_hand():
    # Scaled: 0.25 0 1 / 0.5 0.75 0. Above 0.2: 4 pixels, 3 of them among the mask's 3: 3 / 4.
    # Above 0.6: 2 pixels, 1 of the mask's: 1 / 4.
    mask = region([1, 0, 0], [1, 1, 0])
    assert metrics.mask_iou(HEAT, mask, [0.2, 0.6]).tolist() == [[0.75, 0.25]]
    # A constant added changes nothing: the map is scaled from its minimum.
    assert metrics.mask_iou(HEAT + 5, mask, [0.2, 0.6]).tolist() == [[0.75, 0.25]]
    assert metrics.mask_iou(0 * HEAT, 0 * mask.int() > 0, [0.5]).tolist() == [[0]]


def test_gini_by_hand():
    # Sorted 0 0 1 2 3 4: 1 - 2 / 6 * (1 * 3.5 + 2 * 2.5 + 3 * 1.5 + 4 * 0.5) / 10 = 1 - 15 / 30.
    assert metrics.gini(HEAT).item() == pytest.approx(0.5)
    assert metrics.gini(torch.ones(1, 2, 3)).item() == pytest.approx(0)
    one = torch.zeros(1, 2, 3)
    one[0, 0, 1] = 3  # all energy in one of six pixels: 1 - 1 / 6
    assert metrics.gini(one).item() == pytest.approx(5 / 6)
    assert metrics.gini(0 * one).tolist() == [0]


def slow(heat, mask, others, objects, box, thresholds):
    """The definitions, pixel by pixel."""
    height, width = heat.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    total = sum(heat[c] for c in cells)
    peak = max(heat[c] for c in cells)
    peaks = [c for c in cells if heat[c] == peak]
    distance = sum(
        heat[y, x] * sum((y - v) ** 2 + (x - u) ** 2 for v, u in peaks) / len(peaks)
        for y, x in cells
    )
    diagonal = (box[2] - box[0]) ** 2 + (box[3] - box[1]) ** 2
    low = min(heat[c] for c in cells)
    ious = []
    for threshold in thresholds:
        above = {c for c in cells if (heat[c] - low) / (peak - low) > threshold}
        inside = {c for c in cells if mask[c]}
        ious.append(len(above & inside) / max(1, len(above | inside)))
    every = sorted(heat[c] for c in cells)
    pairs = sum(abs(a - b) for a in every for b in every)  # Gini's mean difference
    return {
        "pointing": sum(mask[c] for c in peaks) / len(peaks),
        "energy": sum(heat[c] for c in cells if mask[c]) / total,
        "odi": sum(heat[c] for c in cells if others[c]) / sum(heat[c] for c in cells if objects[c]),
        "compactness": math.sqrt(distance / total / (diagonal / 4)),
        "iou": ious,
        "gini": pairs / (2 * len(every) * total),
    }


def fast(heat, mask, others, objects, box, thresholds):
    return {
        "pointing": metrics.pointing_game(heat, mask),
        "energy": metrics.energy_pointing_game(heat, mask),
        "odi": metrics.object_discrimination_index(heat, others, objects),
        "compactness": metrics.compactness(heat, box),
        "iou": metrics.mask_iou(heat, mask, thresholds),
        "gini": metrics.gini(heat),
    }


def random_case(seed, count=3, height=5, width=8):
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randint(0, 9, (count, height, width), generator=generator).float()  # has ties
    heat[:, 0, 0] += 1e-3
    masks, others = (torch.rand(count, height, width, generator=generator) < 0.5 for _ in range(2))
    masks[:, 2, 3] = True
    heat[:, 2, 3] += 1
    corner = torch.rand(count, 2, generator=generator) * 4
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 5], dim=1)
    return heat, masks, others, masks | others, boxes


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(3, 7), width=st.integers(4, 9))
def test_metrics_equal_plain_loops_on_random_maps(seed, height, width):
    thresholds = [0.1, 0.5, 0.9]
    case = random_case(seed, 3, height, width)
    ours = fast(*case, thresholds)
    for row in range(3):
        expected = slow(*(x[row].numpy().astype(np.float64) for x in case), thresholds)
        for name, value in expected.items():
            assert ours[name][row].tolist() == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("scale", [1e-8, 3.7, 1e6])
def test_metrics_do_not_change_when_the_map_is_scaled(scale):
    case = random_case(1)
    before, after = fast(*case, [0.31]), fast(scale * case[0], *case[1:], [0.31])
    for name in before:
        torch.testing.assert_close(after[name].double(), before[name].double(), msg=name)


@pytest.mark.parametrize("axis", [1, 2])
def test_metrics_do_not_change_when_all_is_flipped(axis):
    heat, masks, others, objects, boxes = random_case(2)
    length = heat.shape[axis]
    flipped_boxes = boxes.clone()
    low, high = (1, 3) if axis == 1 else (0, 2)
    flipped_boxes[:, low], flipped_boxes[:, high] = length - boxes[:, high], length - boxes[:, low]
    flipped = [x.flip(axis) for x in (heat, masks, others, objects)]
    before = fast(heat, masks, others, objects, boxes, [0.3])
    after = fast(*flipped, flipped_boxes, [0.3])
    for name in before:
        torch.testing.assert_close(after[name], before[name], msg=name)


def test_no_map_gives_no_figure():
    heat, mask = torch.zeros(0, 4, 6), torch.zeros(0, 4, 6, dtype=torch.bool)
    for name, value in fast(heat, mask, mask, mask, torch.zeros(0, 4), [0.5]).items():
        assert len(value) == 0, name


def plain_ssim(a, b):
    """Wang et al., with Gaussian windows of 11 x 11 that are cut off at the border."""
    height, width = a.shape
    total = 0.0
    for y in range(height):
        for x in range(width):
            cells = [(v, u) for v in range(max(0, y - 5), min(height, y + 6))
                     for u in range(max(0, x - 5), min(width, x + 6))]  # fmt: skip
            weight = np.array([math.exp(-((v - y) ** 2 + (u - x) ** 2) / 4.5) for v, u in cells])
            weight /= weight.sum()
            p, q = (np.array([float(m[v, u]) for v, u in cells]) for m in (a, b))
            mean_p, mean_q = weight @ p, weight @ q
            var_p, var_q = weight @ (p - mean_p) ** 2, weight @ (q - mean_q) ** 2
            both = weight @ ((p - mean_p) * (q - mean_q))
            total += ((2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4)) / (
                (mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4)
            )
    return total / (height * width)


def test_structural_similarity_is_that_of_plain_loops():
    a, b = torch.rand(2, 2, 7, 13, generator=torch.Generator().manual_seed(1))
    b[1] = 0.7 * a[1] + 0.1
    expected = [plain_ssim(x, y) for x, y in zip(a, b, strict=True)]
    assert metrics.ssim(a, b).tolist() == pytest.approx(expected, rel=1e-9)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-12)
    # Flat maps have no structure, and means of 0.5 and 1 alone.
    flat = metrics.ssim(torch.full((1, 7, 13), 0.5), torch.ones(1, 7, 13))
    assert flat.item() == pytest.approx((1 + 1e-4) / (1.25 + 1e-4))

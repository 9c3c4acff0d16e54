"""Odam-Train's formula against values by hand and against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odam_d2.core.odam_train import (
    Pairs,
    consistency,
    object_pairs,
    pair_auc,
    references,
    separation,
)


def maps_of(rows):
    """One-row maps, H != W."""
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def test_a_small_image_by_hand():
    """
    Object 7 has positives 0 (IoU 0.8, the reference) and 1 (IoU 0.4), object 3 has positive 2, and
    object 5 of another image positive 3.

    Maps: 0 is (3, 4, 0), 1 is (4, 3, 0), 2 is (0, 1, 0); norms 5, 5, 1. So the cosines are
    01: 24 / 25, 02: 4 / 5, 12: 3 / 5. Reference 0 pairs with 1 (weight 0.4 / 0.8) and, being
    another object's, with 2; reference 2 pairs with 0 and 1, of which only 0 overlaps its box.
    """
    maps = maps_of([[3, 4, 0], [4, 3, 0], [0, 1, 0], [3, 4, 0]])
    objects, image = torch.tensor([7, 7, 3, 5]), torch.tensor([0, 0, 0, 1])
    ious = torch.tensor([0.8, 0.4, 0.9, 0.5], dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0, 4, 2], [0, 0, 2, 2], [3, 0, 5, 2], [0, 0, 4, 2]])
    same, different = object_pairs(maps, image, objects, ious, boxes)
    assert same.correlation.tolist() == pytest.approx([24 / 25])
    assert same.weight.tolist() == pytest.approx([0.5])
    assert different.correlation.tolist() == pytest.approx([4 / 5, 4 / 5])
    assert consistency(same, 1e-4).item() == pytest.approx(-0.5 * math.log(24 / 25))
    assert separation(different, 1e-4).item() == pytest.approx(-math.log(1 / 5))


def overlap(first, second):
    """IoU of intervals."""
    shared = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)


def plain_loop(maps, images, objects, ious, boxes, min_overlap, clamp):
    """The definition, pair by pair."""
    same, different = [], []
    for number in sorted(set(objects)):
        mine = [i for i, o in enumerate(objects) if o == number]
        best = max(mine, key=lambda i: (ious[i], -i))
        for j in range(len(objects)):
            norms = [math.sqrt(sum(v * v for v in maps[k])) for k in (best, j)]
            dot = sum(a * b for a, b in zip(maps[best], maps[j], strict=True))
            cosine = dot / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
            cosine = min(max(cosine, clamp), 1 - clamp)
            if objects[j] == number and j != best:
                weight = ious[j] / ious[best] if ious[best] > 0 else 0.0
                same.append(-weight * math.log(cosine))
            elif objects[j] != number and images[j] == images[best]:
                overlaps = overlap(boxes[best], boxes[j]) > min_overlap
                different += [-math.log(1 - cosine)] * overlaps
    return same, different


@given(st.data())
def test_equal_to_plain_loops(data):
    count = data.draw(st.integers(1, 7))
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0])

    def listed(values, length=count):
        return data.draw(st.lists(values, min_size=length, max_size=length))

    maps, ious = listed(st.lists(levels, min_size=6, max_size=6)), listed(levels)
    objects = listed(st.integers(0, 3))
    images = [number // 2 for number in objects]
    # Along one axis; quarters have an IoU that is never 0.3.
    starts, lengths = listed(st.integers(0, 4)), listed(st.sampled_from([1, 2, 4]))
    boxes = [(a, a + b) for a, b in zip(starts, lengths, strict=True)]
    min_overlap, clamp = data.draw(st.sampled_from([0.0, 0.3])), 1e-4
    same, different = plain_loop(maps, images, objects, ious, boxes, min_overlap, clamp)
    pairs = object_pairs(
        torch.tensor(maps, dtype=torch.float64).view(count, 2, 3),
        torch.tensor(images),
        torch.tensor(objects),
        torch.tensor(ious, dtype=torch.float64),
        torch.tensor([[0, a, 1, b] for a, b in boxes], dtype=torch.float64),
        min_overlap,
    )
    for found, loss, expected in zip(
        pairs, (consistency, separation), (same, different), strict=True
    ):
        assert len(found) == len(expected)
        mean = sum(expected) / len(expected) if expected else 0.0
        assert loss(found, clamp).item() == pytest.approx(mean, abs=1e-9)


def test_references_are_the_first_of_the_best():
    ious = torch.tensor([0.5, 0.9, 0.9, 0.1, 0.4])
    assert references(torch.tensor([4, 4, 4, 1, 1]), ious).tolist() == [4, 1]


def test_gradient_is_finite_where_maps_are_zero_or_equal():
    maps = maps_of([[0, 0, 0], [1, 2, 0], [1, 2, 0], [0, 0, 3]]).requires_grad_()
    boxes = torch.tensor([[0.0, 0, 2, 1]]).repeat(4, 1)
    objects, ious = torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.float64)
    same, different = object_pairs(maps, torch.zeros(4), objects, ious, boxes)
    (consistency(same, 1e-4) + separation(different, 1e-4)).backward()
    assert maps.grad.isfinite().all()
    assert same.weight.tolist() == [0, 0]  # no predicted box lies on its object


def test_without_pairs_both_losses_are_zeros_with_a_graph():
    maps = maps_of([[1.0, 2, 0]]).requires_grad_()
    one = torch.ones(1, dtype=torch.float64)
    same, different = object_pairs(maps, one, torch.tensor([5]), one, torch.ones(1, 4))
    loss = consistency(same, 1e-4) + separation(different, 1e-4)
    assert loss.item() == 0
    loss.backward()
    assert not maps.grad.any()


def test_less_correlation_costs_consistency_and_saves_separation():
    low, high = (Pairs(torch.tensor([c]), torch.ones(1)) for c in (0.2, 0.9))
    assert consistency(low, 1e-4) > consistency(high, 1e-4)
    assert separation(low, 1e-4) < separation(high, 1e-4)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
)
def test_pair_auc_counts_pairs(same, different):
    wins = sum((s > d) + 0.5 * (s == d) for s in same for d in different)
    found = pair_auc(torch.tensor(same) / 4, torch.tensor(different) / 4)
    assert found == pytest.approx(wins / (len(same) * len(different)))


def test_pair_auc_of_no_pairs_is_not_a_number():
    assert math.isnan(pair_auc(torch.zeros(0), torch.ones(3)))

"""Ratios of means and their intervals against plain resampling."""

import math

import numpy as np
import pytest
import torch

from odam_d2.core.bootstrap import bootstrap_weights, difference, group_numbers, ratio

DRAWS = 400


def rows(seed=0):
    """23 rows of 7 groups, not in order."""
    generator = np.random.default_rng(seed)
    group = generator.integers(0, 7, 23)
    group[:7] = np.arange(7)
    first, second = generator.normal(1, 1, (2, 23))
    below = generator.uniform(0.5, 2, 23)
    return group, first, second, below


def drawn_again(group, weights):
    """For each draw, the rows as a list: those of a group as often as the group was drawn."""
    for draw in weights.tolist():
        yield [row for row, of in enumerate(group) for _ in range(int(draw[of]))]


def test_weights_are_draws_with_replacement():
    weights = bootstrap_weights(6, 5000)
    assert weights.shape == (5000, 6)
    assert (weights.sum(dim=1) == 6).all()
    # Binomial: mean 1, variance 6 (1/6) (5/6).
    assert weights.mean(dim=0).tolist() == pytest.approx([1] * 6, abs=0.07)
    assert weights.var(dim=0).tolist() == pytest.approx([5 / 6] * 6, abs=0.07)
    assert torch.equal(weights, bootstrap_weights(6, 5000))
    assert not torch.equal(weights, bootstrap_weights(6, 5000, seed=1))


def test_against_plain_resampling():
    group, first, second, below = rows()
    weights = bootstrap_weights(7, DRAWS)
    tensors = [torch.as_tensor(x) for x in (first, second, below, group)]
    one = ratio(tensors[0], tensors[2], tensors[3], weights)
    both = difference(*tensors, weights)
    ratios, differences = [], []
    for again in drawn_again(group, weights):
        a, b = (x[again].mean() / below[again].mean() for x in (first, second))
        ratios.append(a)
        differences.append(a - b)
    assert one == pytest.approx((first.mean() / below.mean(), *np.percentile(ratios, [2.5, 97.5])))
    paired = np.percentile(differences, [2.5, 97.5])
    assert both == pytest.approx(((first.mean() - second.mean()) / below.mean(), *paired))


def test_pairing_makes_the_interval_of_equal_differences_a_point():
    """Second = first - below: whatever is drawn, the ratios differ by 1."""
    group, first, _, below = rows(1)
    tensors = [torch.as_tensor(x) for x in (first, first - below, below, group)]
    found = difference(*tensors, bootstrap_weights(7, DRAWS))
    assert found == pytest.approx((1, 1, 1))


def test_draws_without_an_effect_below_are_left_out():
    """Two groups, one without any: in a quarter of the draws there is nothing to divide by."""
    above, below = torch.tensor([2.0, 1.0]), torch.tensor([4.0, 0.0])
    found = ratio(above, below, torch.tensor([0, 1]), bootstrap_weights(2, DRAWS))
    assert found.value == 0.75
    assert math.isfinite(found.low)
    assert (found.low, found.high) == (0.5, 0.75)


def test_numbers_of_groups():
    numbers, count = group_numbers(["b", "a", "b", (1, 2)])
    assert (numbers.tolist(), count) == ([0, 1, 0, 2], 3)


def test_one_group_has_no_interval():
    """Of one image nobody can say how far another would differ; a point would look certain."""
    group, weights = torch.zeros(5, dtype=torch.int64), bootstrap_weights(1, DRAWS)
    one, two = torch.arange(1.0, 6.0), torch.ones(5)
    for found, value in (
        (ratio(one, two, group, weights), 3.0),
        (difference(one, two, two, group, weights), 2.0),
    ):
        assert found.value == pytest.approx(value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert not found.low > 0

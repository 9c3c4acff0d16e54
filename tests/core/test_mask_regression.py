"""Regression on masks against plain algebra with whole matrices."""

import itertools
import math

import numpy as np
import pytest
import torch

from odam_d2.core.mask_regression import prior_deviation, regressed_slopes

GRID = (11, 14)
BOX, LENGTH = torch.tensor([10.0, 14, 30, 34]), 20.0
CORRELATION, NOISE = 0.3, 0.2  # a Gaussian of 1.5 cells


def plain_deviation():
    """Of cells whose middle is no more than 8 pixels beyond the box, and those that touch them."""
    found = np.zeros(GRID)
    for v, u in itertools.product(*map(range, GRID)):
        y, x = 4 * v + 2, 4 * u + 2
        down, across = max(14 - y, y - 34, 0), max(10 - x, x - 30, 0)
        distance = math.hypot(max(0, down - 2), max(0, across - 2))
        if 14 - 8 - 4 < y <= 34 + 8 + 2 and 10 - 8 - 2 <= x <= 30 + 8 + 2:
            found[v, u] = math.exp(-0.5 * (distance / 2) ** 2)
    return found


def plain_slopes(values, masks, deviation):
    """The posterior mean, by the covariance of all pairs of places."""
    radius = math.ceil(3 * 1.5)
    weights = {k: math.exp(-0.5 * (k / 1.5) ** 2) for k in range(-radius, radius + 1)}
    total = sum(weights.values())
    places = list(itertools.product(*map(range, GRID)))
    prior = np.zeros((len(places), len(places)))
    for a, (v, u) in enumerate(places):
        for b, (w, z) in enumerate(places):
            near = weights.get(v - w, 0) * weights.get(u - z, 0) / total**2
            prior[a, b] = deviation[v, u] * near * deviation[w, z]
    varied = masks.reshape(len(masks), -1)
    varied = varied - varied.mean(axis=0)
    covariance = varied @ prior @ varied.T
    noise = NOISE * np.mean(np.diag(covariance)) * np.eye(len(masks))
    weights = np.linalg.inv(covariance + noise) @ (values - values.mean(axis=0))
    return (prior @ varied.T @ weights).T.reshape(-1, *GRID)


def test_the_prior_is_one_inside_of_the_box_and_falls_outside():
    rows, columns, found = prior_deviation(BOX, LENGTH, GRID)
    expected = plain_deviation()
    np.testing.assert_allclose(found, expected[rows, columns], rtol=1e-12)
    assert np.count_nonzero(expected) == expected[rows, columns].size
    assert expected[5, 5] == 1.0
    assert 0 < expected[1, 5] < 0.1  # 8 pixels above the box
    assert expected[5, 13] == 0.0


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_equal_to_the_posterior_mean(dtype, rtol):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(9, *GRID, dtype=torch.float64, generator=generator)
    values = torch.rand(9, 2, dtype=torch.float64, generator=generator)
    ours = regressed_slopes(values.to(dtype), masks.to(dtype), BOX, LENGTH, CORRELATION, NOISE)
    expected = plain_slopes(values.numpy(), masks.numpy(), plain_deviation())
    assert ours.dtype == dtype
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(ours, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_what_one_place_decides_is_found_with_few_masks():
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(24, *GRID, generator=generator) > 0.25).float()
    values = 0.5 + torch.stack([masks[:, 7, 3], -masks[:, 4, 6]], dim=1)
    found = regressed_slopes(values, masks, BOX, LENGTH, 0.1, 0.1)
    assert divmod(int(found[0].argmax()), GRID[1]) == (7, 3)
    assert divmod(int(found[1].argmin()), GRID[1]) == (4, 6)


def test_masks_that_do_not_vary_tell_nothing():
    found = regressed_slopes(torch.rand(1, 3), torch.rand(1, *GRID), BOX, LENGTH, 0.1, 0.1)
    assert found.shape == (3, *GRID)
    assert not found.any()


def test_a_box_outside_of_the_image():
    masks, values = torch.rand(5, *GRID), torch.rand(5, 1)
    for box in ([90.0, 90, 99, 99], [-50.0, -50, -40, -40]):
        found = regressed_slopes(values, masks, torch.tensor(box), 8.0, 0.1, 0.1)
        assert found.isfinite().all()

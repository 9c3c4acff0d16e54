"""Heat maps, smoothing, normalising and combining, by hand and against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from odam_d2.core.heatmap import combine, normalize, smooth, smoothing_radius
from odam_d2.core.windows import cut_window, paste_window

# The first whole number of cells at which exp(-r^2 / 2 sigma^2) has fallen to exp(-4.5).
RADII = [(0.4, 2), (0.5, 2), (1.0, 3), (1.7, 6), (2.0, 6)]


@pytest.mark.parametrize(("sigma", "radius"), RADII)
def test_smoothing_equals_scipy(sigma, radius):
    """scipy cuts at int(truncate * sigma + 0.5): ask it for the radius that is due."""
    x = torch.rand(2, 9, 14, dtype=torch.float64)
    expected = [gaussian_filter(m, sigma, mode="constant", truncate=radius / sigma) for m in x]
    torch.testing.assert_close(smooth(x, sigma), torch.as_tensor(np.stack(expected)))


@pytest.mark.parametrize(("sigma", "radius"), RADII)
def test_the_gaussian_is_cut_at_a_hundredth_of_its_peak(sigma, radius):
    """Where all that reads the radius leaves a margin: a spike spreads so far, and no farther."""
    assert smoothing_radius(sigma) == radius
    assert math.exp(-0.5 * (radius / sigma) ** 2) <= math.exp(-4.5) + 1e-12
    assert math.exp(-0.5 * ((radius - 1) / sigma) ** 2) > math.exp(-4.5)
    x = torch.zeros(1, 21, 21)
    x[0, 10, 10] = 1
    reached = smooth(x, sigma)[0].nonzero()
    assert reached.min(dim=0).values.tolist() == [10 - radius] * 2
    assert reached.max(dim=0).values.tolist() == [10 + radius] * 2


def test_normalize_keeps_zero_maps_and_zeros():
    maps = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert normalize(maps).tolist() == [[[0, 0.5], [1, 0.25]], [[0, 0], [0, 0]]]
    assert normalize(torch.zeros(0, 3, 0, 0)).shape == (0, 3, 0, 0)


def test_combine_is_the_maximum_of_normalised_maps():
    """A map of large values must not hide one of small values."""
    maps = torch.tensor([[[[100.0, 50.0]], [[0.01, 0.02]]]])
    assert combine(maps).tolist() == [[[[1.0, 1.0]]]]


@pytest.mark.parametrize("window", [(1, 2, 3, 4), (-2, -1, 4, 5), (3, 5, 6, 6), (-1, -1, 9, 12)])
def test_paste_is_the_adjoint_of_cut(window):
    """<cut(a), b> = <a, paste(b)> for windows inside and over every border."""
    grid = (6, 8)
    a = torch.rand(2, *grid, dtype=torch.float64)
    b = torch.rand(2, *window[2:], dtype=torch.float64)
    cut = cut_window(a, window)
    assert cut.shape == b.shape
    torch.testing.assert_close((cut * b).sum(), (a * paste_window(b, window, grid)).sum())

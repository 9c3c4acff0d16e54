"""Masks that follow boxes, what they hide, and slopes, against plain loops."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from odam_d2.core.masks import STRIDE, Region, blurred_regions, part_masks, regions, slopes

SIZE = (50, 70)  # no multiple of the stride
BOXES = torch.tensor([[10.0, 6, 26, 31], [30, 10, 66, 46], [31, 11, 66, 46], [12, 10, 20, 20]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_regions_are_whole_cells_around_boxes_the_largest_first():
    """By hand: a quarter of each length beyond; the third box is the second one again."""
    whole, *found = regions(BOXES, SIZE)
    assert whole[:2] == (slice(0, 50), slice(0, 70))
    assert whole.length == pytest.approx(20.0)  # of 20, 36, sqrt(35 x 35), 8.94: the lower median
    # Box 2: x from 30 - 9 to 66 + 9, y from 10 - 9 to 46 + 9, cut off at the border.
    assert found[0] == (slice(0, 50), slice(20, 70), 36.0)
    # Box 1: x from 6 to 30, y from -0.25 to 37.25.
    assert found[1][:2] == (slice(0, 40), slice(4, 32))
    assert found[1].length == pytest.approx(20.0)
    assert found[2][:2] == (slice(4, 24), slice(8, 24))
    assert len(found) == 3
    assert regions(BOXES[:0], SIZE) == []


def test_boxes_of_no_extent_and_outside_of_the_image():
    outside = torch.tensor([[80.0, 90, 95, 99], [3, 3, 3, 3]])
    found = regions(outside, SIZE)
    assert [region.length for region in found] == [8.0] * len(found)
    masks = part_masks(SIZE, found, 1 / 8, 3, generator())
    assert masks.isfinite().all()


def test_each_place_is_hidden_once():
    found = regions(BOXES, SIZE)
    masks = part_masks(SIZE, found, 1 / 4, 5, generator(1))
    assert masks.shape == (5, *SIZE)
    assert masks.min() >= -1e-6
    torch.testing.assert_close(masks.sum(dim=0), torch.full(SIZE, 4.0))
    shares = torch.stack([part_masks(SIZE, found, 1 / 4, 5, generator(seed)) for seed in range(40)])
    assert shares.mean(dim=0).sub(0.8).abs().max() < 0.15  # none is hidden more than others


def test_the_grain_follows_the_box():
    """A mask goes from one cell to the next linearly: between their middles by 1 / cell."""
    for length in (40.0, 80.0):
        of = [Region(slice(0, 60), slice(0, 90), length)]
        mask = part_masks((60, 90), of, 1 / 4, 2, generator(2))[0]
        steepest = mask.diff(dim=1).abs().max()
        assert float(steepest) == pytest.approx(4 / length, rel=0.1)


def test_masks_of_cells_are_means_over_pixels():
    found = regions(BOXES, SIZE)
    fine = part_masks(SIZE, found, 1 / 4, 3, generator(3)).numpy()
    coarse = part_masks(SIZE, found, 1 / 4, 3, generator(3), STRIDE).numpy()
    assert coarse.shape == (3, 13, 18)
    for v in range(13):
        for u in range(18):
            cell = fine[:, 4 * v : 4 * v + 4, 4 * u : 4 * u + 4]
            np.testing.assert_allclose(coarse[:, v, u], cell.mean(axis=(1, 2)), atol=1e-5)


def test_what_is_hidden_is_blurred_by_shares_of_the_box():
    image = torch.rand(2, *SIZE, dtype=torch.float64, generator=generator(4))
    of = [Region(slice(0, 50), slice(0, 70), 20.0), Region(slice(8, 40), slice(12, 50), 40.0)]
    ours = blurred_regions(image, of, 0.1)

    def plain(sigma):
        smooth = [gaussian_filter(x, sigma, mode="constant", truncate=20) for x in image]
        ones = gaussian_filter(np.ones(SIZE), sigma, mode="constant", truncate=20)
        return np.stack(smooth) / ones

    expected = plain(2.0)
    expected[:, 8:40, 12:50] = plain(4.0)[:, 8:40, 12:50]
    np.testing.assert_allclose(ours, expected, atol=1e-3)  # ours is cut four deviations off
    assert torch.equal(blurred_regions(image, [], 0.1), image)


def test_slopes_equal_plain_loops():
    masks = torch.rand(9, 3, 5, dtype=torch.float64, generator=generator(5))
    masks[:, 0, 0] = 0.5  # a place that no mask changes
    values = torch.rand(9, 2, dtype=torch.float64, generator=generator(6))
    ours = slopes(values, masks.split(4))
    for m in range(2):
        for v in range(3):
            for u in range(5):
                of_place, of_value = masks[:, v, u].numpy(), values[:, m].numpy()
                covariance = np.mean((of_place - of_place.mean()) * (of_value - of_value.mean()))
                variance = np.mean((of_place - of_place.mean()) ** 2)
                expected = covariance / variance if (v, u) != (0, 0) else 0.0
                assert float(ours[m, v, u]) == pytest.approx(expected, abs=1e-12)


def test_slopes_of_what_one_place_decides():
    masks = torch.rand(20, 4, 6, generator=generator(7))
    ours = slopes(3 - 2 * masks[:, 2, 4][:, None], masks.split(7))
    assert float(ours[0, 2, 4]) == pytest.approx(-2.0, rel=1e-5)

"""Deletion and insertion: which pixels change, at which step, and to what."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from odam_d2.core.errors import InputError
from odam_d2.core.perturbation import FILLS, auc, filling, perturb, ranking


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ranking_puts_the_most_important_first():
    heat = torch.tensor([[0.1, 3.0, 0.5], [2.0, 0.0, 1.0]])
    assert ranking(heat, generator()).tolist() == [1, 3, 5, 2, 0, 4]


def test_equal_pixels_come_in_random_order():
    """In the image's order, a flat map would always delete the sky first."""
    order = ranking(torch.ones(8, 12), generator())
    assert sorted(order.tolist()) == list(range(96))
    assert order.tolist() != list(range(96))
    assert float((order[:48] < 48).float().mean()) == pytest.approx(0.5, abs=0.25)
    assert order.tolist() == ranking(torch.ones(8, 12), generator()).tolist()


def test_perturb_by_hand():
    image, fill = torch.arange(6.0).view(1, 2, 3) + 10, torch.zeros(1, 2, 3)
    order = torch.tensor([4, 0, 2, 1, 3, 5])
    deleted = perturb(image, fill, order, [0, 2, 6], insertion=False)
    assert deleted[:, 0].tolist() == [
        [[10, 11, 12], [13, 14, 15]],
        [[0, 11, 12], [13, 0, 15]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    inserted = perturb(image, fill, order, [0, 2, 6], insertion=True)
    assert (deleted + inserted == image).all()  # with a black fill, one is what the other lacks


@pytest.mark.parametrize("kind", FILLS)
def test_fillings(kind):
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[0, :, 30:] = 200
    image[1] = 90
    before = image.clone()
    found = filling(image, kind, generator(3))
    assert found.shape == (3, 40, 60)
    assert found.is_floating_point()
    assert (image == before).all()
    if kind == "random":
        assert float(found.mean()) == pytest.approx(127.5, abs=5)
        assert float(found.std()) == pytest.approx(255 / 12**0.5, abs=5)
        assert (found == filling(image, kind, generator(3))).all()
    elif kind == "mean":
        assert found[:, 7, 9].tolist() == [100, 90, 0]
    else:
        # The edge is smoothed, a flat channel stays flat up to the border.
        assert 20 < float(found[0, 20, 29]) < 100 < float(found[0, 20, 30]) < 180
        torch.testing.assert_close(found[1], torch.full((40, 60), 90.0))


@pytest.mark.parametrize("shape", [(2, 224, 30), (2, 30, 448)])
def test_the_blur_is_that_of_rise(shape):
    """Five pixels for 224 of the longer side; at the border, of what lies inside."""
    image = torch.rand(shape, generator=generator(), dtype=torch.float64)
    sigma = 5 * max(shape) / 224

    def blurred(x):
        return gaussian_filter(x, sigma, mode="constant", truncate=3)

    expected = [blurred(channel) / blurred(np.ones(shape[1:])) for channel in image.numpy()]
    found = filling(image, "blur", generator())
    torch.testing.assert_close(found, torch.as_tensor(np.stack(expected)))


def test_an_unknown_filling_lists_those_that_there_are():
    with pytest.raises(InputError, match="'black'; it must be one of random, mean, blur"):
        filling(torch.zeros(3, 4, 5), "black", generator())


def test_auc_by_hand():
    # Trapezoids of width 1/2: (1 + 0.5) / 4 + (0.5 + 0) / 4.
    assert auc(torch.tensor([[1.0, 0.5, 0.0], [1, 1, 1]])).tolist() == [0.5, 1]

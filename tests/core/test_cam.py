"""Grad-CAM and Grad-CAM++ against their formulas, written as loops over places and channels."""

import numpy as np
import pytest
import torch

from odam_d2.core.cam import grad_cam, grad_cam_pp


def loops(gradient, feature, plus):
    channels, height, width = gradient.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    total = np.zeros((height, width))
    for c in range(channels):
        if plus:
            sum_a = sum(feature[c, a, b] for a, b in places)
            weight = 0.0
            for i, j in places:
                g = gradient[c, i, j]
                below = 2 * g**2 + sum_a * g**3
                alpha = g**2 / below if below else 0.0
                weight += alpha * max(g, 0.0)
        else:
            weight = sum(gradient[c, i, j] for i, j in places) / len(places)
        total += weight * feature[c]
    return total


@pytest.mark.parametrize("plus", [False, True], ids=["grad_cam", "grad_cam_pp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_the_published_formula(plus, dtype):
    generator = torch.Generator().manual_seed(4)
    gradient = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    gradient[:, 1] *= torch.rand(2, 4, 6, generator=generator) < 0.4  # 0 / 0 in Grad-CAM++
    feature = torch.rand(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    ours = (grad_cam_pp if plus else grad_cam)(gradient.to(dtype), feature.to(dtype))
    assert ours.dtype == dtype
    for row in range(2):
        expected = torch.as_tensor(loops(gradient[row].numpy(), feature[row].numpy(), plus))
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        assert float((ours[row] - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("method", [grad_cam, grad_cam_pp])
def test_any_number_of_leading_axes(method):
    """One map, and instances with targets each, are what they are one at a time."""
    generator = torch.Generator().manual_seed(5)
    gradient = torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64)
    feature = torch.rand(3, 1, 4, 5, 6, generator=generator, dtype=torch.float64)
    together = method(gradient, feature)
    assert together.shape == (3, 2, 5, 6)
    for i in range(3):
        for t in range(2):
            alone = method(gradient[i, t], feature[i, 0])
            torch.testing.assert_close(together[i, t], alone)


def test_grad_cam_pp_where_the_denominator_vanishes():
    """2 g^2 + g^3 sum A is 0 for g = 1 where A sums to -2: the first channel has weight 0."""
    gradient = torch.tensor([[[1.0, 0.0]], [[0.5, 0.0]]])
    feature = torch.tensor([[[-3.0, 1.0]], [[4.0, -4.0]]])
    # The second sums to 0: a = 1/2 where g is 1/2, so its weight is 1/4.
    assert grad_cam_pp(gradient, feature).tolist() == [[1.0, -1.0]]


def test_a_zero_gradient_gives_a_zero_map():
    zero, feature = torch.zeros(1, 2, 3, 5), torch.ones(1, 2, 3, 5)
    assert not grad_cam(zero, feature).any()
    assert not grad_cam_pp(zero, feature).any()

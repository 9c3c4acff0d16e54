"""Separable RoIAlign against torchvision's kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align as torchvision_roi_align

from odam_d2.core.heatmap import heat_map
from odam_d2.core.roi_align import RoIAlignSpec, adjoint, pooled_heat_maps, roi_align
from odam_d2.core.windows import paste_window

GRID = (13, 21)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def boxes_over_borders(scale, dtype, count=10, seed=0):
    """Boxes inside, across every border, outside, of one pixel, and of no size."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([GRID[1], GRID[0]]) / scale
    centres = torch.rand(count, 2, generator=generator) * size * 1.3 - 0.15 * size
    sides = torch.rand(count, 2, generator=generator) * size
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    w, h = size.tolist()
    special = torch.tensor(
        [
            [-0.4 * w, -0.3 * h, 1.2 * w, 1.4 * h],
            [3, 5, 4, 6],
            [0, 0, 0.5, 0.5],
            [9, 9, 9, 9],
            [-60, -70, -40, -30],
            [w + 40, h + 40, w + 90, h + 60],
            [w - 1, h - 1, w, h],
        ]
    )
    return torch.cat([boxes, special]).to(dtype)


def reference(feature, boxes, spec):
    return torchvision_roi_align(
        feature[None], [boxes], spec.output_size, spec.spatial_scale, spec.sampling_ratio,
        spec.aligned,
    )  # fmt: skip


SPECS = [
    RoIAlignSpec((7, 5), scale, ratio, aligned)
    for scale in (1 / 4, 1 / 16)
    for ratio in (0, 2)
    for aligned in (True, False)
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spec", SPECS)
def test_forward_and_gradient_equal_torchvision(spec, dtype):
    torch.manual_seed(0)
    feature = torch.randn(3, *GRID, dtype=dtype, requires_grad=True)
    boxes = boxes_over_borders(spec.spatial_scale, dtype)
    ours, theirs = roi_align(feature, boxes, spec), reference(feature, boxes, spec)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype])

    seed = torch.randn_like(theirs)
    (expected,) = torch.autograd.grad(theirs, feature, seed)
    (gradient,) = torch.autograd.grad(ours, feature, seed)
    by_hand = adjoint(seed, boxes, GRID, spec).sum(0)
    for found in (gradient, by_hand):
        torch.testing.assert_close(found, expected, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize("spec", SPECS[::3])
def test_heat_maps_equal_autograd_through_torchvision(spec, sigma, dtype):
    """Both ways of contracting (windows taller and lower than the bins) are in the boxes."""
    torch.manual_seed(1)
    feature = torch.randn(4, *GRID, dtype=dtype, requires_grad=True)
    boxes = boxes_over_borders(spec.spatial_scale, dtype)
    pooled = reference(feature, boxes, spec)
    gradient = torch.randn(len(boxes), 2, *pooled.shape[1:], dtype=dtype)
    maps, origins = pooled_heat_maps(feature.detach(), boxes, gradient, spec, sigma)
    for i in range(len(boxes)):
        for t in range(2):
            # One (instance, target) at a time, through torchvision's kernel.
            output = (pooled[i] * gradient[i, t]).sum()
            (full,) = torch.autograd.grad(output, feature, retain_graph=True)
            expected = heat_map(full, feature.detach(), sigma)
            found = paste_window(maps[i, t], (*origins[i].tolist(), *maps.shape[-2:]), GRID)
            scale = expected.max().clamp(min=1e-3)
            torch.testing.assert_close(
                found / scale, expected / scale, rtol=0, atol=3 * TOLERANCE[dtype]
            )


def test_no_boxes():
    spec = SPECS[0]
    feature, boxes = torch.randn(3, *GRID), torch.zeros(0, 4)
    assert roi_align(feature, boxes, spec).shape == (0, 3, 7, 5)
    assert adjoint(torch.zeros(0, 3, 7, 5), boxes, GRID, spec).shape == (0, 3, *GRID)
    maps, origins = pooled_heat_maps(feature, boxes, torch.zeros(0, 2, 3, 7, 5), spec)
    assert maps.shape[:2] == (0, 2)
    assert origins.shape == (0, 2)


def test_smoothing_widens_windows_by_its_radius():
    """On each side, and no farther: 0.8 cells reach ceil(3 * 0.8) = 3."""
    spec, boxes = RoIAlignSpec((2, 2), 1 / 4), torch.tensor([[8.0, 8, 24, 40], [0.0, 4, 60, 12]])
    feature, gradient = torch.rand(3, *GRID), torch.rand(2, 1, 3, 2, 2)
    plain, first = pooled_heat_maps(feature, boxes, gradient, spec)
    smooth, origins = pooled_heat_maps(feature, boxes, gradient, spec, 0.8)
    assert [a - b for a, b in zip(smooth.shape, plain.shape, strict=True)] == [0, 0, 6, 6]
    assert (first - origins).tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("box", [[12.0, 12, 8, 9], [40.0, 30, 4, 2]])
def test_a_box_inside_out_pools_zeros(box):
    """A little, and by so many cells that the number of samples would be negative."""
    pooled = roi_align(torch.ones(3, *GRID), torch.tensor([box]), RoIAlignSpec((2, 2), 1 / 4))
    assert pooled.shape == (1, 3, 2, 2)
    assert not pooled.any()


def test_differentiates_twice():
    """Odam-Train differentiates the heat map; torchvision's own RoIAlign cannot do that."""
    torch.manual_seed(2)
    spec = RoIAlignSpec((2, 3), 0.5, 0, True)
    feature = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 2.0, 9.5, 7.0], [-3.0, 0.0, 6.0, 12.0]], dtype=torch.float64)
    pool = lambda f: roi_align(f, boxes, spec).pow(3)  # noqa: E731
    assert torch.autograd.gradgradcheck(pool, feature)


def test_maps_differentiate_with_respect_to_features_and_gradients():
    torch.manual_seed(3)
    spec = RoIAlignSpec((2, 2), 0.5, 2, True)
    feature = torch.rand(2, 5, 7, dtype=torch.float64, requires_grad=True)
    gradient = torch.rand(1, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 1.0, 12.0, 9.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f, g: pooled_heat_maps(f, boxes, g, spec)[0], (feature, gradient)
    )


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bins=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    corners=st.lists(
        st.tuples(*[st.floats(-40, 120, width=32)] * 4), min_size=1, max_size=4
    ),
)  # fmt: skip
def test_any_shape_equals_torchvision(height, width, bins, ratio, aligned, corners):
    spec = RoIAlignSpec(bins, 1 / 8, ratio, aligned)
    feature = torch.arange(2.0 * height * width, dtype=torch.float64).sin()
    feature = feature.view(2, height, width)
    ends = torch.tensor(corners, dtype=torch.float64).view(-1, 2, 2)
    # torchvision crashes on boxes that are inside out.
    boxes = torch.cat([ends.amin(dim=1), ends.amax(dim=1)], dim=1)
    torch.testing.assert_close(
        roi_align(feature, boxes, spec), reference(feature, boxes, spec), rtol=0, atol=1e-12
    )

"""Separable RoIAlign, and maps of what was pooled by it, against torchvision's kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align as torchvision_roi_align

from odam_d2.core.cam import odam
from odam_d2.core.heatmap import smooth
from odam_d2.core.pooled_windows import pooled_heat_maps
from odam_d2.core.roi_align import BoxPooling, Grids, RoIAlignSpec
from odam_d2.core.windows import cut_window, paste_window, refined

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


def first_of(boxes):
    """Image and level of boxes on the only feature map."""
    return 2 * [torch.zeros(len(boxes), dtype=torch.int64)]


def roi_align(feature, boxes, spec):
    """By the matrices, on windows alone."""
    grids = Grids.of([feature[None]], [spec], *first_of(boxes))
    pooling = BoxPooling.of_boxes(boxes, grids, spec.output_size)
    out = feature.new_zeros((len(boxes), len(feature), *spec.output_size))
    for i, window in enumerate(pooling.places):
        rows, columns = pooling.rows[i, :, : window[2]], pooling.columns[i, :, : window[3]]
        out[i] = rows @ cut_window(feature, window) @ columns.t()
        assert (pooling.rows[i, :, window[2] :] == 0).all()
        assert (pooling.columns[i, :, window[3] :] == 0).all()
        assert min(window[:2]) >= 0
        assert window[0] + window[2] <= feature.shape[1]
        assert window[1] + window[3] <= feature.shape[2]
    return out


def heat_maps(feature, boxes, gradient, spec, sigma=0.0, **options):
    image, level = first_of(boxes)
    stages = [(list(range(gradient.shape[1])), gradient)]
    return pooled_heat_maps(
        [feature[None]], boxes[:, None], image, level[:, None], stages, [spec],
        num_targets=gradient.shape[1], sigma=sigma, **options,
    )  # fmt: skip


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
    torch.testing.assert_close(gradient, expected, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize("spec", SPECS[::3])
def test_heat_maps_equal_autograd_through_torchvision(together, spec, sigma, dtype):
    """Both ways of contracting (windows taller and lower than the bins) are in the boxes."""
    torch.manual_seed(1)
    feature = torch.randn(4, *GRID, dtype=dtype, requires_grad=True)
    boxes = boxes_over_borders(spec.spatial_scale, dtype)
    pooled = reference(feature, boxes, spec)
    gradient = torch.randn(len(boxes), 2, *pooled.shape[1:], dtype=dtype)
    # Of 40 bytes for each of the cells, some boxes fit together.
    maps, origins = heat_maps(feature.detach(), boxes, gradient, spec, sigma, max_bytes=2**15)
    maps = maps.relu()
    for i in range(len(boxes)):
        for t in range(2):
            # One (instance, target) at a time, through torchvision's kernel.
            output = (pooled[i] * gradient[i, t]).sum()
            (full,) = torch.autograd.grad(output, feature, retain_graph=True)
            expected = odam(smooth(full, sigma), feature.detach()).relu()
            found = paste_window(maps[i, t], (*origins[i].tolist(), *maps.shape[-2:]), GRID)
            scale = expected.max().clamp(min=1e-3)
            torch.testing.assert_close(
                found / scale, expected / scale, rtol=0, atol=3 * TOLERANCE[dtype]
            )


def test_no_boxes(together):
    spec = SPECS[0]
    feature, boxes = torch.randn(3, *GRID), torch.zeros(0, 4)
    assert roi_align(feature, boxes, spec).shape == (0, 3, 7, 5)
    maps, origins = heat_maps(feature, boxes, torch.zeros(0, 2, 3, 7, 5), spec)
    assert maps.shape[:2] == (0, 2)
    assert origins.shape == (0, 2)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("max_bytes", [2**10, 2**26])
def test_boxes_of_several_levels_images_and_stages(together, sigma, max_bytes):
    """
    The sum of each stage's box alone, on the finest of the instance's levels; no output depends on
    the first of three stages, which counts as one of the instance's levels nevertheless.
    """
    generator = torch.Generator().manual_seed(5)
    count = 12
    boxes = torch.stack(
        [boxes_over_borders(1 / 8, torch.float64, count - 7, seed) for seed in range(3)], dim=1
    )
    boxes[3] = torch.tensor([9.0, 9, 17, 17])  # as RoIAlign reads it, at three places
    # Another number of samples, another frame.
    specs = [RoIAlignSpec((3, 2), 1 / 4, 0, True), RoIAlignSpec((3, 2), 1 / 8, 2, False),
             RoIAlignSpec((3, 2), 1 / 16, 1, True)]  # fmt: skip
    features = [torch.rand(2, 3, h, w, dtype=torch.float64, generator=generator)
                for h, w in ((26, 41), (13, 20), (7, 10))]  # fmt: skip
    image = torch.arange(count) % 2
    level = torch.randint(3, (count, 3), generator=generator)
    gradients = [
        torch.randn(count, 2, 3, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2)
    ]
    maps, origins = pooled_heat_maps(
        features, boxes, image, level, [None, *(([0, 1], of) for of in gradients)], specs,
        num_targets=2, sigma=sigma, max_bytes=max_bytes,
    )  # fmt: skip
    grid = (140, 160)  # that holds all of them, moved by 20 cells of the finest level
    for i in range(count):
        total = torch.zeros(2, *grid, dtype=torch.float64)
        finest = int(level[i].min())
        for stage, gradient in ((1, gradients[0]), (2, gradients[1])):
            of_level = int(level[i, stage])
            one, origin = heat_maps(
                features[of_level][image[i]], boxes[[i], stage], gradient[[i]], specs[of_level],
                sigma,
            )  # fmt: skip
            times = 2 ** (of_level - finest)
            part = refined(one[0], times)
            place = (origin[0] * times + 20).tolist()
            total += paste_window(part, (*place, *part.shape[-2:]), grid)
        place = (origins[i] + 20).tolist()
        found = paste_window(maps[i], (*place, *maps.shape[-2:]), grid)
        torch.testing.assert_close(found, total)


def test_stages_of_which_some_targets_know_nothing():
    """A cascade's sides owe nothing to a stage but the last: the class alone has two summands."""
    spec, feature = RoIAlignSpec((2, 2), 1 / 4), torch.rand(3, *GRID)
    boxes = torch.tensor([[[8.0, 8, 24, 40], [0.0, 4, 60, 12]]])
    first, last = torch.rand(1, 1, 3, 2, 2), torch.rand(1, 2, 3, 2, 2)
    image, level = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)
    maps, _ = pooled_heat_maps(
        [feature[None]], boxes, image, level, [([1], first), ([0, 1], last)], [spec], num_targets=2
    )
    zeros = torch.cat([torch.zeros_like(first), first], dim=1)
    both, _ = pooled_heat_maps(
        [feature[None]], boxes, image, level, [([0, 1], zeros), ([0, 1], last)], [spec],
        num_targets=2,
    )  # fmt: skip
    torch.testing.assert_close(maps, both)


def test_a_window_has_no_more_cells_than_its_samples_need():
    """Also beside a box of so many samples that those of the small one would reach farther."""
    boxes = torch.tensor([[9.0, 9, 17, 17], [0.0, 0, 80, 48]])
    feature, gradient = torch.rand(3, *GRID), torch.rand(2, 1, 3, 2, 2)
    # A bin is a cell wide, with a sample in its middle: at 2.25 and 3.25, between cells 2 and 4.
    spec = RoIAlignSpec((2, 2), 1 / 4)
    grids = Grids.of([feature[None]], [spec], *first_of(boxes))
    assert BoxPooling.of_boxes(boxes, grids, (2, 2)).places[0] == (2, 2, 3, 3)
    alone, _ = heat_maps(feature, boxes[:1], gradient[:1], spec)
    both, _ = heat_maps(feature, boxes, gradient, spec)
    assert torch.equal(both[0, :, :3, :3], alone[0])


def test_smoothing_widens_windows_by_its_radius(together):
    """On each side, and no farther: 0.8 cells reach ceil(3 * 0.8) = 3."""
    spec, boxes = RoIAlignSpec((2, 2), 1 / 4), torch.tensor([[8.0, 8, 24, 40], [0.0, 4, 60, 12]])
    feature, gradient = torch.rand(3, *GRID), torch.rand(2, 1, 3, 2, 2)
    plain, first = heat_maps(feature, boxes, gradient, spec)
    smooth, origins = heat_maps(feature, boxes, gradient, spec, 0.8)
    assert [a - b for a, b in zip(smooth.shape, plain.shape, strict=True)] == [0, 0, 6, 6]
    assert (first - origins).tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("box", [[12.0, 12, 8, 9], [40.0, 30, 4, 2]])
def test_a_box_inside_out_pools_zeros(box):
    """A little, and by so many cells that the number of samples would be negative."""
    pooled = roi_align(torch.ones(3, *GRID), torch.tensor([box]), RoIAlignSpec((2, 2), 1 / 4))
    assert pooled.shape == (1, 3, 2, 2)
    assert not pooled.any()


def test_maps_differentiate_with_respect_to_features_and_gradients(together):
    torch.manual_seed(3)
    spec = RoIAlignSpec((2, 2), 0.5, 2, True)
    feature = torch.rand(2, 5, 7, dtype=torch.float64, requires_grad=True)
    gradient = torch.rand(1, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 1.0, 12.0, 9.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f, g: heat_maps(f, boxes, g, spec)[0], (feature, gradient)
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

"""Windows of feature maps: joined, refined and added up as whole maps are; gradients of cuts."""

import pytest
import torch

from odam_d2.core.windows import (
    cut_window,
    cut_windows,
    join_windows,
    paste_window,
    refined,
)

GRID = (7, 9)


def whole(values, origins, grid=GRID):
    """(N, T, H, W), each window where it belongs."""
    windows = [(*origin, *values.shape[-2:]) for origin in origins.tolist()]
    return torch.stack([paste_window(v, w, grid) for v, w in zip(values, windows, strict=True)])


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def test_groups_are_joined_in_the_order_of_instances():
    small, large = numbers(2, 1, 2, 3), numbers(1, 1, 4, 2, seed=1)
    places = torch.tensor([[1, 1], [-1, 5]]), torch.tensor([[2, 7]])
    values, origins = join_windows(
        [(torch.tensor([2, 0]), small, places[0]), (torch.tensor([1]), large, places[1])], 3
    )
    assert values.shape == (3, 1, 4, 3)
    assert origins.tolist() == [[-1, 5], [2, 7], [1, 1]]
    expected = torch.cat([whole(small[1:], places[0][1:]), whole(large, places[1]),
                          whole(small[:1], places[0][:1])])  # fmt: skip
    torch.testing.assert_close(whole(values, origins), expected)


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_finer_cells_share_a_cell_evenly(ratio):
    """Each of the ratio^2 cells within a cell has its part, and the map keeps its sum."""
    values, origins = numbers(1, 2, 3, 2), torch.tensor([[-1, 4]])
    finer = whole(refined(values, ratio), origins * ratio, [side * ratio for side in GRID])
    coarse = whole(values, origins)
    for y in range(GRID[0] * ratio):
        for x in range(GRID[1] * ratio):
            expected = coarse[0, :, y // ratio, x // ratio] / ratio**2
            torch.testing.assert_close(finer[0, :, y, x], expected)


WINDOWS = [(1, 2, 3, 4), (-2, -1, 4, 5), (3, 5, 6, 6), (-1, -1, 9, 12), (2, 2, 2, 2)]


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [4], [1, 3]], ids=str)
def test_gradients_of_windows_add_up(chosen):
    """As autograd adds them, where some windows are not used, and each one may be written to."""
    ours, theirs = (numbers(2, *GRID).requires_grad_() for _ in range(2))
    found = cut_windows(ours, WINDOWS)
    expected = [cut_window(theirs, window) for window in WINDOWS]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != ours.data_ptr()
    for parts in (found, expected):
        sum((parts[k] ** 2 * (k + 1)).sum() for k in chosen).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_a_graph_windows_are_views():
    feature = numbers(2, *GRID)
    for given_feature in (feature, feature.clone().requires_grad_()):
        with torch.no_grad():
            (inside,) = cut_windows(given_feature, [(1, 2, 3, 4)])
        assert inside.untyped_storage().data_ptr() == given_feature.untyped_storage().data_ptr()
    assert len(cut_windows(feature.requires_grad_(), [])) == 0

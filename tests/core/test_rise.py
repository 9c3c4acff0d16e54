"""D-RISE's masks and similarity, against OpenCV and plain loops."""

import cv2
import pytest
import torch

from odam_d2.core.rise import reliability, rise_mask, similarity


@pytest.mark.parametrize("size", [(60, 90), (33, 20)])
def test_a_mask_is_the_enlarged_grid_cut_at_the_drawn_place(size):
    grid = (4, 6)
    ours = rise_mask(size, grid, 0.5, torch.Generator().manual_seed(11))
    again = torch.Generator().manual_seed(11)  # the same draws, in the same order
    coarse = (torch.rand(*grid, generator=again) < 0.5).float().numpy()
    cell = [-(-size[0] // 4), -(-size[1] // 6)]
    large = cv2.resize(coarse, (7 * cell[1], 5 * cell[0]), interpolation=cv2.INTER_LINEAR)
    top, left = (int(torch.randint(0, c, (), generator=again)) for c in cell)
    expected = torch.as_tensor(large[top : top + size[0], left : left + size[1]])
    assert ours.shape == size
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_masks_are_seen_as_often_as_asked():
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([rise_mask((48, 64), (8, 8), 0.3, generator) for _ in range(200)])
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1


def test_similarity_by_hand():
    # Best of 0.5 * cos(0) = 0.5 and 0.9 * cos(60 degrees) = 0.45; then of 0.2 * 0 and 0.4 * 0.866.
    iou = torch.tensor([[0.5, 0.9], [0.2, 0.4]])
    wanted = torch.tensor([[0.2, 0.0], [0.0, 0.7]])
    now = torch.tensor([[0.6, 0.0], [0.5, 0.75**0.5]])
    assert similarity(iou, wanted, now).tolist() == pytest.approx([0.5, 0.4 * 0.75**0.5])


def test_nothing_found_is_not_similar():
    assert similarity(torch.zeros(2, 0), torch.rand(2, 3), torch.zeros(0, 3)).tolist() == [0, 0]


def test_reliability_of_halves():
    first = torch.rand(1, 6, 8)
    assert reliability(first, 3 * first + 1).item() == pytest.approx(1)
    assert reliability(first, -first).item() == 0
    assert reliability(first, torch.ones(1, 6, 8)).item() == 0
    # r = 0.6 of two maps of mean 0 and length 1: (1, -1)/sqrt2 and 0.6 (1, -1)/sqrt2 + 0.8 ...
    a = torch.tensor([[[1.0, -1.0, 0.0, 0.0]]])
    b = torch.tensor([[[0.6, -0.6, 0.8, -0.8]]])
    assert reliability(a, b).item() == pytest.approx(2 * 0.6 / 1.6)

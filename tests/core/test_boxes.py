"""How much boxes overlap: by hand, and against torchvision."""

import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou

from odam_d2.core.boxes import box_iou


@pytest.mark.parametrize(
    ("other", "iou", "of_box"),
    [
        ((0, 0, 10, 20), 1, 1),
        ((5, 0, 15, 20), 100 / 300, 1 / 2),
        ((5, 10, 15, 30), 50 / 350, 1 / 4),
        ((10, 0, 20, 20), 0, 0),  # side by side
        ((0, 20, 10, 40), 0, 0),
        ((30, 50, 40, 60), 0, 0),
        ((2, 5, 4, 9), 8 / 200, 8 / 200),  # within
        ((-5, -5, 15, 25), 200 / 600, 1),  # around
        ((4, 0, 4, 20), 0, 0),  # no area
        ((9, 19, 1, 1), 0, 0),  # the wrong way round
    ],
)
def test_by_hand(other, iou, of_box):
    box, other = torch.tensor([[[0, 0, 10, 20]], [other]], dtype=torch.float64)
    assert float(box_iou(box, other)) == pytest.approx(iou, abs=1e-15)
    assert float(box_iou(other, box)) == pytest.approx(iou, abs=1e-15)
    assert float(box_iou(box, other, of_first=True)) == pytest.approx(of_box, abs=1e-15)


def test_every_pair_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    corners, sizes = 40 * torch.rand(2, 50, 2, generator=generator)
    boxes = torch.cat([corners, corners + sizes], dim=1)
    first, second = boxes[:20], boxes[20:]
    assert torch.allclose(box_iou(first, second), torchvision_iou(first, second))


def test_nothing_overlaps_where_there_is_no_area_and_no_box():
    flat = torch.tensor([[3.0, 3, 3, 9], [3, 3, 3, 9]])  # torchvision says nan
    assert box_iou(flat, flat).tolist() == [[0, 0], [0, 0]]
    assert box_iou(flat, flat, of_first=True).tolist() == [[0, 0], [0, 0]]
    assert box_iou(flat, flat[:0]).shape == (2, 0)
    assert box_iou(flat[:0], flat, of_first=True).shape == (0, 2)

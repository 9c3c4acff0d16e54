"""Where objects are, in pixels: boxes that end between pixels, masks of every kind, crowds."""

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.structures import BoxMode

from odam_d2.evaluation.regions import box_regions, object_boxes, object_masks, true_objects

HEIGHT, WIDTH = 9, 13


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ([3.0, 2, 7, 5], range(3, 7), range(2, 5)),
        ([3.2, 2.9, 6.1, 4.5], range(3, 7), range(2, 5)),  # parts of pixels count
        ([3.2, 2.2, 3.3, 2.3], range(3, 4), range(2, 3)),  # within one pixel
        ([-2.5, -1, 2, 1.5], range(2), range(2)),  # over the border
        ([11.5, 7.5, 20, 11], range(11, 13), range(7, 9)),
    ],
)
def test_a_box_covers_the_pixels_that_it_touches(box, columns, rows):
    """Pixel (y, x) is the square from (x, y) to (x + 1, y + 1)."""
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for y in rows:
        for x in columns:
            expected[y, x] = True
    other = torch.tensor([0.0, 0, WIDTH, HEIGHT])
    found = box_regions(torch.stack([torch.tensor(box), other]), HEIGHT, WIDTH)
    assert torch.equal(found[0], expected)
    assert found[1].all()


def test_crowds_are_no_objects_and_boxes_are_corners():
    entry = {
        "annotations": [
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS},
            {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 1},
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0},
        ]
    }
    objects = true_objects(entry)
    assert objects == [entry["annotations"][0], entry["annotations"][2]]
    assert object_boxes(objects).tolist() == [[1, 2, 4, 6], [1, 2, 3, 4]]
    assert object_boxes([]).shape == (0, 4)


def test_masks_of_every_kind_are_the_same_pixels():
    """A rectangle as polygon, as run lengths, and as those compressed: rows 2..4, columns 3..7."""
    expected = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    expected[2:5, 3:8] = 1
    start = 3 * HEIGHT + 2  # zeros before the first column's three ones, in columns' order
    counts = [start, 3, *[HEIGHT - 3, 3] * 4, HEIGHT * WIDTH - (7 * HEIGHT + 5)]
    kinds = [
        [[3, 2, 8, 2, 8, 5, 3, 5]],
        {"size": [HEIGHT, WIDTH], "counts": counts},
        mask_utils.encode(expected),
    ]
    masks = object_masks([{"segmentation": kind} for kind in kinds], HEIGHT, WIDTH)
    assert masks.dtype == torch.bool
    for mask in masks:
        assert torch.equal(mask, torch.as_tensor(expected).bool())
    assert object_masks([{"segmentation": kinds[0]}, {}], HEIGHT, WIDTH) is None
    assert object_masks([], HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)

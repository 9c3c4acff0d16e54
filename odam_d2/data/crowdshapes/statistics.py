"""How crowded images are, from their COCO annotations."""

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask


def crowding_statistics(images: Iterable[list[dict]]) -> dict[str, float]:
    """Objects and overlaps per image.

    Args:
        images: for each image its annotations, with `bbox` (x, y, width, height in pixels) and
            `category_id`.

    Returns:
        images: how many.
        objects_per_image: mean count.
        same_class_pairs_per_image: mean number of pairs of one class with box IoU > 0.5.
        overlapping_fraction: fraction of the objects whose box overlaps another's, of any class,
            by IoU > 0.3.
    """
    count, objects, pairs, overlapping = 0, 0, 0, 0
    for annotations in images:
        count, objects = count + 1, objects + len(annotations)
        if not annotations:
            continue
        boxes = np.array([a["bbox"] for a in annotations], np.float64)
        classes = np.array([a["category_id"] for a in annotations])
        iou = coco_mask.iou(boxes, boxes, [0] * len(boxes))
        np.fill_diagonal(iou, 0.0)
        pairs += int(np.triu((iou > 0.5) & (classes[:, None] == classes)).sum())
        overlapping += int((iou > 0.3).any(1).sum())
    return {
        "images": count,
        "objects_per_image": objects / max(count, 1),
        "same_class_pairs_per_image": pairs / max(count, 1),
        "overlapping_fraction": overlapping / max(objects, 1),
    }

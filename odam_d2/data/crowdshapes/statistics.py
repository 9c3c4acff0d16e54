"""How crowded images are, and what positions say, from their annotations."""

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask

from .annotations import SIDES

SIDE_DEPTH = 0.05
"""How far inside a side, as a share of the box, what ends it is looked for."""


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


def position_statistics(images: Iterable[list[dict]], grid: int = 15) -> dict[str, float]:
    """What a position in the box says about where the deciding parts are.

    Over all objects of which nothing is hidden. Chance is the share of places that are on the part:
    places of the box for badge and decoys, and for the part that ends a side, places of the line
    that runs along this side, :data:`SIDE_DEPTH` of the box inside it.

    Args:
        images: for each image its annotations, as :func:`.annotations.annotate` makes them.
        grid: how many rows and columns of relative places are tried for `badge_best`.

    Returns:
        unhidden: number of objects; the rest is in percent, mean over them:
        badge_chance, badge_centre: how much of the box the badge covers, and how often its centre.
        badge_best: how often the badge covers the relative place that it covers most often.
        decoys_chance, decoys_centre: the same of all decoys together.
        sides_chance, sides_middle: how much of these lines the parts that end the sides cover, and
            how often their middle, over the four sides.
    """
    unhidden = [a for image in images for a in image if a["visibility"]["object"] == 1]
    if not unhidden:
        return {"unhidden": 0}
    places = (2 * np.arange(grid) + 1) / (2 * grid)
    rows, covered = [], np.zeros((grid, grid))
    for annotation in unhidden:
        badge = _crop(annotation, annotation["part_segmentations"]["class"])
        height, width = badge.shape
        covered += badge[np.ix_((places * height).astype(int), (places * width).astype(int))]
        decoys = np.zeros_like(badge)
        for rle in annotation.get("decoy_segmentations", {}).values():
            decoys |= _crop(annotation, rle)
        lines = _side_lines(annotation)
        rows.append(
            {
                "badge_chance": badge.mean(),
                "badge_centre": badge[height // 2, width // 2],
                "decoys_chance": decoys.mean(),
                "decoys_centre": decoys[height // 2, width // 2],
                "sides_chance": np.mean([line.mean() for line in lines]),
                "sides_middle": np.mean([line[len(line) // 2] for line in lines]),
            }
        )
    means = {key: 100 * float(np.mean([row[key] for row in rows])) for key in rows[0]}
    best = 100 * float(covered.max()) / len(unhidden)
    return {"unhidden": len(unhidden), **means, "badge_best": best}


def _crop(annotation: dict, rle: dict) -> np.ndarray:
    """A mask of an object, (height, width) of its box, boolean."""
    x, y, width, height = (int(v) for v in annotation["bbox"])
    return coco_mask.decode(rle)[y : y + height, x : x + width] > 0


def _side_lines(annotation: dict) -> list[np.ndarray]:
    """For left, top, right and bottom, where on the line along it the part that ends it is."""
    left, top, right, bottom = (
        _crop(annotation, annotation["part_segmentations"][side]) for side in SIDES
    )
    row, column = (int(SIDE_DEPTH * length) for length in left.shape)
    return [left[:, column], top[row], right[:, -1 - column], bottom[-1 - row]]

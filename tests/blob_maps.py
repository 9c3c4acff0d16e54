"""Made-up explained detections: each map is a Gaussian blob in a place that tests know."""

import torch
from detectron2.structures import Boxes, Instances

from odam_d2 import OdamMaps
from odam_d2.core.targets import DEFAULT_TARGETS

STRIDE = 4.0


def blob_maps(size, points, targets, *, sigma=6.0):
    """
    Maps on the whole grid of an image (height, width) that the network saw at its own size.

    Args:
        points: N lists of T (x, y) in pixels, or None for a map that is zero everywhere.
        sigma: of the blobs in pixels.
    """
    height, width = size
    grid = (-(-height // int(STRIDE)), -(-width // int(STRIDE)))
    y = (torch.arange(grid[0]) + 0.5)[:, None] * STRIDE
    x = (torch.arange(grid[1]) + 0.5)[None] * STRIDE
    values = torch.zeros(len(points), len(targets), *grid)
    for i, row in enumerate(points):
        for t, point in enumerate(row):
            if point is not None:
                distance = (x - point[0]) ** 2 + (y - point[1]) ** 2
                values[i, t] = (1 + i) * torch.exp(-distance / (2 * sigma**2))
    pairs = torch.ones((len(points), 2), dtype=torch.long)
    return OdamMaps(
        targets,
        values,
        origins=0 * pairs,
        strides=torch.full((len(points),), STRIDE),
        grid_sizes=pairs * torch.tensor(grid),
        image_sizes=pairs * torch.tensor(size),
        levels=torch.arange(len(points)),
    )


def blob_detections(size, boxes, *, classes=None, scores=None, targets=DEFAULT_TARGETS):
    """Explained Instances: the blob is in the middle of the explained side, or of the box."""
    points = []
    for x1, y1, x2, y2 in boxes:
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        place = {"left": (x1, y), "right": (x2, y), "top": (x, y1), "bottom": (x, y2)}
        points.append([place.get(target, (x, y)) for target in targets])
    count = len(boxes)
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores or [0.9 - 0.01 * i for i in range(count)]),
        pred_classes=torch.tensor(classes or [0] * count, dtype=torch.long),
        odam_maps=blob_maps(size, points, targets),
    )

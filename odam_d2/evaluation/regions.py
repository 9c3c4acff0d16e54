"""Where the objects of an image are, in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.structures import BoxMode, polygons_to_bitmask
from torch import Tensor

__all__ = ["box_regions", "object_boxes", "object_masks", "true_objects"]


def true_objects(entry: dict) -> list[dict]:
    """The annotations of one of Detectron2's dicts that are objects, not crowds to be ignored."""
    return [a for a in entry["annotations"] if not a.get("iscrowd", 0)]


def object_boxes(objects: Sequence[dict]) -> Tensor:
    """(G, 4) XYXY in pixels."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def object_masks(objects: Sequence[dict], height: int, width: int) -> Tensor | None:
    """(G, height, width) of bool; None where an object has no mask."""
    if not all(a.get("segmentation") for a in objects):
        return None
    masks = [_bitmask(a["segmentation"], height, width) for a in objects]
    return torch.as_tensor(np.array(masks, dtype=bool).reshape(-1, height, width))


def _bitmask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        return polygons_to_bitmask([np.asarray(p).reshape(-1) for p in segmentation], height, width)
    if isinstance(segmentation["counts"], list):  # not compressed
        segmentation = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.decode(segmentation)


def box_regions(boxes: Tensor, height: int, width: int) -> Tensor:
    """(G, height, width) of bool: every pixel that a box (G, 4) touches."""
    x, y = torch.arange(width), torch.arange(height)
    left, top = boxes[:, :2].floor().unbind(dim=1)
    right, bottom = boxes[:, 2:].ceil().unbind(dim=1)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return rows[:, :, None] & columns[:, None]

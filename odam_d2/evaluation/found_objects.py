"""Which objects of an image a detector has found, and what else evaluators of them look at."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.data.pictures import read_picture

from .known_causes import match_to_objects
from .regions import object_boxes, true_objects

__all__ = ["found_objects", "next_entries", "picture_at"]


def found_objects(
    entry: dict, found: Instances, score_thresh: float, iou_thresh: float, per_image: int
) -> list[tuple[int, int]]:
    """
    (detection, object) of those of one image that are found with the right class, and of which
    nothing is hidden, where that is annotated; the best scores first.

    Args:
        entry: of the data set.
        found: detections at the size of the entry.
        score_thresh, iou_thresh: of detections.
        per_image: so many at most; -1 is all.
    """
    chosen = (found.scores > score_thresh).nonzero().squeeze(1)
    names = ("pred_boxes", "scores", "pred_classes")
    fields = {name: found.get(name)[chosen].to("cpu") for name in names}
    objects = true_objects(entry)
    pairs = match_to_objects(
        Instances(found.image_size, **fields),
        Boxes(object_boxes(objects)),
        torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
        iou_thresh,
    )
    pairs = [(int(chosen[detection]), number) for detection, number in pairs
             if _is_visible(objects[number])]  # fmt: skip
    return pairs if per_image < 0 else pairs[:per_image]


def _is_visible(annotation: dict) -> bool:
    """Whether nothing hides an object or the part that decides its class, where that is told."""
    visibility = annotation.get("visibility", {})
    return all(visibility.get(what, 1) == 1 for what in ("object", "class"))


def next_entries(entries: Mapping[object, dict]) -> dict[object, dict]:
    """By image id the entry after that of the image, in a circle."""
    ids = list(entries)
    return {
        image_id: entries[after] for image_id, after in zip(ids, [*ids[1:], *ids[:1]], strict=True)
    }


def picture_at(entry: dict, size: tuple[int, int], model: nn.Module) -> Tensor:
    """The picture of an entry (C, H, W) at another (height, width), in the model's colours."""
    picture = read_picture(entry["file_name"])
    if getattr(model, "input_format", "BGR") == "BGR":
        picture = picture[:, :, ::-1]
    resized = cv2.resize(np.ascontiguousarray(picture), size[::-1])
    return torch.as_tensor(resized).permute(2, 0, 1)

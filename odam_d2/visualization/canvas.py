"""Pictures at a size where labels are legible and drawing is quick."""

import cv2
import numpy as np
from detectron2.structures import Boxes, Instances

__all__ = ["fit_canvas", "resize"]

# Longer side in pixels of the pictures that are written.
_SMALLEST, _LARGEST = 480, 1600


def fit_canvas(
    image: np.ndarray, instances: Instances, smallest: int = _SMALLEST, largest: int = _LARGEST
) -> tuple[np.ndarray, Instances]:
    """
    Enlarge a small image, by a whole factor, and reduce a very large one.

    Args:
        image: (H, W, 3) uint8. It is not changed.
        instances: with ``pred_boxes`` in pixels of ``image``. It is not changed.
        smallest: the longer side is at least this many pixels afterwards,
        largest: and at most this many.

    Returns:
        The new (h, w, 3) image and instances with ``pred_boxes`` in its pixels.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = -(-smallest // longer) if longer < smallest else min(1.0, largest / longer)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    scaled = Instances(size, **instances.get_fields())
    boxes = instances.pred_boxes.clone()
    boxes.scale(size[1] / width, size[0] / height)
    scaled.pred_boxes = Boxes(boxes.tensor)
    return resize(image, size), scaled


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resample a picture (H, W, 3) or a map (H, W) to ``size`` (height, width), centres aligned.
    """
    if picture.shape[:2] == tuple(size):
        return picture.copy()
    enlarge = cv2.INTER_LINEAR if picture.ndim == 2 else cv2.INTER_CUBIC
    method = cv2.INTER_AREA if size[0] < picture.shape[0] else enlarge
    return cv2.resize(picture, size[::-1], interpolation=method)

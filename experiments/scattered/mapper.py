"""Training samples of CrowdShapes that also say where badges and robots are."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from odam_d2.data.mapper import PictureMapper

BRIGHTNESS = 0.75, 1.2
"""Factors of the smallest and of the largest change."""


class ChannelOrder(T.Augmentation):
    """Any order of the three colours: CrowdShapes draws every hue with the same probability."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        order = np.random.permutation(image.shape[-1])  # noqa: NPY002 -- what SEED determines
        return T.ColorTransform(lambda pixels: pixels[..., order])


class LabelMapper(PictureMapper):
    """
    As the mapper of every tool, with colours and brightness drawn at random as well. A sample has
    two label maps beside its boxes, (H, W) int64 with 0 where there is none and 1 + the class
    elsewhere: ``badges``, of visible badges, and ``robots``, of all visible pixels.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] += [ChannelOrder(), T.RandomBrightness(*BRIGHTNESS)]
        return arguments

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """As in Detectron2, which calls it with what it did to the picture."""
        objects = dataset_dict["annotations"]
        size = dataset_dict["height"], dataset_dict["width"]
        masks = {
            "badges": [a["part_segmentations"]["class"] for a in objects],
            "robots": [a["segmentation"] for a in objects],
        }
        classes = [a["category_id"] for a in objects]
        for name, coded in masks.items():
            labels = transforms.apply_segmentation(label_map(coded, classes, size))
            dataset_dict[name] = torch.tensor(np.array(labels, np.int64))
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def label_map(masks: Sequence[dict], classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """
    Args:
        masks: run-length encoded, of visible pixels: no two overlap.
        classes: of each mask.
        size: (H, W).

    Returns:
        (H, W) uint8, 1 + the class, 0 where no mask is.
    """
    labels = np.zeros(size, np.uint8)
    for mask, label in zip(masks, classes, strict=True):
        labels[mask_utils.decode(mask) > 0] = 1 + label
    return labels

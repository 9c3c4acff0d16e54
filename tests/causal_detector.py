"""A detector whose every decision is linear in the brightness of a region that tests know."""

import cv2
import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import BoxMode
from torch import nn

from odam_d2 import OdamMaps

HEIGHT, WIDTH, STRIDE = 96, 160, 8
TARGETS = ("class", "left", "top", "right", "bottom")
CORNERS = {"class": (24, 60), "left": (40, 48), "top": (16, 84), "right": (56, 96),
           "bottom": (64, 64), "other": (80, 16)}  # fmt: skip
"""First row and column of each region, which is white; all else is black."""
SIDE = 8  # of a region, in pixels
OBJECT, OTHER = (5, 9), (9, 2)  # cells (row, column) that find something
BOX = [44.0, 12, 108, 76]  # of the object: 32 pixels to each side of the middle of its cell

# Each colour's mean: 6 regions of 64 pixels are white.
MEAN = 6 * SIDE**2 / (HEIGHT * WIDTH)


def white_picture():
    """(H, W, 3) uint8."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row, column in CORNERS.values():
        picture[row : row + SIDE, column : column + SIDE] = 255
    return picture


def middle(region):
    """(row, column) on which its dilated patch is centred: the mean of an even number, rounded."""
    row, column = CORNERS[region]
    return round(row + (SIDE - 1) / 2), round(column + (SIDE - 1) / 2)


class Regions(Backbone):
    """One level: the brightness of each region, everywhere, and two channels that mark cells."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.images = []  # how many in each pass; a list, as views of the model share it

    def forward(self, images):
        self.images.append(len(images))
        rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
        found = images.new_zeros(len(images), 8, rows, columns)
        for channel, (row, column) in enumerate(CORNERS.values()):
            region = images[:, 0, row : row + SIDE, column : column + SIDE]
            found[:, channel] = region.mean(dim=(1, 2))[:, None, None]
        found[:, 6, OBJECT[0], OBJECT[1]] = 1
        found[:, 7, OTHER[0], OTHER[1]] = 1
        return {"p3": found}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=8, stride=STRIDE)}


class LinearHead(nn.Module):
    """Logits -1 + 4 brightness where something is found, sides 24 + 8 brightness pixels away."""

    def forward(self, features):
        (x,) = features
        here, there = x[:, 6], x[:, 7]
        logit = -9 + here * (8 + 4 * x[:, 0]) + there * (8 + 4 * x[:, 5])
        logits = torch.stack([logit, torch.full_like(logit, -9)], dim=1)
        deltas = (1.5 + 0.5 * x[:, 1:5]) * here[:, None] + 0.75 * there[:, None]
        return [logits], [deltas]


def causal_detector(**options):
    """A plain RetinaNet of Detectron2, anchors of 16 pixels."""
    return RetinaNet(
        backbone=Regions(),
        head=LinearHead(),
        head_in_features=["p3"],
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[16]], aspect_ratios=[[1.0]], strides=[STRIDE], offset=0.5
        ),
        box2box_transform=Box2BoxTransformLinear(),
        anchor_matcher=None,
        num_classes=2,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **options,
    ).eval()


def part_masks():
    """RLE of the object's parts."""
    masks = {}
    for name in TARGETS:
        row, column = CORNERS[name]
        canvas = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        canvas[row : row + SIDE, column : column + SIDE] = 1
        masks[name] = mask_utils.encode(canvas)
    return masks


def causal_entries(folder, count, parts=True):
    """Pictures of the object, and the other one that is in no annotation."""
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    if parts:
        annotation |= {"part_segmentations": part_masks(), "visibility": {"class": 1.0}}
    entries = []
    for number in range(count):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), white_picture())
        entries.append({"image_id": f"image {number}", "file_name": str(path), "height": HEIGHT,
                        "width": WIDTH, "annotations": [dict(annotation)]})  # fmt: skip
    return entries


def spots(places):
    """
    Maps of two detections that are 1 in a pixel, and zero elsewhere.

    Args:
        places: T of (row, column), or None for a map that is zero everywhere.
    """
    values = torch.zeros(2, len(places), HEIGHT, WIDTH)
    for target, place in enumerate(places):
        if place is not None:
            values[:, target, place[0], place[1]] = 1
    return maps_of(values)


def maps_of(values):
    """Maps (N, T, H, W) of the first T targets, a cell for each pixel."""
    pair = torch.ones(len(values), 2, dtype=torch.int64)
    size = pair * torch.tensor([HEIGHT, WIDTH])
    return OdamMaps(
        TARGETS[: values.shape[1]], values, origins=0 * pair, strides=torch.ones(len(values)),
        grid_sizes=size, image_sizes=size, levels=0 * pair[:, 0],
    )  # fmt: skip

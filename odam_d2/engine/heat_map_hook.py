"""Heat maps of one fixed image while a detector is trained, for TensorBoard."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.structures import Boxes, BoxMode
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from odam_d2.data.mapper import PictureMapper
from odam_d2.data.pictures import read_picture
from odam_d2.errors import UserError
from odam_d2.modeling import explain_boxes
from odam_d2.structures.heat_colors import blend_heat
from odam_d2.visualization.overlay import draw_box

__all__ = ["HeatMapImages"]

# How much is shown: more than TensorBoard can usefully put beside one another helps nobody.
_MAX_OBJECTS, _COLUMNS, _TILE_WIDTH = 12, 4, 320


class HeatMapImages(HookBase):
    """
    Every ``period`` iterations, and after the last one, put a picture of the class maps of the
    objects of one image into the event storage, as ``odam/class_maps``. The objects are given, so
    that the pictures show the same ones all the time. Only the main process does this.

    Args:
        cfg: the config of the training; the image is the first one with objects of its first
            training data set.
        period: iterations, 1 or more.
    """

    def __init__(self, cfg: CfgNode, period: int):
        self.period = period
        dataset = cfg.DATASETS.TRAIN[0]
        for entry in get_detection_dataset_dicts([dataset]):
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                     for a in entry["annotations"] if not a.get("iscrowd", 0)]  # fmt: skip
            if boxes:
                break
        else:
            raise UserError(f"data set {dataset!r} has no image with objects to show maps of")
        classes = [a["category_id"] for a in entry["annotations"] if not a.get("iscrowd", 0)]
        self._input = PictureMapper(cfg, is_train=False)(entry)
        self._image = read_picture(entry["file_name"])
        self._input["height"], self._input["width"] = self._image.shape[:2]
        self._boxes = torch.tensor(boxes[:_MAX_OBJECTS], dtype=torch.float32)
        self._classes = torch.tensor(classes[:_MAX_OBJECTS])

    def after_step(self) -> None:
        last = self.trainer.iter + 1 == self.trainer.max_iter
        if ((self.trainer.iter + 1) % self.period == 0 or last) and comm.is_main_process():
            self.trainer.storage.put_image("odam/class_maps", self.draw().transpose(2, 0, 1))

    def draw(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: a tile for each object."""
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        inputs, boxes = [self._input], [Boxes(self._boxes)]
        how = {"score": "logit", "signed": False}
        found = explain_boxes(model, inputs, boxes, [self._classes], ["class"], **how)
        height, width = self._image.shape[:2]
        maps = found[0]["instances"].odam_maps
        tiles = []
        for number, box in enumerate(self._boxes.tolist()):
            tile = blend_heat(self._image, maps[number].dense(height, width)[0, 0])
            tiles.append(_resized(draw_box(tile, box)))
        return _table(tiles)


def _resized(tile: np.ndarray) -> np.ndarray:
    scale = min(1.0, _TILE_WIDTH / tile.shape[1])
    size = round(tile.shape[1] * scale), round(tile.shape[0] * scale)
    return cv2.resize(tile, size, interpolation=cv2.INTER_AREA)


def _table(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles of equal size in rows, black where there are none."""
    columns = min(_COLUMNS, len(tiles))
    empty = [np.zeros_like(tiles[0])] * (math.ceil(len(tiles) / columns) * columns - len(tiles))
    tiles = [*tiles, *empty]
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return np.vstack(rows)

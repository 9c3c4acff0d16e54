"""For the tests of the tools that train: a data set of four pictures, and what they wrote."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data.datasets import register_coco_instances

__all__ = ["last_checkpoint", "logged_ap", "register_tiny"]


def register_tiny(name: str, folder: Path) -> None:
    """Register four pictures of 96x64 with a bright rectangle of one of six classes each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(4):
        picture = rng.integers(0, 60, (64, 96, 3), np.uint8)
        x, y = int(rng.integers(5, 30)), int(rng.integers(2, 10))
        picture[y : y + 45, x : x + 50] += 120
        cv2.imwrite(str(folder / f"{index}.png"), picture)
        images.append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 96})
        box = {"bbox": [x, y, 50, 45], "area": 2250, "iscrowd": 0, "category_id": index + 1}
        annotations.append({"id": index + 1, "image_id": index, **box})
    categories = [{"id": k + 1, "name": f"c{k}"} for k in range(6)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "tiny.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, str(folder / "tiny.json"), str(folder))


def last_checkpoint(output_dir: Path) -> dict:
    name = (output_dir / "last_checkpoint").read_text()
    return torch.load(output_dir / name, map_location="cpu", weights_only=False)


def logged_ap(log: str) -> str:
    """The last line of figures that Detectron2 prints for copying."""
    return re.findall(r"copypaste: ([\d.,na]+)$", log, re.MULTILINE)[-1]

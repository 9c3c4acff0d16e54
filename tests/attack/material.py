"""What cases are made of: pictures, shipped detectors, small configs, data sets of a few images."""

import copy
import functools
import json
import os
import warnings
from pathlib import Path

os.environ.setdefault("ODAM_DATASETS", str(Path(__file__).parents[2] / "output" / "datasets"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from PIL import Image

import odam_d2.data
import odam_d2.model_zoo  # noqa: F401  (registers odam://)
from odam_d2 import add_odam_config

from .tools import ROOT

warnings.filterwarnings("ignore")

__all__ = [
    "NAMES", "SHIPPED", "SMALL", "coco", "config_file", "crop", "entries", "picture", "pixels",
    "register", "shipped", "slim",
]  # fmt: skip

SHIPPED = ("faster_rcnn", "retinanet", "fcos")
_PLAIN = {"faster_rcnn": "GeneralizedRCNN", "retinanet": "RetinaNet", "fcos": "OdamFCOS"}
# Pictures of the embedded data set at two thirds of their size: quick, and most robots are found.
SMALL = [
    "INPUT.MIN_SIZE_TEST", "200", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu",
    "TEST.ODAM.EXPLANATION.IOU_THRESH", "0.5",
    "TEST.ODAM.EXPLANATION.FAITHFULNESS.PER_IMAGE", "0", "MODEL.ODAM.TARGETS", "['class']",
]  # fmt: skip


def config_file(kind: str = "faster_rcnn") -> str:
    return str(ROOT / f"configs/CrowdShapes/{kind}_R_50_FPN_slim.yaml")


@functools.cache
def entries() -> list[dict]:
    return DatasetCatalog.get("crowdshapes_val")


def pixels(number: int = 0) -> np.ndarray:
    """(288, 384, 3) uint8 RGB."""
    return np.asarray(Image.open(entries()[number]["file_name"]).convert("RGB"))


def crop(number: int = 0, size: int = 144) -> np.ndarray:
    """(size, size, 3) around the first object that is whole there."""
    image = pixels(number)
    for annotation in entries()[number]["annotations"]:
        x, y = (int(v) for v in annotation["bbox"][:2])
        x, y = max(0, min(x - 10, 384 - size)), max(0, min(y - 10, 288 - size))
        return image[y : y + size, x : x + size].copy()
    return image[:size, :size].copy()


def picture(number: int = 0, size: int = 144) -> dict:
    """Detectron2's input format, BGR."""
    image = torch.as_tensor(crop(number, size)[:, :, ::-1].transpose(2, 0, 1).astype("float32"))
    return {"image": image, "height": size, "width": size}


@functools.cache
def _shipped(kind: str):
    cfg = get_cfg()
    add_odam_config(cfg)
    cfg.merge_from_file(config_file(kind))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = _PLAIN[kind], "cpu"
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def shipped(kind: str = "faster_rcnn", own: bool = False):
    """A shipped detector of plain Detectron2; with ``own`` a copy that may be changed."""
    return copy.deepcopy(_shipped(kind)) if own else _shipped(kind)


_SLIM = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.MASK_ON", False,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 40, "TEST.DETECTIONS_PER_IMAGE", 6,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0,
]  # fmt: skip


def slim(zoo_config: str, *opts, size=(96, 128), own_keys: bool = False):
    """An untrained zoo model, slim, with features and decisions of usual size; and an input."""
    cfg = model_zoo.get_config(zoo_config)
    if own_keys:
        add_odam_config(cfg)
    cfg.merge_from_list([*_SLIM, *opts])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = torch.rand(3, *size) * 255
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        scale = max(float(f.std()) for f in features.values())
        for name, parameter in model.backbone.named_parameters():
            if "fpn_output" in name:
                parameter.mul_(1 / scale)
        for name, parameter in model.named_parameters():
            if "box_predictor" in name and parameter.dim() == 2:
                parameter.normal_(std=0.5 if "cls" in name else 0.2)
            if name.startswith("head.") and name.endswith("weight") and parameter.dim() == 4:
                parameter.mul_(4)
    return model, [{"image": image, "height": size[0], "width": size[1]}]


NAMES = ("attack_a",)


def coco(folder: Path, count: int = 2, change=None, first: int = 0) -> Path:
    """
    A COCO file of a few pictures of the embedded data set, which are copied.

    Args:
        folder: where they go.
        count: of pictures.
        change: gets the content before it is written.
        first: picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": k + 1, "name": f"robot {k}"} for k in range(6)]
    for number in range(first, first + count):
        Image.fromarray(pixels(number)).save(folder / f"{number}.png")
        image = {"id": number + 1, "file_name": f"{number}.png", "height": 288, "width": 384}
        content["images"].append(image)
        for annotation in entries()[number]["annotations"]:
            x, y, w, h = (float(v) for v in _xywh(annotation))
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            record = {"id": len(content["annotations"]) + 1, "image_id": number + 1,
                      "category_id": annotation["category_id"] + 1, "bbox": [x, y, w, h],
                      "area": w * h, "iscrowd": 0, "segmentation": [polygon]}  # fmt: skip
            content["annotations"].append(record)
    if change is not None:
        content = change(content) or content
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _xywh(annotation: dict) -> list[float]:
    from detectron2.structures import BoxMode

    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)


def register(path: Path, name: str = NAMES[0], **metadata) -> None:
    """Register a file of :func:`coco`, with the names of its classes."""
    metadata = metadata or {"thing_classes": [f"robot {k}" for k in range(6)]}
    register_coco_instances(name, metadata, str(path), str(path.parent))

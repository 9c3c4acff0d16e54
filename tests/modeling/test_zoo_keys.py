"""Every Faster R-CNN and RetinaNet of Detectron2's zoo: our model has the very same state dict."""

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

from odam_d2 import add_odam_config

ZOO = Path(model_zoo.__file__).parent / "configs"
OURS = {"GeneralizedRCNN": "OdamRCNN", "RetinaNet": "OdamRetinaNet"}
NAMES = sorted(
    str(path.relative_to(ZOO))
    for path in ZOO.rglob("*.yaml")
    if path.name.startswith(("faster_rcnn", "fast_rcnn", "retinanet")) and "Base" not in path.name
)


def shapes(cfg):
    with torch.device("meta"):  # names and shapes, without filling a gigabyte of weights
        return {key: value.shape for key, value in build_model(cfg).state_dict().items()}


def test_the_zoo_was_found():
    assert len(NAMES) >= 13
    assert "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_missing_and_no_unexpected_key(name):
    cfg = model_zoo.get_config(name)
    add_odam_config(cfg)
    cfg.MODEL.DEVICE = "meta"
    plain = shapes(cfg)
    cfg.MODEL.META_ARCHITECTURE = OURS[cfg.MODEL.META_ARCHITECTURE]
    assert shapes(cfg) == plain
    assert len(plain) > 100

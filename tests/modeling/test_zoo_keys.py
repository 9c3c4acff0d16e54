"""Every detector of Detectron2's zoo that we explain: our model has the very same state dict."""

import functools
import importlib
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model

from odam_d2 import add_odam_config
from odam_d2.engine import setup_cfg

CONFIGS = Path(__file__).parents[2] / "configs"
ZOO = Path(model_zoo.__file__).parent / "configs"
OURS = {
    "GeneralizedRCNN": "OdamRCNN",
    "PanopticFPN": "OdamPanopticFPN",
    "RetinaNet": "OdamRetinaNet",
}


def architecture(path):
    return CfgNode.load_yaml_with_base(str(path), allow_unsafe=True)["MODEL"]["META_ARCHITECTURE"]


NAMES = sorted(
    str(path.relative_to(ZOO)) for path in ZOO.rglob("*.yaml") if architecture(path) in OURS
)


def shapes(build, config):
    with torch.device("meta"):  # names and shapes, without filling a gigabyte of weights
        return {key: value.shape for key, value in build(config).state_dict().items()}


def built_from_yaml(file):
    cfg = setup_cfg(str(CONFIGS / file))
    cfg.MODEL.DEVICE = "meta"
    return shapes(build_model, cfg)


@functools.cache  # half of the zoo's configs differ in the training schedule alone
def compare(model_node):
    """Check the model of a ``MODEL`` node, given as YAML, and return the number of its keys."""
    cfg = setup_cfg()
    cfg.MODEL = CfgNode.load_cfg(model_node)
    plain = shapes(build_model, cfg)
    cfg.MODEL.META_ARCHITECTURE = OURS[cfg.MODEL.META_ARCHITECTURE]
    assert shapes(build_model, cfg) == plain
    return len(plain)


def test_the_zoo_was_found():
    assert len(NAMES) >= 84
    assert "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml" in NAMES
    assert "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_missing_and_no_unexpected_key(name):
    cfg = model_zoo.get_config(name)
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        require_deformable_convolutions()
    add_odam_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "meta"
    assert compare(cfg.MODEL.dump()) > 100


def require_deformable_convolutions():
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        pytest.skip(f"deformable convolutions need Detectron2's compiled part: {error}")


def test_fcos_of_the_lazy_config():
    plain = shapes(instantiate, model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model)
    assert built_from_yaml("COCO-Detection/fcos_R_50_FPN_1x.yaml") == plain
    assert len(plain) > 100


def test_box_only_cascade_fits_the_weights_of_the_one_with_masks():
    """As the comment in its config says."""
    boxes = built_from_yaml("COCO-Detection/cascade_rcnn_R_50_FPN_1x.yaml")
    masks = built_from_yaml("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    assert {key: masks[key] for key in boxes} == boxes
    assert {key.split(".")[1] for key in masks.keys() - boxes.keys()} == {"mask_head"}

"""
Every config of Detectron2's model zoo, and ours for backbones that the zoo lacks, built with few
channels and blocks.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from oracle import two_images

from benchmarks.untrained import scale_random_weights

ZOO = Path(model_zoo.__file__).parent / "configs"
OURS = Path(__file__).parents[1] / "configs"

NAMES = sorted(
    str(path.relative_to(ZOO))
    for kind in ("*.yaml", "*.py")
    for path in ZOO.rglob(kind)
    if "common" not in path.parts and not path.name.startswith("Base-")
)
OUR_NAMES = sorted(
    str(path.relative_to(OURS)) for folder in ("MViT", "Swin", "ViTDet")
    for path in (OURS / folder).glob("*.py")
)  # fmt: skip

_NO_BOXES = {
    "ProposalNetwork": "finds proposals, which have no class and no box of a class",
    "SemanticSegmentor": "finds no boxes: semantic segmentation",
}

_SLIM = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8, 8),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TEST", 40,
    "TEST.DETECTIONS_PER_IMAGE", 8, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0,
]  # fmt: skip
_NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 16,
]  # fmt: skip
_GROUP_NORM = [  # of 32 groups
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 32, "MODEL.FPN.OUT_CHANNELS", 32,
]  # fmt: skip


class NotBuilt(Exception):
    """This config is no detector, or cannot be built here; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """How to build a slim model; equal keys build equal models."""

    key: str
    build: callable


def recipe(name: str) -> Recipe:
    """Raises NotBuilt for a config without boxes."""
    folder = OURS if name in OUR_NAMES else ZOO
    return (_yaml if name.endswith(".yaml") else _lazy)(str(folder / name))


def _yaml(path: str) -> Recipe:
    cfg = model_zoo.get_config(str(Path(path).relative_to(ZOO)))
    if cfg.MODEL.META_ARCHITECTURE in _NO_BOXES:
        raise NotBuilt(_NO_BOXES[cfg.MODEL.META_ARCHITECTURE])
    norms = [cfg.MODEL[node].NORM for node in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")]
    cfg.merge_from_list(_SLIM + (_GROUP_NORM if "GN" in norms else _NARROW))
    cfg.MODEL.RESNETS.NUM_GROUPS = min(cfg.MODEL.RESNETS.NUM_GROUPS, 2)
    return Recipe(cfg.MODEL.dump() + str(cfg.TEST), lambda: build_model(cfg))


def _lazy(path: str) -> Recipe:
    cfg = LazyConfig.load(path)
    model = cfg.model
    if "backbone" not in model and "detector" not in model:
        raise NotBuilt("finds no boxes: image classification")
    if "detector" not in model:
        _slim_lazy(model)
    key = re.sub("0x[0-9a-f]+", "", str(model))  # addresses of functions
    return Recipe(key, lambda: instantiate(model))


def _slim_lazy(model: DictConfig) -> None:
    bottom_up = model.backbone.get("bottom_up", model.backbone)
    net = model.backbone.get("net")
    if "stages" in bottom_up and "depth" in bottom_up.stages:
        bottom_up.stages.depth = 50
    if model.backbone.get("square_pad"):
        model.backbone.square_pad = 256
    if net is not None:  # the plain ViT of ViTDet
        net.update(embed_dim=48, depth=3, num_heads=4, window_block_indexes=[0, 1])
    if "depths" in bottom_up:  # Swin
        bottom_up.update(embed_dim=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
    heads = model.get("roi_heads")
    if heads is None:
        model.update(test_score_thresh=0.0, max_detections_per_image=8)
        return
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.update(test_score_thresh=0.0, test_topk_per_image=8)
    model.proposal_generator.post_nms_topk = (40, 40)
    if "res5" in heads:
        heads.res5.update(bottleneck_channels=32, out_channels=64)
    else:
        _slim_box_heads(heads)


def _slim_box_heads(heads: DictConfig) -> None:
    for head in heads.get("box_heads") or [heads.box_head]:
        head.update(conv_dims=[32] * len(head.conv_dims), fc_dims=[32])
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.input_shape = ShapeSpec(channels=32)
    for name in ("mask_head", "keypoint_head"):
        if heads.get(name):
            heads[name].conv_dims = [16, 16]


def build(recipe_: Recipe):
    """
    The model with random weights of a sensible scale, in eval mode.

    Raises:
        NotBuilt: a package or a compiled part of Detectron2 is missing.
    """
    torch.manual_seed(0)
    try:
        model = recipe_.build().eval()
        scale_random_weights(model)
    except ImportError as error:
        raise NotBuilt(_missing(str(error))) from error
    return model


def _missing(message: str) -> str:
    if "_C" in message:
        return "needs deformable convolutions, a compiled part of Detectron2 that is not here"
    return f"needs a package that is not here: {message}"


def inputs_for(model) -> list[dict]:
    """Two images of different sizes; with proposals where the model does not make its own."""
    images = two_images()
    if getattr(model, "proposal_generator", True) is None:
        corners = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)) * 60
        boxes = Boxes(torch.cat([corners, corners * 1.4 + 20], dim=1))
        for x in images:
            x["proposals"] = Instances(
                x["image"].shape[-2:], proposal_boxes=boxes, objectness_logits=torch.zeros(30)
            )
    return images

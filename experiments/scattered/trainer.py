"""The trainer of the detectors that know scattered badges."""

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from odam_d2.engine import Trainer

from .mapper import LabelMapper
from .probes import add_probes

PROBE_RATE = 10.0
"""Learning rate of probes, which begin with nothing, beside that of the detector."""

ALL_PLACES = 20.0
"""
Factor of the gradient that is the same at all places of pooled features. The mean of 49 places has
a seventh of their noise: with this factor a step of AdamW is mostly one for all of them.
"""


class ScatteredTrainer(Trainer):
    """As :class:`Trainer`, with the losses of :mod:`.probes`, and AdamW."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model: Any = super().build_model(cfg)
        add_probes(model, len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes))
        if hasattr(model, "roi_heads"):
            places = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION**2
            learn_for_all_places(model.roi_heads.box_head.fc1, places)
        _in_half_precision(model.backbone, model.device)
        return model.to(memory_format=torch.channels_last)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        solver = cfg.SOLVER
        groups = get_default_optimizer_params(
            model, base_lr=solver.BASE_LR, weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: PROBE_RATE if name.startswith("probes.") else 1.0,
        )  # fmt: skip
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return optimizer(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        return build_detection_train_loader(cfg, mapper=LabelMapper(cfg, True))


def learn_for_all_places(layer: nn.Linear, places: int) -> None:
    """
    Let a layer that reads pooled features learn mostly what holds at every place of them. By its
    own gradient it learns each place for itself, and a few thousand robots are few for each.

    Args:
        layer: its input is (channels, places), flattened.
        places: of the pooled features.
    """

    def shared(gradient: torch.Tensor) -> torch.Tensor:
        by_place = gradient.view(len(gradient), -1, places)
        mean = by_place.mean(dim=2, keepdim=True)
        return (by_place + ALL_PLACES * mean).view_as(gradient)

    layer.weight.register_hook(shared)


def _in_half_precision(backbone: Any, device: torch.device) -> None:
    """On a CPU with bfloat16 it takes a third of the time; heads compute in float32."""
    forward = torch.autocast(device.type, torch.bfloat16)(backbone.forward)

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = forward(images.contiguous(memory_format=torch.channels_last))
        return {name: level.float() for name, level in features.items()}

    backbone.forward = run

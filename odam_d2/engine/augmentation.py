"""Test-time augmentation, ``TEST.AUG``: what it can be asked of."""

import dataclasses

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from odam_d2.errors import UserError
from odam_d2.modeling.views import with_overrides

__all__ = ["check_augmentation", "refuse_augmentation", "without_maps"]

_FLAG = "TEST.AUG.ENABLED"


def check_augmentation(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: ``TEST.AUG`` is asked of a detector for which Detectron2 has none, or has sizes
            that are none.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    name = cfg.MODEL.META_ARCHITECTURE
    kind = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    kinds = kind.__mro__ if isinstance(kind, type) else ()
    if GeneralizedRCNN not in kinds or PanopticFPN in kinds:
        raise UserError(
            f"{_FLAG}: Detectron2 has test-time augmentation for GeneralizedRCNN only, not for "
            f"{name}; set it to False"
        )
    for key, is_set in (
        ("MODEL.KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON),
        ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS),
    ):
        if is_set:
            raise UserError(f"{_FLAG}: Detectron2 has no test-time augmentation with {key}")
    for key, words in (("MIN_SIZES", "one or more numbers"), ("MAX_SIZE", "a number")):
        value = cfg.TEST.AUG[key]
        sizes = value if isinstance(value, (list, tuple)) else [value]
        if not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise UserError(f"TEST.AUG.{key} is {value!r}; it must be {words} of pixels, above 0")


def refuse_augmentation(cfg: CfgNode) -> None:
    """Raise a :class:`UserError` where ``TEST.AUG`` is asked for, and would have no effect."""
    if cfg.TEST.AUG.ENABLED:
        raise UserError(
            f"{_FLAG}: a heat map explains one pass over one image; only tools/train_net.py merges "
            "detections of several, so set it to False here"
        )


def without_maps(model: nn.Module) -> nn.Module:
    """A view of a model that detects as it does, by its own NMS too, and explains nothing."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    settings = getattr(model, "odam", None)
    if settings is None:
        return model
    return with_overrides(model, odam=dataclasses.replace(settings, targets=()))

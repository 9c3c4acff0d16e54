"""The loss of Odam-Train, as an entry of the registry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from odam_d2.core.odam_train import Pairs, consistency, object_pairs, pair_auc, separation
from odam_d2.core.ranges import check_number

from .positives import Positives
from .registry import ODAM_LOSS_REGISTRY

__all__ = ["OdamTrainLoss"]


@ODAM_LOSS_REGISTRY.register()
class OdamTrainLoss(nn.Module):
    """
    Maps of the same object agree, maps of different objects differ (Zhao and Chan, "ODAM", ICLR
    2023, section 3.3). See :mod:`odam_d2.core.odam_train` for the formula.

    Pairs are those of one image and of one object's reference, where the authors' released code
    pairs across the batch and has one reference for all objects of an image.
    """

    @configurable
    def __init__(self, *, clamp: float = 1e-4, min_overlap: float = 0.0):
        """
        Args:
            clamp: correlations are held within [clamp, 1 - clamp]; above 0, below 0.5.
            min_overlap: detections of different objects are pushed apart where the IoU of their
                boxes is above this; in [0, 1).
        """
        super().__init__()
        words = "above 0 and below 0.5"
        check_number("MODEL.ODAM.LOSS.CLAMP", clamp, words, 0, 0.5, above=True, below=True)
        words = "an IoU, at least 0, below 1"
        check_number("MODEL.ODAM.LOSS.MIN_OVERLAP", min_overlap, words, 0, 1, below=True)
        self.clamp = clamp
        self.min_overlap = min_overlap

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.ODAM.LOSS
        return {"clamp": node.CLAMP, "min_overlap": node.MIN_OVERLAP}

    def forward(self, batch: Sequence[Positives]) -> Tensor:
        """
        Args:
            batch: the positives of each image.

        Returns:
            Scalar, the mean over pairs of the same object plus that over pairs of different ones.
        """
        pairs = [self._pairs(positives) for positives in batch if len(positives)]
        if not pairs:
            return torch.stack([positives.maps.sum() for positives in batch]).sum() * 0
        same, different = (Pairs.cat(of_kind) for of_kind in zip(*pairs, strict=True))
        _log(same.correlation, different.correlation)
        return consistency(same, self.clamp) + separation(different, self.clamp)

    def _pairs(self, positives: Positives) -> tuple[Pairs, Pairs]:
        labels = positives.labels
        boxes = Boxes(labels.boxes)
        overlaps = pairwise_iou(boxes, boxes)
        return object_pairs(positives.maps, labels.objects, labels.ious, overlaps, self.min_overlap)


def _log(same: Tensor, different: Tensor) -> None:
    """What the loss works on, as scalars of Detectron2's event storage."""
    storage = get_event_storage()
    for name, correlation in (("same", same), ("different", different)):
        storage.put_scalar(f"odam/num_{name}_pairs", len(correlation))
        if len(correlation):
            storage.put_scalar(f"odam/{name}_correlation", correlation.detach().mean().item())
    if len(same) and len(different):
        storage.put_scalar("odam/pair_auc", pair_auc(same, different))

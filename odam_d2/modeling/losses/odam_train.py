"""The loss of Odam-Train, as an entry of the registry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from odam_d2.core.odam_train import consistency, object_pairs, pair_auc, separation
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
        if not any(map(len, batch)):
            return torch.stack([positives.maps.sum() for positives in batch]).sum() * 0
        maps = [positives.maps.flatten(1) for positives in batch]
        cells = max(of_image.shape[1] for of_image in maps)
        maps = [F.pad(of_image, (0, cells - of_image.shape[1])) for of_image in maps]
        labels = [positives.labels for positives in batch]
        image = torch.cat([torch.full((len(x),), n, device="cpu") for n, x in enumerate(labels)])
        objects = torch.cat([x.objects for x in labels]).cpu()
        objects = objects + image * (objects.max() + 1)  # different ones in different images
        ious, boxes = torch.cat([x.ious for x in labels]), torch.cat([x.boxes for x in labels])
        same, different = object_pairs(
            torch.cat(maps), image, objects, ious.cpu(), boxes.cpu(), self.min_overlap
        )
        _log(same.correlation, different.correlation)
        return consistency(same, self.clamp) + separation(different, self.clamp)


def _log(same: Tensor, different: Tensor) -> None:
    """What the loss works on, as scalars of Detectron2's event storage."""
    storage = get_event_storage()
    same, different = same.detach().cpu(), different.detach().cpu()
    for name, correlation in (("same", same), ("different", different)):
        storage.put_scalar(f"odam/num_{name}_pairs", len(correlation))
        if len(correlation):
            storage.put_scalar(f"odam/{name}_correlation", correlation.mean().item())
    if len(same) and len(different):
        storage.put_scalar("odam/pair_auc", pair_auc(same, different))

"""What a detector says before its NMS, kept so that any NMS can be applied to it later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from torch import nn
from tqdm import tqdm

from odam_d2 import explain

__all__ = ["Candidates", "collect", "load", "save", "without_nms"]


@dataclass(frozen=True)
class Candidates:
    """
    The candidates of one image, the highest score first.

    Attributes:
        image_id: in the data set.
        boxes: (N, 4), XYXY in pixels of the original image.
        scores: (N,).
        classes: (N,) int64.
        correlation: (N, N), of the heat maps of their class logits.
    """

    image_id: int
    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    correlation: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)


def without_nms(cfg: CfgNode, max_candidates: int) -> CfgNode:
    """A copy of the config in which NMS removes nothing, and so many detections are kept."""
    cfg = cfg.clone()
    cfg.defrost()
    # NMS removes what overlaps by more than this.
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    cfg.MODEL.RETINANET.NMS_THRESH_TEST = 1.0
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 1.0
    cfg.TEST.DETECTIONS_PER_IMAGE = max_candidates
    return cfg


@torch.no_grad()
def collect(
    model: nn.Module, cfg: CfgNode, dataset: str, images: int | None = None
) -> Iterator[Candidates]:
    """
    Yield the candidates of each image of a data set.

    Args:
        model: built from a config by :func:`without_nms`.
        cfg: that config.
        dataset: a registered data set.
        images: only the first so many.
    """
    entries = get_detection_dataset_dicts([dataset], filter_empty=False)[:images]
    loader = build_detection_test_loader(
        entries, mapper=DatasetMapper(cfg, is_train=False), num_workers=0
    )
    for inputs in tqdm(loader, f"candidates of {dataset}", unit="image"):
        found = explain(model, inputs, ("class",), score="logit")
        for given, output in zip(inputs, found, strict=True):
            instances = output["instances"].to("cpu")
            yield Candidates(
                image_id=given["image_id"],
                boxes=instances.pred_boxes.tensor,
                scores=instances.scores,
                classes=instances.pred_classes,
                correlation=instances.odam_maps.similarity("class"),
            )


def save(candidates: list[Candidates], path: Path) -> None:
    """Write candidates to a file, whole or not at all; correlations in half precision."""
    fields = [
        {**vars(of_image), "correlation": of_image.correlation.half()} for of_image in candidates
    ]
    unfinished = path.with_suffix(".tmp")
    torch.save(fields, unfinished)
    unfinished.replace(path)


def load(path: Path) -> list[Candidates]:
    """Read what :func:`save` wrote."""
    found = torch.load(path, weights_only=True)
    return [
        Candidates(**{**fields, "correlation": fields["correlation"].float()}) for fields in found
    ]

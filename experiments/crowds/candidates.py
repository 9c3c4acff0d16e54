"""What a detector says before its NMS, kept so that any NMS can be applied to it later."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from torch import nn
from tqdm import tqdm

from odam_d2 import OdamMaps, explain
from odam_d2.data.mapper import PictureMapper
from odam_d2.digests import describe
from odam_d2.files import read_torch, write_torch
from odam_d2.fingerprint import differences

logger = logging.getLogger(__name__)

_GEOMETRY = ("origins", "strides", "grid_sizes", "image_sizes", "levels")

__all__ = ["ImageCandidates", "collect", "load", "save", "without_nms"]


@dataclass(frozen=True)
class ImageCandidates:
    """
    The candidates of one image, the highest score first.

    Attributes:
        image_id: in the data set.
        boxes: (N, 4), XYXY in pixels of the original image.
        scores: (N,).
        classes: (N,) int64.
        maps: heat maps of their class logits.
    """

    image_id: int
    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    maps: OdamMaps

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def by_class(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """The candidates of each class, (n,) indices, and the correlations of their maps (n, n)."""
        groups = ((k, (self.classes == k).nonzero()[:, 0]) for k in self.classes.unique().tolist())
        return {label: (index, self.maps[index].similarity("class")) for label, index in groups}

    def above(self, score: float) -> ImageCandidates:
        """Those of at least that score."""
        count = int((self.scores >= score).sum())
        boxes, scores, classes = (x[:count] for x in (self.boxes, self.scores, self.classes))
        return ImageCandidates(self.image_id, boxes, scores, classes, self.maps[:count])

    def correlation(self, index: torch.Tensor) -> torch.Tensor:
        """
        Args:
            index: (n,), all candidates of a class in the order of scores.
        """
        mine, correlation = self.by_class[int(self.classes[index[0]])]
        if not torch.equal(mine, index):
            raise ValueError("correlations are kept for all candidates of a class together")
        return correlation


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
) -> Iterator[ImageCandidates]:
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
        entries, mapper=PictureMapper(cfg, is_train=False), num_workers=0
    )
    for inputs in tqdm(loader, f"candidates of {dataset}", unit="image"):
        found = explain(model, inputs, ("class",), score="logit", signed=False)
        for given, output in zip(inputs, found, strict=True):
            instances = output["instances"].to("cpu")
            yield ImageCandidates(
                image_id=given["image_id"],
                boxes=instances.pred_boxes.tensor,
                scores=instances.scores,
                classes=instances.pred_classes,
                maps=instances.odam_maps,
            )


def save(candidates: list[ImageCandidates], path: Path, fingerprint: Mapping | None = None) -> None:
    """
    Write candidates to a file; maps in half precision.

    Args:
        fingerprint: what they depend on, see :mod:`odam_d2.fingerprint`.
    """
    fields = [_to_fields(of_image) for of_image in candidates]
    write_torch(path, {"fingerprint": describe(fingerprint or {}), "candidates": fields})


def _to_fields(candidates: ImageCandidates) -> dict:
    maps = candidates.maps.normalized()  # within the range of half precision
    tensors = {name: getattr(maps, name) for name in _GEOMETRY}
    names = ("image_id", "boxes", "scores", "classes")
    return {
        **{name: getattr(candidates, name) for name in names},
        "maps": {"values": maps.values.half(), **tensors},
    }


def load(path: Path, fingerprint: Mapping | None = None) -> list[ImageCandidates] | None:
    """
    Read what :func:`save` wrote.

    Returns:
        None where there is none, or, with a line in the log, where it is damaged or of another
        fingerprint.
    """
    # To have read all of it is the check.
    found = read_torch(path, lambda content: [_from_fields(x) for x in content["candidates"]] != [])
    if found is None:
        return None
    if why := differences(found["fingerprint"], describe(fingerprint or {})):
        logger.info("%s is of an earlier run, and made again: %s.", path, why)
        return None
    return [_from_fields(fields) for fields in found["candidates"]]


def _from_fields(fields: dict) -> ImageCandidates:
    return ImageCandidates(**{**fields, "maps": OdamMaps(["class"], **_to_float(fields["maps"]))})


def _to_float(maps: dict) -> dict:
    return {**maps, "values": maps["values"].float()}

"""What is measured of a detector's candidates and of what an NMS leaves of them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence

import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from torch import Tensor

from odam_d2.core.odam_train import pair_auc
from odam_d2.evaluation.crowd import crowd_metrics

from .candidates import ImageCandidates
from .tuning import MOST, apply, crowd_images

__all__ = ["detection_figures", "pair_figures"]

_MIN_SCORE, _MIN_IOU = 0.05, 0.5  # of candidates that say something of an object, as COCO's AP50


def detection_figures(
    dataset: str,
    candidates: Sequence[ImageCandidates],
    entries: dict,
    method: str,
    settings: dict,
    overlap: float,
    precision: float,
) -> dict[str, float]:
    """
    Returns:
        In percent: ``AP``, ``AP50`` by COCO's protocol, and of CrowdHuman's ``MR``, ``JI``,
        ``Recall-overlapped`` and at the precision, see ``CrowdEvaluator``.
    """
    images = crowd_images(candidates, entries, method, settings)
    figures = crowd_metrics(images, overlap=overlap, precision=precision)
    chosen = {name: figures[name] for name in figures if name in ("MR", "JI") or "ecall" in name}
    return {**_coco(dataset, candidates, entries, method, settings), **chosen}


def _coco(
    dataset: str, candidates: Sequence[ImageCandidates], entries: dict, method: str, settings: dict
) -> dict[str, float]:
    evaluator = COCOEvaluator(dataset, tasks=("bbox",), distributed=False, use_fast_impl=False)
    evaluator.reset()
    for of_image in candidates:
        entry, result = entries[of_image.image_id], apply(method, of_image, settings)
        found = Instances((entry["height"], entry["width"]))
        keep = result.keep[:MOST]
        found.pred_boxes = Boxes(of_image.boxes[keep])
        found.scores, found.pred_classes = result.scores[:MOST], of_image.classes[keep]
        evaluator.process([{"image_id": of_image.image_id}], [{"instances": found}])
    evaluator._logger.setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own table
        box = evaluator.evaluate([c.image_id for c in candidates])["bbox"]
    return {"AP": box["AP"], "AP50": box["AP50"]}


def pair_figures(candidates: Sequence[ImageCandidates], entries: dict, overlap: float) -> dict:
    """
    Do maps tell whether two detections are of one object? Over pairs of candidates of the same
    class, with scores above 0.05, whose boxes overlap, each on an object (IoU of 0.5 or more; the
    one of highest IoU).

    Returns:
        ``same_correlation`` and ``different_correlation``, means; ``pair_auc``, and for comparison
        ``pair_auc_iou``, that of the boxes' IoU; ``same_pairs``, ``different_pairs``.
    """
    same, different = [], []
    for of_image in candidates:
        pairs = _pairs(of_image, entries[of_image.image_id], overlap)
        same.append(pairs[0])
        different.append(pairs[1])
    (same, same_iou), (different, different_iou) = (
        torch.cat(kind, dim=1) for kind in (same, different)
    )
    return {
        "same_correlation": float(same.mean()),
        "different_correlation": float(different.mean()),
        "pair_auc": pair_auc(same, different),
        "pair_auc_iou": pair_auc(same_iou, different_iou),
        "same_pairs": len(same),
        "different_pairs": len(different),
    }


def _pairs(candidates: ImageCandidates, entry: dict, overlap: float) -> tuple[Tensor, Tensor]:
    """(2, P) correlation and IoU of pairs of the same object, and of different ones."""
    objects = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
               for a in entry["annotations"] if not a.get("iscrowd", 0)]  # fmt: skip
    if not objects or not len(candidates):
        return torch.zeros(2, 0), torch.zeros(2, 0)
    best, number = pairwise_iou(Boxes(candidates.boxes), Boxes(torch.tensor(objects))).max(dim=1)
    asked = (candidates.scores > _MIN_SCORE) & (best >= _MIN_IOU)
    same, different = [], []
    for index, correlation in candidates.by_class.values():
        boxes = Boxes(candidates.boxes[index])
        iou = pairwise_iou(boxes, boxes)
        pairs = (iou > overlap) & asked[index] & asked[index][:, None]
        pairs = pairs.triu(diagonal=1)
        of_one = number[index] == number[index][:, None]
        values = torch.stack([correlation, iou])
        same.append(values[:, pairs & of_one])
        different.append(values[:, pairs & ~of_one])
    return torch.cat(same, dim=1), torch.cat(different, dim=1)

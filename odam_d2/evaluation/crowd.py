"""Evaluation in crowds, by the public protocol of CrowdHuman, on any data set with boxes."""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from tabulate import tabulate

from odam_d2.core.errors import InputError
from odam_d2.files import write_json

from .crowd_protocol import (
    Case,
    Matches,
    average_precision,
    box_overlaps,
    jaccard_index,
    match,
    miss_rate,
    recall_at_precision,
)

__all__ = ["CrowdEvaluator", "CrowdImage", "crowd_metrics", "pooled_matches"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrowdImage:
    """
    What was to be found in an image, and what was found.

    Attributes:
        size: (height, width) in pixels.
        objects: (G, 4), XYXY in pixels, ignore regions among them.
        categories: (G,) contiguous ids.
        ignore: (G,) bool.
        boxes: (N, 4), XYXY in pixels, detected.
        scores: (N,).
        classes: (N,) contiguous ids.
    """

    size: tuple[int, int]
    objects: np.ndarray
    categories: np.ndarray
    ignore: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def case(self, category: int) -> Case:
        """One category of this image."""
        mine, found = self.categories == category, self.classes == category
        return Case.clipped(
            self.size,
            self.objects[mine],
            self.ignore[mine],
            self.boxes[found],
            self.scores[found],
        )

    def overlapped(self, iou_thresh: float) -> np.ndarray:
        """(G,) bool: overlaps another object, of any category, by more than that; none ignored."""
        iou = box_overlaps(self.objects, self.objects) * ~self.ignore
        np.fill_diagonal(iou, 0)
        return (iou > iou_thresh).any(axis=1) & ~self.ignore


class CrowdEvaluator(DatasetEvaluator):
    """
    AP, recall, MR^-2 and JI by the public protocol of CrowdHuman, in percent, and the recall of
    objects that overlap one another. See :mod:`odam_d2.evaluation.crowd_protocol`.

    With several categories, figures are means over those that have objects. ``iscrowd`` annotations
    are ignore regions.

    Args:
        dataset_name: a registered data set with boxes.
        output_dir: where ``crowd_results.json`` is written; None for nowhere.
        overlap: objects are overlapped where another object's box has more than this IoU with
            theirs; in (0, 1).
        precision: at which the recall of all, and of overlapped, objects is given too; in (0, 1].
        distributed: gather from all processes.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        overlap: float = 0.3,
        precision: float = 0.8,
        distributed: bool = True,
    ):
        self.output_dir = output_dir
        self.overlap = overlap
        self.precision = precision
        self._name = dataset_name
        self._distributed = distributed
        self._images = {x["image_id"]: x for x in DatasetCatalog.get(dataset_name)}
        self._class_names = MetadataCatalog.get(dataset_name).get("thing_classes")
        objects = sum(
            not a.get("iscrowd", 0) for x in self._images.values() for a in x["annotations"]
        )
        if not objects:
            raise InputError(f"data set {dataset_name!r} has no object to find in any image")
        self._found: dict = {}

    def reset(self) -> None:
        self._found = {}

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            if given["image_id"] not in self._images:
                raise InputError(
                    f"image {given['image_id']!r} is not in the data set {self._name!r}; is that "
                    "the one that the detector was run on?"
                )
            found = output["instances"].to("cpu")
            scores = found.scores.numpy()
            boxes = found.pred_boxes.tensor.numpy()
            if not np.isfinite(scores).all() or not np.isfinite(boxes).all():
                raise InputError(
                    f"image {given['image_id']!r} has scores or boxes that are not finite"
                )
            self._found[given["image_id"]] = (
                found.image_size,
                boxes.astype(np.float64),
                scores,
                found.pred_classes.numpy(),
            )

    def evaluate(self) -> dict:
        found = [self._found]
        if self._distributed:
            comm.synchronize()
            found = comm.gather(self._found, dst=0)
            if not comm.is_main_process():
                return {}
        merged = dict(itertools.chain.from_iterable(part.items() for part in found))
        if not merged:
            logger.warning("[CrowdEvaluator] Did not receive valid predictions.")
            return {}
        if len(merged) < len(self._images):
            logger.warning("[CrowdEvaluator] %d of the %d images of %s were evaluated.",
                           len(merged), len(self._images), self._name)  # fmt: skip
        # In the order of the data set, however many processes there were: of equal scores, the
        # image that comes first comes first.
        images = [self._image(image_id, *merged[image_id])
                  for image_id in self._images if image_id in merged]  # fmt: skip
        results = crowd_metrics(images, self._class_names, self.overlap, self.precision)
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            path = os.path.join(self.output_dir, "crowd_results.json")
            write_json(path, {"images": len(images), **results})
        rows = [(name, value) for name, value in results.items() if not isinstance(value, list)]
        logger.info("Crowd evaluation of %s:\n%s", self._name,
                    tabulate(rows, floatfmt=".2f", tablefmt="pipe"))  # fmt: skip
        plain = [(name, value) for name, value in rows if isinstance(value, float)]
        return OrderedDict(crowd=OrderedDict(plain))

    def _image(
        self,
        image_id: object,
        size: tuple[int, int],
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
    ) -> CrowdImage:
        annotations = self._images[image_id]["annotations"]
        objects = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                   for a in annotations]  # fmt: skip
        return CrowdImage(
            size=size,
            objects=np.array(objects, dtype=np.float64).reshape(-1, 4),
            categories=np.array([a["category_id"] for a in annotations], dtype=np.int64),
            ignore=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            boxes=boxes,
            scores=scores,
            classes=classes,
        )


def crowd_metrics(
    images: Sequence[CrowdImage],
    class_names: Sequence[str] | None = None,
    overlap: float = 0.3,
    precision: float = 0.8,
) -> dict:
    """
    All figures of :class:`CrowdEvaluator`, in percent.

    Args:
        images: of a data set.
        class_names: by contiguous id, if known.
        overlap, precision: as for :class:`CrowdEvaluator`.

    Returns:
        ``AP``, ``Recall``, ``MR``, ``JI`` (means over categories with objects), ``AP-NAME``,
        ``MR-NAME`` and ``JI-NAME`` of each category where there are several, ``JI_by_threshold``;
        ``Recall-overlapped`` among all detections, ``Recall@P80`` and ``Recall-overlapped@P80`` at
        that precision over all categories together; ``objects`` and ``overlapped_objects``, counts.
    """
    categories = _categories(images)
    results: dict = {}
    per_category = []
    for category in categories:
        cases = [image.case(category) for image in images]
        found = match(cases)
        index = jaccard_index(cases)
        values = (average_precision(found), recall_at_precision(found, 0), miss_rate(found))
        per_category.append([*values, *index])
    mean = 100 * np.mean(per_category, axis=0)
    results |= dict(zip(("AP", "Recall", "MR"), mean[:3].tolist(), strict=True))
    results["JI"] = float(mean[3:].max())
    together, overlapped = pooled_matches(images, overlap)
    at = f"@P{100 * precision:.0f}"
    results["Recall-overlapped"] = 100 * recall_at_precision(together, 0, overlapped)
    results[f"Recall{at}"] = 100 * recall_at_precision(together, precision)
    results[f"Recall-overlapped{at}"] = 100 * recall_at_precision(together, precision, overlapped)
    if len(categories) > 1:
        for category, row in zip(categories, per_category, strict=True):
            name = class_names[category] if class_names else f"class {category}"
            results[f"AP-{name}"] = 100 * float(row[0])
            results[f"MR-{name}"] = 100 * float(row[2])
            results[f"JI-{name}"] = 100 * float(np.max(row[3:]))
    results["JI_by_threshold"] = mean[3:].tolist()
    results["objects"] = len(overlapped)
    results["overlapped_objects"] = int(overlapped.sum())
    return results


def _categories(images: Sequence[CrowdImage]) -> list[int]:
    """Those that have objects."""
    parts = [x.categories[~x.ignore] for x in images]
    categories = sorted(set(np.concatenate([np.zeros(0, np.int64), *parts]).tolist()))
    if not categories:
        raise InputError("none of the evaluated images has an object to find")
    return categories


def pooled_matches(images: Sequence[CrowdImage], overlap: float) -> tuple[Matches, np.ndarray]:
    """
    The detections of all categories, matched each within its own, in one order of scores.

    Returns:
        Matches, and which of their objects overlap another one, of any category, by more than
        ``overlap``, (num_objects,) bool.
    """
    matches, chosen = [], []
    for category in _categories(images):
        matches.append(match([image.case(category) for image in images]))
        chosen += [x.overlapped(overlap)[(x.categories == category) & ~x.ignore] for x in images]
    return _pooled(matches), np.concatenate(chosen)


def _pooled(matches: Sequence[Matches]) -> Matches:
    """The detections of all categories in one order of scores."""
    first = np.cumsum([0, *(m.num_objects for m in matches)])
    objects = np.concatenate([np.where(m.hits, m.objects + start, -1)
                              for m, start in zip(matches, first, strict=False)])  # fmt: skip
    scores = np.concatenate([m.scores for m in matches])
    order = np.argsort(-scores, kind="stable")
    hits = objects[order] >= 0
    return Matches(scores[order], hits, objects[order], int(first[-1]), matches[0].num_images)

"""
Does a map point at the known cause? On CrowdShapes, the part that decides an object's class and the
part that ends each side of its box are annotated, so the right explanation is a fact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou

from odam_d2.core.errors import InputError
from odam_d2.core.metrics import pointing_game
from odam_d2.core.targets import SIDES
from odam_d2.fingerprint import entry_key
from odam_d2.structures import OdamMaps

from .rows import RowFiles

__all__ = [
    "KnownCauseEvaluator",
    "has_known_causes",
    "in_half_of_side",
    "match_to_objects",
    "peak_on_mask",
]


class KnownCauseEvaluator(DatasetEvaluator):
    """
    Share of well-detected objects whose maps peak at the known cause.

    An object counts when a detection has the right class and an IoU with it of at least
    ``iou_thresh``; it is explained by the best scored one. For ``class``, the peak must lie on the
    deciding part; chance is the share of the box that the part covers. For a side, the peak must
    lie in that side's half of the box (chance 50), and ``SIDE_on_part`` counts peaks on the very
    part that ends it (chance as for ``class``). ``class_unoccluded`` are the objects whose deciding
    part is visible as a whole. Where objects wear decoys, ``class_on_decoys`` counts peaks on one
    of them (chance as for ``class``). All that is of the evidence for a decision. Where maps are
    signed, ``TARGET_against_on_part`` and ``class_against_on_decoys`` count the peaks of the
    evidence against it.

    Args:
        dataset_name: a registered data set whose annotations have ``part_segmentations``.
        output_dir: where the figures of each object are kept; None for nowhere.
        iou_thresh: IoU from which an object counts as found.
        resume, fingerprint, images: as for ``ExplanationEvaluator``.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        iou_thresh: float = 0.5,
        *,
        resume: bool = False,
        fingerprint: Mapping | None = None,
        images: Sequence[object] | None = None,
    ):
        self.iou_thresh = iou_thresh
        self._objects = {x["image_id"]: x for x in DatasetCatalog.get(dataset_name)}
        if not has_known_causes(dataset_name):
            raise InputError(
                f"data set {dataset_name!r} has no part_segmentations: known causes are known on "
                "CrowdShapes only"
            )
        self._asked = images
        self._rows = RowFiles(
            output_dir,
            {"dataset": dataset_name, "iou_thresh": iou_thresh, **(fingerprint or {})},
            {image_id: entry_key(entry) for image_id, entry in self._objects.items()},
            resume=resume,
        )

    @property
    def done(self) -> set:
        """Ids of the images that are done."""
        return set(self._rows.by_image)

    def reset(self) -> None:
        self._rows.open()

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            image = self._objects[given["image_id"]]
            if given["image_id"] in self.done:
                continue
            rows = []
            found = output["instances"].to("cpu")
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                     for a in image["annotations"]]  # fmt: skip
            labels = torch.tensor([a["category_id"] for a in image["annotations"]])
            pairs = match_to_objects(found, Boxes(boxes), labels, self.iou_thresh)
            for detection, number in pairs:
                annotation, box = image["annotations"][number], boxes[number]
                rows.append(_score(found[detection], annotation, box))
            self._rows.add(given["image_id"], rows)

    def evaluate(self) -> dict | None:
        """
        Returns:
            Under ``"known_causes"`` shares in percent, with ``num_detections``; None on other than
            the main process.
        """
        by_image = self._rows.gather(self._asked)
        if by_image is None:
            return None
        rows = [row for of_image in by_image.values() for row in of_image]
        result: dict[str, float] = {"num_detections": len(rows)}
        for key in dict.fromkeys(key for row in rows for key in row):
            result[key] = 100 * float(np.mean([row[key] for row in rows if key in row]))
        return OrderedDict(known_causes=result)


def has_known_causes(dataset_name: str) -> bool:
    """Whether the objects of a registered data set have ``part_segmentations``."""
    entries = DatasetCatalog.get(dataset_name)
    first: dict = next((a for x in entries for a in x["annotations"]), {})
    return "part_segmentations" in first


def match_to_objects(
    found: Instances, boxes: Boxes, labels: torch.Tensor, iou_thresh: float
) -> list[tuple[int, int]]:
    """
    Pair detections with objects as COCO does: best score first, each takes the object of its class
    with the highest IoU that is still free.

    Returns:
        (detection, object) pairs with an IoU of at least ``iou_thresh``.
    """
    if not len(found) or not len(boxes):
        return []
    iou = pairwise_iou(found.pred_boxes, boxes)
    iou[found.pred_classes[:, None] != labels[None]] = 0
    pairs = []
    for detection in found.scores.argsort(descending=True).tolist():
        best, number = iou[detection].max(dim=0)
        if best >= iou_thresh:
            pairs.append((detection, int(number)))
            iou[:, number] = 0
    return pairs


def peak_on_mask(heat: torch.Tensor, mask: torch.Tensor) -> float:
    """
    Whether a map's peak lies on a mask: 1 or 0, or the share of equal peaks that do, so that a
    flat map gets no more than chance. 0 for a map that is zero everywhere.

    Args:
        heat: (H, W), not negative; mask: (H, W) of bool.
    """
    return float(pointing_game(heat[None], mask[None]))


def in_half_of_side(heat: torch.Tensor, box: Sequence[float], side: str) -> float:
    """
    Whether a map's peak lies in one half of the plane, cut through the centre of a box: the half
    on the given side. Equal peaks and zero maps as in :func:`peak_on_mask`.

    Args:
        heat: (H, W), not negative.
        box: XYXY in pixels of the map.
    """
    height, width = heat.shape
    y = torch.arange(height)[:, None] + 0.5 - (box[1] + box[3]) / 2
    x = torch.arange(width)[None] + 0.5 - (box[0] + box[2]) / 2
    inward = {"left": x, "top": y, "right": -x, "bottom": -y}[side]
    return peak_on_mask(heat, (inward <= 0).expand(height, width))


def _score(found: Instances, annotation: dict, box: list[float]) -> dict[str, float]:
    """Hits and chances of one detection."""
    size = next(iter(annotation["part_segmentations"].values()))["size"]
    heat = _heats(found.odam_maps.positive(), size)
    against = _heats(found.odam_maps.negative(), size) if found.odam_maps.signed else {}
    parts = {
        name: torch.as_tensor(mask_utils.decode(rle)).bool()
        for name, rle in annotation["part_segmentations"].items()
    }
    area = (box[2] - box[0]) * (box[3] - box[1])
    row = {}
    if "class" in heat:
        row["class"] = peak_on_mask(heat["class"], parts["class"])
        row["class_chance"] = float(parts["class"].sum()) / area
        if annotation.get("visibility", {}).get("class") == 1:
            row["class_unoccluded"] = row["class"]
        if "decoy_segmentations" in annotation:
            decoys = torch.zeros(*size, dtype=torch.bool)
            for rle in annotation["decoy_segmentations"].values():
                decoys |= torch.as_tensor(mask_utils.decode(rle)).bool()
            row["class_on_decoys"] = peak_on_mask(heat["class"], decoys)
            row["class_on_decoys_chance"] = float(decoys.sum()) / area
            if "class" in against:
                row["class_against_on_decoys"] = peak_on_mask(against["class"], decoys)
    for side in SIDES:
        if side in heat:
            row[side] = in_half_of_side(heat[side], box, side)
            row[f"{side}_on_part"] = peak_on_mask(heat[side], parts[side])
            row[f"{side}_on_part_chance"] = float(parts[side].sum()) / area
    for target in against:
        if target in parts:
            row[f"{target}_against_on_part"] = peak_on_mask(against[target], parts[target])
    return row


def _heats(maps: OdamMaps, size: Sequence[int]) -> dict[str, torch.Tensor]:
    """The maps (H, W) of one detection by target, at (height, width)."""
    return dict(zip(maps.targets, maps.dense(*size)[0], strict=True))

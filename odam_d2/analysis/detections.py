"""What a detector finds in a data set, kept in a file, so that it is run once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.structures import BoxMode
from torch import nn
from tqdm import tqdm

from odam_d2.data.checks import plain_id
from odam_d2.data.mapper import PictureMapper
from odam_d2.errors import UserError
from odam_d2.evaluation.regions import object_boxes, true_objects
from odam_d2.evaluation.rows import RowFiles
from odam_d2.fingerprint import entry_key
from odam_d2.modeling.state import preserved

from .ap_costs import AnalysedImage
from .error_types import sort_detections

__all__ = ["analyse", "find_detections"]

logger = logging.getLogger(__name__)


def find_detections(
    model: nn.Module, cfg: CfgNode, dataset: str, folder: Path, fingerprint: Mapping
) -> dict[object, dict]:
    """
    Run the detector on the images that ``folder`` does not have yet.

    Args:
        model: as ``Trainer`` builds it, which does not explain.
        fingerprint: what detections depend on beside their image; those of another one, and of
            images that have changed, are found anew.

    Returns:
        By image id ``boxes`` (N lists of XYXY in pixels of the image), ``scores``, ``classes``.
    """
    entries = DatasetCatalog.get(dataset)
    keys = {entry["image_id"]: entry_key(entry) for entry in entries}
    asked = {"dataset": dataset, **fingerprint}
    rows = RowFiles(str(folder), asked, keys, resume=True, distributed=False)
    rows.open()
    todo = [entry for entry in entries if entry["image_id"] not in rows.by_image]
    loader = []
    if todo:  # one of nothing cannot be built
        loader = build_detection_test_loader(
            todo, mapper=PictureMapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
        )
    try:
        for batch in tqdm(loader, f"detections in {dataset}", unit="image"):
            with preserved(model) as detector:
                outputs = detector(batch)
            for given, output in zip(batch, outputs, strict=True):
                found = output["instances"].to("cpu")
                rows.add(
                    given["image_id"],
                    {
                        "boxes": found.pred_boxes.tensor.tolist(),
                        "scores": found.scores.tolist(),
                        "classes": found.pred_classes.tolist(),
                    },
                )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"after {len(rows.by_image)} of {len(entries)} images, which are kept: the same "
            "command goes on from there"
        ) from None
    finally:
        rows.close()
    return rows.gather(list(keys)) or {}


def analyse(
    found: dict[object, dict], dataset: str, iou_thresh: float, background_iou: float
) -> dict[object, AnalysedImage]:
    """
    Sort what was found against what was to be found, see
    :func:`odam_d2.analysis.error_types.sort_detections`.
    """
    images = {}
    for entry in DatasetCatalog.get(dataset):
        record, objects = found[entry["image_id"]], true_objects(entry)
        crowds = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in entry["annotations"]
            if a.get("iscrowd", 0)
        ]
        parts = {
            "boxes": torch.tensor(record["boxes"]).reshape(-1, 4),
            "scores": torch.tensor(record["scores"]),
            "classes": torch.tensor(record["classes"], dtype=torch.int64),
            "objects": object_boxes(objects),
            "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
            "ignore": torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4),
        }
        findings = sort_detections(**parts, iou_thresh=iou_thresh, background_iou=background_iou)
        images[plain_id(entry["image_id"])] = AnalysedImage(**parts, findings=findings)
    if not any(len(image.objects) for image in images.values()):
        raise UserError(f"data set {dataset!r} has no object in any image: nothing can be wrong")
    return images

"""The error analysis of a detector on a data set, from running it to the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn
from tqdm import tqdm

from odam_d2.data.checks import DatasetUse
from odam_d2.data.mapper import PictureMapper
from odam_d2.data.pictures import read_picture
from odam_d2.engine.checks import check_classes, check_dataset
from odam_d2.engine.trainer import Trainer
from odam_d2.engine.weights import load_weights
from odam_d2.files import encode_png
from odam_d2.fingerprint import of_detector

from .ap_costs import AnalysedImage, ap_costs, precision_recall
from .confusion import confusion_matrix
from .detections import analyse, find_detections
from .error_types import Finding
from .explained_errors import ExplainedError, explain_errors, pick_errors
from .figures import ClassFigures
from .report import ErrorEntry, counts, draw_error, write_error_report

__all__ = ["analyse_errors"]

logger = logging.getLogger(__name__)


def analyse_errors(
    cfg: CfgNode,
    config_name: str,
    output: Path,
    *,
    confidence: float,
    most: int,
    iou_thresh: float,
    background_iou: float,
) -> tuple[Path, dict]:
    """
    Analyse the errors on the first data set of ``DATASETS.TEST``.

    Args:
        cfg: of the detector.
        config_name: for the page.
        output: folder of the report.
        confidence: least score of the errors that are explained.
        most: of each kind that are explained.
        iou_thresh, background_iou: of :func:`odam_d2.analysis.error_types.sort_detections`.

    Returns:
        The path of the page, and ``{"AP", "costs", "counts"}``.

    Raises:
        UserError: the data set is missing, has no objects, or other classes than the detector.
    """
    dataset = cfg.DATASETS.TEST[0]
    check_dataset(dataset, DatasetUse(annotations=True, image_ids=True))
    model = Trainer.build_model(cfg).eval()
    check_classes(model, dataset)
    load_weights(model, cfg.MODEL.WEIGHTS)
    found = find_detections(model, cfg, dataset, output / "detections", of_detector(cfg))
    images = analyse(found, dataset, iou_thresh, background_iou)
    names = MetadataCatalog.get(dataset).thing_classes
    found_images = list(images.values())
    costs = ap_costs(found_images, len(names), iou_thresh)
    precision = precision_recall(found_images, len(names), iou_thresh)
    confusion = confusion_matrix(found_images, len(names), confidence)
    counted = counts(images, confidence)
    picked = pick_errors(images, most, confidence)
    errors, pictures = _explain_all(model, cfg, dataset, images, picked, names)
    settings = {
        "dataset": dataset, "config": config_name, "weights": cfg.MODEL.WEIGHTS,
        "iou_thresh": iou_thresh, "background_iou": background_iou, "confidence": confidence,
        "method": cfg.MODEL.ODAM.PRESET or cfg.MODEL.ODAM.METHOD, "signed": cfg.MODEL.ODAM.SIGNED,
    }  # fmt: skip
    classes = ClassFigures(names, confusion, precision)
    page = write_error_report(output, settings, costs, counted, classes, errors, pictures)
    return page, {**costs, "counts": counted}


def _explain_all(
    model: nn.Module,
    cfg: CfgNode,
    dataset: str,
    images: Mapping[object, AnalysedImage],
    picked: Mapping[str, list[tuple[object, Finding]]],
    names: list[str],
) -> tuple[dict[str, list[ErrorEntry]], dict[str, bytes]]:
    """The picked errors, each image explained once, and the PNG of each file."""
    by_image: dict[object, list[tuple[str, int, Finding]]] = {}
    for kind, of_kind in picked.items():
        for place, (image_id, finding) in enumerate(of_kind):
            by_image.setdefault(image_id, []).append((kind, place, finding))
    entries = {entry["image_id"]: entry for entry in DatasetCatalog.get(dataset)}
    mapper = PictureMapper(cfg, False)
    done: dict[str, dict[int, ErrorEntry]] = {}
    pictures: dict[str, bytes] = {}
    for image_id, asked in tqdm(by_image.items(), "explaining errors", unit="image"):
        entry, image = entries[image_id], images[image_id]
        found = explain_errors(model, mapper(dict(entry)), image, [f for *_, f in asked], names)
        picture = read_picture(entry["file_name"])
        for (kind, place, _), error in zip(asked, found, strict=True):
            drawn, caption = draw_error(picture, image, error, names)
            file = f"{kind}_{place + 1}.png"
            pictures[file] = encode_png(drawn)
            caption = f"{caption} ({Path(entry['file_name']).name})"
            record = _record(image_id, image, error, file, names)
            done.setdefault(kind, {})[place] = ErrorEntry(file, caption, record)
    errors = {kind: [found[place] for place in sorted(found)] for kind, found in done.items()}
    return errors, pictures


def _record(
    image_id: object, image: AnalysedImage, error: ExplainedError, file: str, names: list[str]
) -> dict:
    finding = error.finding
    record = {"image_id": image_id, "kind": finding.kind, "iou": finding.iou, "picture": file}
    if finding.detection is not None:
        row = finding.detection
        record |= {"box": image.boxes[row].tolist(), "score": float(image.scores[row]),
                   "class": names[int(image.classes[row])]}  # fmt: skip
    if finding.object is not None:
        record |= {"object_box": image.objects[finding.object].tolist(),
                   "object_class": names[int(image.labels[finding.object])]}  # fmt: skip
    return record | dict(error.numbers)

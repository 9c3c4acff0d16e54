"""All files of one image: overlays, contact sheet, raw maps and their listing."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
from detectron2.structures import Instances

from odam_d2.files import whole_folder, write_json, write_png
from odam_d2.structures import OdamMaps, save_instances
from odam_d2.visualization.canvas import fit_canvas
from odam_d2.visualization.contact_sheet import contact_sheet
from odam_d2.visualization.discrimination import draw_groups
from odam_d2.visualization.overlay import describe_target, draw_explanation
from odam_d2.visualization.report import DetectionEntry, ImageEntry, OverlayEntry
from odam_d2.visualization.suppressed import draw_suppressed
from odam_d2.visualization.text import printable

from .names import slug, unique_names

__all__ = ["LISTING", "write_image"]

# A quarter smaller than OpenCV's default for contact sheets, and nearly as fast.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)

# What is kept of a detection beside its maps: masks are as large as the image.
_SAVED = ("pred_boxes", "scores", "pred_classes", "odam_maps")

LISTING = "maps.json"
"""The file that tells a folder of ours from others."""


def write_image(
    output: str,
    folder: str,
    source: str,
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    found: int,
    candidates: Instances | None = None,
    overlap: float | None = None,
    by_method: Mapping[str, OdamMaps] | None = None,
) -> ImageEntry:
    """
    Write the folder of one image. It appears complete or not at all, and replaces that of an
    earlier run.

    Args:
        output: folder of all results; it exists.
        folder: name of the image's own folder.
        source: path of the image as the user gave it.
        image: (H, W, 3) uint8 RGB. It is not changed.
        instances: N explained detections in pixels of ``image``.
        class_names: by class id.
        found: how many detections there were, of which ``instances`` are the best.
        candidates: what NMS was given, as recorded, to be drawn and listed; None for not.
        overlap: groups of detections that overlap by more than this IoU are drawn together; None
            for not.
        by_method: maps of the detections by the name of what made them, ``odam_maps`` first, to be
            shown beside one another; None for ``odam_maps`` alone.

    Returns:
        What was written, for the report.
    """
    with whole_folder(os.path.join(output, folder)) as place:
        path = str(place)
        by_method = by_method or {"": instances.odam_maps}
        about = path, folder, source, image, instances, class_names, found
        entry = _write_files(*about, by_method)
        if candidates is not None:
            entry = replace(entry, suppressed="suppressed.png")
            _write_suppressed(path, image, candidates, class_names)
        if overlap is not None:
            groups = draw_groups(image, instances, class_names, overlap)
            if groups is not None:
                entry = replace(entry, groups="groups.png")
                write_png(os.path.join(path, entry.groups), groups, _PNG)
    return entry


def _write_files(
    path: str,
    folder: str,
    source: str,
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    found: int,
    by_method: Mapping[str, OdamMaps],
) -> ImageEntry:
    picture, scaled = fit_canvas(image, instances)
    boxes = instances.pred_boxes.tensor.tolist()
    suffixes = unique_names([slug(target) for target in instances.odam_maps.targets])
    others = list(by_method)[1:]
    endings = dict(zip(by_method, ["", *(f"_{slug(other)}" for other in others)], strict=True))
    detections = []
    for number, box in enumerate(boxes):
        name = class_names[int(instances.pred_classes[number])]
        prefix = f"{number:02d}_{slug(name)}"
        of_methods = []
        for method, maps in by_method.items():
            files = [f"{prefix}_{suffix}{endings[method]}.png" for suffix in suffixes]
            of_maps = maps[number]
            of_methods.append(
                _write_overlays(path, picture, scaled[number], of_maps, name, files, method)
            )
        # Those of one target side by side.
        overlays = [overlay for of_target in zip(*of_methods, strict=True) for overlay in of_target]
        score = float(instances.scores[number])
        detections.append(DetectionEntry(name, score, tuple(box), overlays))
    entry = ImageEntry(
        source, folder, image.shape[:2], picture.shape[:2], found, detections,
        compared={other: f"maps{endings[other]}.npz" for other in others},
        signed=instances.odam_maps.signed,
    )  # fmt: skip
    sheet = contact_sheet(
        image, instances, class_names, title=printable(os.path.basename(source)),
        max_rows=len(instances), found=found, by_method=by_method,
    )  # fmt: skip
    write_png(os.path.join(path, entry.contact_sheet), sheet, _PNG)
    saved = {name: instances.get(name) for name in _SAVED}
    for method, maps in by_method.items():
        file = entry.compared.get(method, entry.maps)
        fields = saved | {"odam_maps": maps}
        save_instances(os.path.join(path, file), Instances(instances.image_size, **fields))
    write_json(os.path.join(path, LISTING), _listing(entry, instances, by_method), indent=1)
    return entry


def _write_suppressed(
    path: str, image: np.ndarray, candidates: Instances, class_names: Sequence[str]
) -> None:
    """A picture of what NMS suppressed, and the record of all candidates."""
    sheet = draw_suppressed(image, candidates, class_names)
    write_png(os.path.join(path, "suppressed.png"), sheet, _PNG)
    by = candidates.suppressed_by.tolist()
    rows = [
        {
            "class": class_names[int(candidates.pred_classes[i])],
            "score": float(candidates.scores[i]),
            "box": candidates.pred_boxes.tensor[i].tolist(),
            "kept": bool(candidates.kept[i]),
            "suppressed_by": by[i] if by[i] >= 0 else None,
            "iou": float(candidates.suppressed_iou[i]) if by[i] >= 0 else None,
            "correlation": float(candidates.suppressed_correlation[i]) if by[i] >= 0 else None,
        }
        for i in range(len(candidates))
    ]
    write_json(os.path.join(path, "suppressed.json"), {"candidates": rows}, indent=1)


def _write_overlays(
    path: str,
    picture: np.ndarray,
    instance: Instances,
    maps: OdamMaps,
    class_name: str,
    files: Sequence[str],
    method: str,
) -> list[OverlayEntry]:
    """Draw all targets of one detection, which is in pixels of ``picture``."""
    heats = maps.dense(*picture.shape[:2])[0]
    box, score = instance.pred_boxes.tensor[0].tolist(), float(instance.scores[0])
    entries = []
    saturated = maps.saturated[0].tolist()
    for target, heat, lost, file in zip(maps.targets, heats, saturated, files, strict=True):
        overlay = draw_explanation(
            picture, heat, box, target, class_name, score, lost, signed=maps.signed
        )
        write_png(os.path.join(path, file), overlay, _PNG)
        caption = describe_target(target, class_name, score, lost)
        caption += f" · {method}" if method else ""
        entries.append(OverlayEntry(target, caption, file, lost, method))
    return entries


def _listing(entry: ImageEntry, instances: Instances, by_method: Mapping[str, OdamMaps]) -> dict:
    """What ``maps.json`` says: one item for each map."""
    items = []
    for number, detection in enumerate(entry.detections):
        class_id = int(instances.pred_classes[number])
        for overlay in detection.overlays:
            maps = by_method[overlay.method]
            items.append(
                {
                    "image": entry.source,
                    "detection": number,
                    "box": list(detection.box),
                    "class": {"id": class_id, "name": detection.class_name},
                    "score": detection.score,
                    "target": overlay.target,
                    "method": overlay.method,
                    "saturated": overlay.saturated,
                    "stride": float(maps.strides[number]),
                    "level": int(maps.levels[number]),
                    "window": {
                        "origin": maps.origins[number].tolist(),
                        "size": list(maps.values.shape[-2:]),
                    },
                    "grid_size": maps.grid_sizes[number].tolist(),
                    "file": entry.compared.get(overlay.method, entry.maps),
                    "index": [number, maps.target_index(overlay.target)],
                    "overlay": overlay.file,
                }
            )
    return {
        "image": entry.source,
        "height": entry.size[0],
        "width": entry.size[1],
        "detections": entry.found,
        "explained": len(entry.detections),
        "contact_sheet": entry.contact_sheet,
        "signed": entry.signed,
        "maps": items,
    }

"""The error analysis as a page to browse, pictures and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from odam_d2.files import remove_leftovers, write_bytes, write_json
from odam_d2.visualization.panels import BoxStyle, Panel, draw_panels
from odam_d2.visualization.report import write_page

from .ap_costs import AnalysedImage
from .error_types import KINDS
from .explained_errors import ExplainedError
from .figures import FILES, ClassFigures

__all__ = ["ErrorEntry", "counts", "draw_error", "write_error_report"]

_FOUND, _TRUE = (255, 196, 37), (76, 201, 240)

_MEANINGS = {
    "localisation": (
        "The right class, in the wrong place",
        "Left, why the worst side is where it is; right, the map of that side for the true box.",
    ),
    "classification": (
        "The right place, and the wrong class",
        "Left, why the predicted class; right, what speaks for the true one.",
    ),
    "both": (
        "The wrong class, in the wrong place",
        "Left, why the predicted class; right, what speaks for the true one.",
    ),
    "duplicate": (
        "An object that was found already",
        "Left, why the duplicate; right, why the detection that counts.",
    ),
    "background": ("No object is there", "Why that class."),
    "missed": (
        "An object that nothing found",
        "The best candidate at that place, where there is one, and what the detector says of the "
        "true box. Largest objects first.",
    ),
}


@dataclass(frozen=True)
class ErrorEntry:
    """An error in the report: the picture's file, a line for it, and what goes into the JSON."""

    file: str
    caption: str
    record: Mapping


@dataclass
class _Section:
    kind: str
    cost: float
    count: int
    confident: int
    meaning: str
    look: str
    errors: Sequence[ErrorEntry] = field(default_factory=list)


def counts(images: Mapping[object, AnalysedImage], confidence: float) -> dict[str, dict[str, int]]:
    """
    Returns:
        For each kind ``{"all": ..., "confident": ...}``; missed objects have no score and are all
        counted as confident.
    """
    found = {kind: {"all": 0, "confident": 0} for kind in KINDS}
    for image in images.values():
        for finding in image.findings:
            sure = finding.detection is None or image.scores[finding.detection] >= confidence
            found[finding.kind]["all"] += 1
            found[finding.kind]["confident"] += int(sure)
    return found


def draw_error(
    picture: np.ndarray, image: AnalysedImage, error: ExplainedError, class_names: Sequence[str]
) -> tuple[np.ndarray, str]:
    """
    Args:
        picture: (H, W, 3) uint8 RGB.
        image: of the error.

    Returns:
        The picture of one error, and a line that says what it is.
    """
    finding, styles = error.finding, []
    if finding.object is not None:
        styles.append(BoxStyle(image.objects[finding.object].tolist(), _TRUE, dashed=True))
    if finding.detection is not None:
        styles.append(BoxStyle(image.boxes[finding.detection].tolist(), _FOUND))
        label = class_names[int(image.classes[finding.detection])]
        heading = f"{label} {float(image.scores[finding.detection]):.2f}"
    else:
        heading = f"{class_names[int(image.labels[finding.object])]}, missed"
    title = {"background": "found box", "missed": "true box"}.get(finding.kind, "both boxes")
    panels = [Panel(title, styles)]
    for of_map in error.maps:
        color = _TRUE if of_map.of_truth else _FOUND
        style = BoxStyle(of_map.box.tolist(), color, of_map.of_truth, of_map.side)
        panels.append(Panel(of_map.caption, [style], of_map.heat, of_map.signed))
    lines: list[tuple[str, tuple[int, int, int] | None]] = [
        (heading, _FOUND if finding.detection is not None else _TRUE)
    ]
    lines += [(fact, None) for fact in error.facts]
    return draw_panels(picture, panels, lines), "; ".join([heading, *error.facts])


def write_error_report(
    output: Path,
    settings: Mapping,
    costs: Mapping,
    counted: Mapping[str, Mapping[str, int]],
    classes: ClassFigures,
    errors: Mapping[str, Sequence[ErrorEntry]],
    pictures: Mapping[str, bytes],
) -> Path:
    """
    Write the pictures, the plots and tables of classes, ``errors.json`` and, last, ``index.html``,
    kinds that cost most first. The files of an earlier report are removed first, so that none is
    taken for one of this one.

    Args:
        output: the folder.
        settings: ``dataset``, ``config``, ``weights``, ``iou_thresh``, ``confidence``, ``method``,
            ``signed``, ...
        costs: of :func:`odam_d2.analysis.ap_costs.ap_costs`.
        counted: of :func:`counts`.
        classes: confusion, and precision over recall.
        errors: of each kind, in the order of the page.
        pictures: PNG by the names of their files.

    Returns:
        The path of the page.
    """
    content = {
        "settings": dict(settings),
        **costs,
        "counts": counted,
        **classes.record(),
        "errors": {kind: [entry.record for entry in found] for kind, found in errors.items()},
    }
    page = output / "index.html"
    output.mkdir(parents=True, exist_ok=True)
    _remove_report(output, page)
    for file, picture in {**classes.files(), **pictures}.items():
        write_bytes(output / file, picture)
    write_json(output / "errors.json", content)
    sections = [
        _Section(kind, cost, counted[kind]["all"], counted[kind]["confident"], *_MEANINGS[kind],
                 errors=errors.get(kind, []))
        for kind, cost in sorted(costs["costs"].items(), key=lambda item: -item[1])
    ]  # fmt: skip
    write_page(
        str(page),
        "errors.html.j2",
        sections=sections,
        average=costs["AP"],
        iou_thresh=settings["iou_thresh"],
        confidence=settings["confidence"],
        signed=settings["signed"],
        subtitle=f"{settings['dataset']} · {settings['config']} · weights {settings['weights']}"
        f" · maps by {settings['method']}",
    )
    return page


def _remove_report(output: Path, page: Path) -> None:
    """The page first: what is there is then no report any more."""
    page.unlink(missing_ok=True)
    for name in ("errors.json", *FILES):
        (output / name).unlink(missing_ok=True)
    pictures = re.compile(rf"(?:{'|'.join(KINDS)})_\d+\.png")
    for path in output.iterdir():
        if pictures.fullmatch(path.name):
            path.unlink()
    remove_leftovers(output)

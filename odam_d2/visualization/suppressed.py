"""Why did this box vanish? What NMS suppressed, beside what it was suppressed by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from odam_d2.structures.heat_colors import blend_heat

from .canvas import resize
from .crops import crop_around
from .panels import BoxStyle, draw_boxes
from .text import Color, fit_text, font

__all__ = ["draw_suppressed", "suppressed_pairs"]

_CELL, _GAP, _TEXT, _HEAD = 190, 8, 250, 34  # pixels of the picture
_BACK: Color = (17, 20, 26)
_INK: Color = (235, 238, 242)
_SOFT: Color = (150, 158, 170)
_KEPT: Color = (255, 196, 37)
_LOST: Color = (76, 201, 240)
_TITLES = ("both boxes", "why the suppressed one", "why the kept one")


def suppressed_pairs(candidates: Instances, max_pairs: int) -> list[tuple[int, int]]:
    """
    The suppressed candidates that one would ask about, each with its suppressor: a high score, and
    boxes that differ (by score times 1 - IoU). At most two have the same suppressor, beyond those
    there is mostly more of the same.

    Args:
        candidates: as ``MODEL.ODAM.NMS.RECORD`` gives them.
        max_pairs: pairs.
    """
    pairs: list[tuple[int, int]] = []
    asked = candidates.scores * (1 - candidates.suppressed_iou.nan_to_num(1))
    for lost in asked.argsort(descending=True, stable=True).tolist():
        by = int(candidates.suppressed_by[lost])
        if by >= 0 and sum(by == other for _, other in pairs) < 2 and len(pairs) < max_pairs:
            pairs.append((lost, by))
    return pairs


def draw_suppressed(
    image: np.ndarray, candidates: Instances, class_names: Sequence[str], max_pairs: int = 8
) -> np.ndarray:
    """
    A row for each suppressed candidate: both boxes (the suppressed one dashed), its class map, that
    of its suppressor, and in words by how much they overlap and correlate.

    Args:
        image: (H, W, 3) uint8 RGB. It is not changed.
        candidates: of the image, in its pixels, with their class maps ``odam_maps``.
        class_names: by class id.
        max_pairs: rows.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    pairs = suppressed_pairs(candidates, max_pairs)
    width = _GAP + 3 * (_CELL + _GAP) + _TEXT
    sheet = Image.new("RGB", (width, _HEAD + max(1, len(pairs)) * (_CELL + _GAP)), _BACK)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(_TITLES):
        place = (_GAP + column * (_CELL + _GAP), _HEAD // 2)
        draw.text(place, title, _SOFT, font(13), "lm")
    if not pairs:
        draw.text((_GAP, _HEAD + _CELL // 2), "nothing was suppressed", _INK, font(15), "lm")
    for row, (lost, by) in enumerate(pairs):
        top = _HEAD + row * (_CELL + _GAP)
        for column, cell in enumerate(_cells(image, candidates, lost, by)):
            sheet.paste(Image.fromarray(cell), (_GAP + column * (_CELL + _GAP), top))
        _describe(draw, (width - _TEXT, top), candidates, lost, by, class_names)
    return np.array(sheet)


def _cells(image: np.ndarray, candidates: Instances, lost: int, by: int) -> list[np.ndarray]:
    """Three pictures of the same window."""
    boxes = candidates.pred_boxes.tensor[[lost, by]].cpu().numpy()
    x1, y1, x2, y2 = crop_around(boxes[0], boxes[1].reshape(2, 2), image.shape[:2])
    scale = _CELL / max(x2 - x1, y2 - y1)
    size = (max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale)))
    picture = resize(image[y1:y2, x1:x2], size)
    boxes = (boxes - np.array([x1, y1, x1, y1])) * np.array([size[1], size[0]] * 2)
    boxes /= np.array([x2 - x1, y2 - y1] * 2)
    maps = candidates.odam_maps[[lost, by]].positive()
    heats = maps.dense(*image.shape[:2])[:, 0].detach().cpu().numpy()
    styles = [BoxStyle(boxes[0], _LOST, dashed=True), BoxStyle(boxes[1], _KEPT)]
    cells = [draw_boxes(picture, styles[::-1])]
    for heat, style in zip(heats, styles, strict=True):
        shown = blend_heat(picture, resize(heat[y1:y2, x1:x2], size), peak=heat.max())
        cells.append(draw_boxes(shown, [style]))
    return cells


def _describe(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    candidates: Instances,
    lost: int,
    by: int,
    class_names: Sequence[str],
) -> None:
    name = class_names[int(candidates.pred_classes[lost])]
    lines = [
        (f"{name} {float(candidates.scores[lost]):.2f}", _LOST, True),
        ("was suppressed by", _SOFT, False),
        (f"{name} {float(candidates.scores[by]):.2f}", _KEPT, True),
        ("", _INK, False),
        (f"IoU of the boxes  {float(candidates.suppressed_iou[lost]):.2f}", _INK, False),
        (f"correlation of the maps  {float(candidates.suppressed_correlation[lost]):.2f}",
         _INK, False),
    ]  # fmt: skip
    for number, (text, color, bold) in enumerate(lines):
        face = font(14, bold=bold)
        place = (corner[0] + 6, corner[1] + 22 + 24 * number)
        draw.text(place, fit_text(text, face, _TEXT - 12), color, face, "lm")

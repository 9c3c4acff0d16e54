"""Which object does each detection mean? Maps of overlapping detections in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from PIL import Image, ImageDraw
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from odam_d2.core.heatmap import normalize

from .canvas import resize
from .crops import crop_around
from .panels import BoxStyle, draw_boxes
from .text import Color, fit_text, font

__all__ = ["COLORS", "draw_discrimination", "draw_groups", "overlapping_groups"]

# After Okabe and Ito, for colour-blind eyes; brighter, because maps are light on a dark picture.
COLORS: tuple[Color, ...] = (
    (240, 165, 0), (86, 180, 233), (0, 205, 140), (245, 232, 80),
    (70, 130, 255), (245, 95, 45), (235, 105, 165), (235, 235, 235),
)  # fmt: skip
"""Of the members of a group; no more of them are shown than there are colours."""

_BACK: Color = (17, 20, 26)
_INK: Color = (235, 238, 242)
_DARK: Color = (17, 20, 26)
_SOFT: Color = (150, 158, 170)
_PICTURE, _GAP, _SQUARE, _CHIP, _TEXT = 420, 14, 50, 26, 250  # pixels
_TITLE, _LINE = 22, 26  # pixels: of the line above the matrix, of those below it
_DIM = 0.42  # of the grey picture that is left under the maps
_GLOW = 0.85  # of a colour at a map's peak


def overlapping_groups(boxes: Tensor, iou_thresh: float) -> list[Tensor]:
    """
    Detections that overlap, directly or through others.

    Args:
        boxes: (N, 4) XYXY, the best detection first.
        iou_thresh: two boxes overlap where their IoU is above this; in [0, 1).

    Returns:
        Groups of two or more rows of ``boxes``, in increasing order; those of more members first,
        of equally many that with the best detection.
    """
    if not len(boxes):
        return []
    overlaps = pairwise_iou(Boxes(boxes), Boxes(boxes)) > iou_thresh
    _, labels = connected_components(overlaps.cpu().numpy(), directed=False)
    members = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    groups = [rows for rows in members if len(rows) > 1]
    groups.sort(key=lambda rows: (-len(rows), rows))
    return [torch.tensor(rows, device=boxes.device) for rows in groups]


def draw_groups(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    iou_thresh: float,
    max_groups: int = 4,
) -> np.ndarray | None:
    """
    :func:`draw_discrimination` of each group of :func:`overlapping_groups`, one below the other,
    where each detection has the number that it has among all; None where no detections overlap.

    Args:
        max_groups: groups; it is said how many more there are.
    """
    groups = overlapping_groups(instances.pred_boxes.tensor, iou_thresh)
    if not groups:
        return None
    drawn = [
        draw_discrimination(image, instances[rows], class_names, numbers=rows.tolist())
        for rows in groups[:max_groups]
    ]
    height, width = sum(x.shape[0] for x in drawn), max(x.shape[1] for x in drawn)
    more = len(groups) - len(drawn)
    sheet = Image.new("RGB", (width, height + (_LINE if more else 0)), _BACK)
    top = 0
    for panel in drawn:
        sheet.paste(Image.fromarray(panel), (0, top))
        top += panel.shape[0]
    if more:
        text = f"and {more} more group{'s' if more > 1 else ''}, not shown"
        ImageDraw.Draw(sheet).text((_GAP, top), text, _SOFT, font(12), "la")
    return np.array(sheet)


def draw_discrimination(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    target: str | None = None,
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """
    The maps of a group of detections, of signed ones what is above zero, each in a colour of its
    own, over one picture; and beside it how far each two of them correlate
    (:meth:`odam_d2.OdamMaps.similarity`).

    Where maps overlap their colours add up. Only the best of more detections than there are
    :data:`COLORS` are shown, and that is said.

    Args:
        image: (H, W, 3) uint8 RGB. It is not changed.
        instances: of the group, in pixels of ``image``, with ``odam_maps``.
        class_names: by class id.
        target: whose maps; by default ``class``, or the first one where that was not explained.
        numbers: by which the picture calls the detections; by default 0, 1, ...

    Returns:
        (h, w, 3) uint8 RGB.
    """
    best = instances.scores.argsort(descending=True, stable=True)[: len(COLORS)]
    left_out = len(instances) - len(best)
    names = [str(row if numbers is None else numbers[row]) for row in best.tolist()]
    instances = instances[best]
    maps = instances.odam_maps
    target = target or ("class" if "class" in maps.targets else maps.targets[0])
    maps = maps.select(target).positive().detach()
    heats = normalize(maps.dense(*image.shape[:2])[:, 0]).cpu().float().numpy()
    lines = []
    for row, heat in enumerate(heats):
        score = f" {float(instances.scores[row]):.2f}"
        ending = score if heat.max(initial=0) > 0 else score + " · no positive evidence"
        lines.append((class_names[int(instances.pred_classes[row])], ending))
    beside = _table(maps.similarity(target).cpu().float().numpy(), target, names, lines, left_out)
    boxes = instances.pred_boxes.tensor.cpu().numpy()
    picture = _tinted(image, heats, boxes, names, max(_PICTURE, beside.height))
    width, height = picture.shape[1] + beside.width + 3 * _GAP, max(picture.shape[0], beside.height)
    sheet = Image.new("RGB", (width, height + 2 * _GAP), _BACK)
    sheet.paste(Image.fromarray(picture), (_GAP, _GAP))
    sheet.paste(beside, (picture.shape[1] + 2 * _GAP, _GAP))
    return np.array(sheet)


def _tinted(
    image: np.ndarray, heats: np.ndarray, boxes: np.ndarray, names: Sequence[str], longer: int
) -> np.ndarray:
    """
    The part of the picture that shows the boxes (N, 4), with maps (N, H, W) in their colours; its
    longer side has ``longer`` pixels.
    """
    x1, y1, x2, y2 = crop_around(boxes[0], boxes.reshape(-1, 2), image.shape[:2])
    scale = longer / max(x2 - x1, y2 - y1)
    size = (max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale)))
    grey = resize(image[y1:y2, x1:x2], size).mean(axis=2, keepdims=True)
    glow = np.repeat(_DIM * grey, 3, axis=2)
    for heat, color in zip(heats, COLORS, strict=False):
        glow += _GLOW * resize(heat[y1:y2, x1:x2], size)[..., None] * np.array(color)
    picture = np.rint(np.clip(glow, 0, 255)).astype(np.uint8)
    factor = np.array([size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2)
    places = (boxes - np.array([x1, y1, x1, y1])) * factor
    styles = [BoxStyle(box, color) for box, color in zip(places, COLORS, strict=False)]
    out = Image.fromarray(draw_boxes(picture, styles[::-1]))
    draw = ImageDraw.Draw(out)
    for row, centre in enumerate(_free_places(places[:, :2], size)):
        _draw_chip(draw, centre, names[row], row)
    return np.array(out)


def _free_places(corners: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """
    Centres (x, y) of number chips near the upper left corners (N, 2) of boxes, inside a picture
    (height, width): along the upper side rather than below it, and not on one another.
    """
    half = _CHIP // 2
    x, y = (np.arange(half, max(side - half, half + 1), 2) for side in size[::-1])
    x, y = x[None], y[:, None]
    free = np.ones((y.size, x.size), bool)
    centres = []
    for left, top in corners + half:
        right = x - left
        cost = np.where(right < 0, -3 * right, right) + 2 * abs(y - top)
        row, column = np.unravel_index(np.where(free, cost, np.inf).argmin(), cost.shape)
        u, v = int(x[0, column]), int(y[row, 0])
        centres.append((u, v))
        free &= (abs(x - u) >= _CHIP) | (abs(y - v) >= _CHIP)
    return centres


def _draw_chip(draw: ImageDraw.ImageDraw, centre: tuple[float, float], name: str, row: int) -> None:
    """The number of a detection in its colour."""
    (x, y), face = centre, font(12, bold=True)
    half = max(9, 2 + face.getlength(name) / 2)
    draw.rectangle((x - half, y - 9, x + half, y + 9), fill=COLORS[row], outline=_DARK)
    draw.text((x, y), name, _DARK, face, "mm")


def _table(
    correlation: np.ndarray,
    target: str,
    names: Sequence[str],
    lines: Sequence[tuple[str, str]],
    left_out: int,
) -> Image.Image:
    """The matrix with its title above, and below a line for each detection: class, then score."""
    matrix = _CHIP + 8 + len(names) * _SQUARE
    width, top = max(matrix, _TEXT), _TITLE + matrix + 4
    height = top + _LINE * (len(names) + (left_out > 0))
    table = Image.new("RGB", (width, height), _BACK)
    draw = ImageDraw.Draw(table)
    title = fit_text(f"correlation of the {target} maps", font(12), width)
    draw.text((0, 0), title, _SOFT, font(12), "la")
    _draw_matrix(draw, _TITLE, correlation, names)
    for row, (name, ending) in enumerate(lines):
        middle = top + _LINE * row + _LINE // 2
        _draw_chip(draw, (_CHIP // 2, middle), names[row], row)
        room = width - _CHIP - 8 - font(13).getlength(ending)
        text = fit_text(name, font(13), room) + ending  # of a long name the score remains
        draw.text((_CHIP + 6, middle), text, _INK, font(13), "lm")
    if left_out > 0:
        place = (0, height - _LINE // 2)
        draw.text(place, f"and {left_out} more, not shown", _SOFT, font(12), "lm")
    return table


def _draw_matrix(
    draw: ImageDraw.ImageDraw, top: int, correlation: np.ndarray, names: Sequence[str]
) -> None:
    """Squares, the lighter the more two maps correlate, with the numbers in them."""
    start = _CHIP + 4
    for row in range(len(correlation)):
        middle = start + row * _SQUARE + _SQUARE // 2
        _draw_chip(draw, (_CHIP // 2, top + middle), names[row], row)
        _draw_chip(draw, (middle, top + _CHIP // 2), names[row], row)
        for column in range(len(correlation)):
            value = float(correlation[row, column])
            x, y = start + column * _SQUARE, top + start + row * _SQUARE
            shade = tuple(round(28 + 200 * value) for _ in range(3))
            draw.rectangle((x, y, x + _SQUARE - 3, y + _SQUARE - 3), fill=shade)
            ink = _DARK if value > 0.45 else _INK
            place = (x + _SQUARE // 2 - 1, y + _SQUARE // 2 - 1)
            draw.text(place, f"{value:.2f}", ink, font(13, bold=row == column), "mm")

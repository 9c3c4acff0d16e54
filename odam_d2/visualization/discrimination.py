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
    (70, 130, 255), (245, 95, 45), (230, 130, 195), (235, 235, 235),
)  # fmt: skip
"""Of the members of a group, which has no more of them than there are colours."""

_BACK: Color = (17, 20, 26)
_INK: Color = (235, 238, 242)
_DARK: Color = (17, 20, 26)
_PICTURE, _GAP, _SQUARE, _CHIP, _TEXT = 420, 14, 50, 26, 210  # pixels
_DIM = 0.42  # of the grey picture that is left under the maps
_GLOW = 0.85  # of a colour at a map's peak


def overlapping_groups(boxes: Tensor, iou_thresh: float) -> list[list[int]]:
    """
    Detections that overlap, directly or through others.

    Args:
        boxes: (N, 4) XYXY, the best detection first.
        iou_thresh: two boxes overlap where their IoU is above this; in [0, 1).

    Returns:
        Groups of two or more rows, in increasing order; those of more members first.
    """
    if not len(boxes):
        return []
    overlaps = pairwise_iou(Boxes(boxes), Boxes(boxes)) > iou_thresh
    _, labels = connected_components(overlaps.cpu().numpy(), directed=False)
    members = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    groups = [rows for rows in members if len(rows) > 1]
    return sorted(groups, key=lambda rows: (-len(rows), rows))


def draw_groups(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    iou_thresh: float,
    most: int = 4,
) -> np.ndarray | None:
    """
    :func:`draw_discrimination` of each group of :func:`overlapping_groups`, one below the other;
    None where no detections overlap.

    Args:
        most: groups.
    """
    groups = overlapping_groups(instances.pred_boxes.tensor, iou_thresh)[:most]
    if not groups:
        return None
    drawn = [draw_discrimination(image, instances[rows], class_names) for rows in groups]
    size = (sum(x.shape[0] for x in drawn), max(x.shape[1] for x in drawn), 3)
    sheet = np.full(size, _BACK, np.uint8)
    top = 0
    for panel in drawn:
        sheet[top : top + panel.shape[0], : panel.shape[1]] = panel
        top += panel.shape[0]
    return sheet


def draw_discrimination(
    image: np.ndarray, instances: Instances, class_names: Sequence[str]
) -> np.ndarray:
    """
    The maps of a group of detections, each in a colour of its own, over one picture; and beside it
    how far each two of them correlate (:meth:`odam_d2.OdamMaps.similarity`).

    Where maps overlap their colours add up. Only the first of more detections than there are
    :data:`COLORS` are shown, and that is said.

    Args:
        image: (H, W, 3) uint8 RGB. It is not changed.
        instances: of the group, in pixels of ``image``, with ``odam_maps``, best first. Shown is
            the target ``class``, or the first one where that was not explained.
        class_names: by class id.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    left_out = len(instances) - len(COLORS)
    instances = instances[: len(COLORS)]
    maps = instances.odam_maps
    target = "class" if "class" in maps.targets else maps.targets[0]
    heats = normalize(maps.select(target).dense(*image.shape[:2])[:, 0]).cpu().float().numpy()
    picture = _tinted(image, heats, instances.pred_boxes.tensor.cpu().numpy())
    count = len(instances)
    matrix = _CHIP + 8 + count * _SQUARE
    side = max(matrix, _TEXT)
    height = max(picture.shape[0], matrix + 40 + 26 * (count + (left_out > 0)))
    sheet = Image.new("RGB", (picture.shape[1] + side + 3 * _GAP, height + 2 * _GAP), _BACK)
    sheet.paste(Image.fromarray(picture), (_GAP, _GAP))
    draw = ImageDraw.Draw(sheet)
    corner = (picture.shape[1] + 2 * _GAP, _GAP)
    draw.text(corner, f"correlation of the {target} maps", (150, 158, 170), font(12), "la")
    correlation = torch.as_tensor(maps.similarity(target)).detach().cpu().numpy()
    _draw_matrix(draw, (corner[0], corner[1] + 22), correlation)
    top = corner[1] + 22 + matrix + 14
    for row in range(count):
        name = class_names[int(instances.pred_classes[row])]
        empty = "" if heats[row].max() > 0 else " · no positive evidence"
        text = f"{name} {float(instances.scores[row]):.2f}{empty}"
        _draw_chip(draw, (corner[0] + _CHIP // 2, top + 26 * row + 10), row)
        face = font(13)
        text = fit_text(text, face, side - _CHIP - 8)
        draw.text((corner[0] + _CHIP + 6, top + 26 * row + 10), text, _INK, face, "lm")
    if left_out > 0:
        text = f"and {left_out} more, not shown"
        draw.text((corner[0], top + 26 * count + 10), text, (150, 158, 170), font(12), "lm")
    return np.array(sheet)


def _tinted(image: np.ndarray, heats: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The part of the picture that shows the boxes (N, 4), with maps (N, H, W) in their colours."""
    x1, y1, x2, y2 = crop_around(boxes[0], boxes.reshape(-1, 2), image.shape[:2])
    scale = _PICTURE / max(x2 - x1, y2 - y1)
    size = (max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale)))
    grey = resize(image[y1:y2, x1:x2], size).mean(axis=2, keepdims=True)
    glow = np.repeat(_DIM * grey, 3, axis=2)
    for heat, color in zip(heats, COLORS, strict=False):
        value = resize(heat[y1:y2, x1:x2], size)[..., None]
        # Each map takes the picture's place as far as it is hot, then its colour adds to others'.
        glow += _GLOW * value * np.array(color)
    picture = np.rint(np.clip(glow, 0, 255)).astype(np.uint8)
    factor = np.array([size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2)
    places = (boxes - np.array([x1, y1, x1, y1])) * factor
    styles = [BoxStyle(box, color) for box, color in zip(places, COLORS, strict=False)]
    out = Image.fromarray(draw_boxes(picture, styles[::-1]))
    draw = ImageDraw.Draw(out)
    taken: list[tuple[float, float]] = []
    for row, (left, top, right, _) in enumerate(places):
        x, y = left + _CHIP / 2, top + _CHIP / 2
        while any(abs(x - u) < _CHIP and abs(y - v) < _CHIP for u, v in taken):
            x += _CHIP  # along the upper side, then down
            if x > right:
                x, y = left + _CHIP / 2, y + _CHIP
        limits = (out.width - _CHIP / 2 - 1, out.height - _CHIP / 2 - 1)
        x, y = (min(max(v, _CHIP / 2), limit) for v, limit in zip((x, y), limits, strict=True))
        taken.append((x, y))
        _draw_chip(draw, (x, y), row)
    return np.array(out)


def _draw_chip(draw: ImageDraw.ImageDraw, centre: tuple[float, float], row: int) -> None:
    """The number of a detection in its colour."""
    x, y = centre
    half = 9
    draw.rectangle((x - half, y - half, x + half, y + half), fill=COLORS[row], outline=_DARK)
    draw.text((x, y), str(row + 1), _DARK, font(12, bold=True), "mm")


def _draw_matrix(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], correlation: np.ndarray
) -> None:
    """Squares, the lighter the more two maps correlate, with the numbers in them."""
    left, top = corner
    start = _CHIP + 4
    for row in range(len(correlation)):
        middle = start + row * _SQUARE + _SQUARE // 2
        _draw_chip(draw, (left + _CHIP // 2, top + middle), row)
        _draw_chip(draw, (left + middle, top + _CHIP // 2), row)
        for column in range(len(correlation)):
            value = float(correlation[row, column])
            x, y = left + start + column * _SQUARE, top + start + row * _SQUARE
            shade = tuple(round(28 + 200 * value) for _ in range(3))
            draw.rectangle((x, y, x + _SQUARE - 3, y + _SQUARE - 3), fill=shade)
            ink = _DARK if value > 0.45 else _INK
            place = (x + _SQUARE // 2 - 1, y + _SQUARE // 2 - 1)
            draw.text(place, f"{value:.2f}", ink, font(13, bold=row == column), "mm")

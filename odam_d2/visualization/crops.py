"""
Crops around one detection, at the size of a contact sheet's cell.

Frames: ``image`` pixels are those that the detection's box refers to; ``cell`` pixels are those of
the crop after it was enlarged or reduced. Both are continuous, (x, y), pixel centres at .5.
"""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw
from torch import Tensor

from odam_d2.structures import OdamMaps
from odam_d2.structures.heat_colors import blend_heat, has_evidence, no_evidence

from .canvas import resize
from .overlay import (
    SATURATED,
    draw_box,
    explained_side,
)
from .overview import detection_color
from .text import fit_text, font

__all__ = ["crop_around", "draw_crop_rows", "draw_crops"]

_MARGIN = 0.2  # around what a crop must show, as a share of its longer extent
_MIN_SIDE = 24  # image pixels: enlarging fewer shows nothing
_LINE_WIDTH = 2  # cell pixels


def draw_crops(
    image: np.ndarray, instance: Instances, number: int, cell: int
) -> dict[str, np.ndarray]:
    """:func:`draw_crop_rows` of the detection's ``odam_maps``."""
    return draw_crop_rows(image, instance, number, cell, [instance.odam_maps])[0]


def draw_crop_rows(
    image: np.ndarray, instance: Instances, number: int, cell: int, sets: Sequence[OdamMaps]
) -> list[dict[str, np.ndarray]]:
    """
    The pictures of one detection, all of the same window and scale.

    Args:
        image: (H, W, 3) uint8 RGB. It is not changed.
        instance: a single detection in pixels of ``image``.
        number: of the detection, for the colour of its box.
        cell: longer side of a crop in pixels.
        sets: its maps, made in one way or in several.

    Returns:
        For each set (h, w, 3) uint8 RGB pictures: "" is the plain crop with the box, the others are
        named by target.
    """
    box = instance.pred_boxes.tensor[0].tolist()
    heats = [maps.dense(*image.shape[:2])[0].detach().cpu().float() for maps in sets]
    peaks = np.concatenate([_peaks(of_set) for of_set in heats])
    x1, y1, x2, y2 = crop_around(box, peaks, image.shape[:2])
    scale = cell / max(x2 - x1, y2 - y1)
    size = (max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale)))
    picture = resize(image[y1:y2, x1:x2], size)
    factor = np.array([size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2)
    box = (np.array(box) - (x1, y1, x1, y1)) * factor
    plain = draw_box(picture, box, color=detection_color(number), width=_LINE_WIDTH)
    rows = []
    for maps, of_set in zip(sets, heats, strict=True):
        row = {"": plain}
        parts = zip(maps.targets, of_set.numpy(), maps.saturated[0].tolist(), strict=True)
        for target, heat, lost in parts:
            part, peak = resize(heat[y1:y2, x1:x2], size), abs(heat).max()
            shown = blend_heat(picture, part, peak, signed=maps.signed)
            shown = draw_box(shown, box, side=explained_side(target), width=_LINE_WIDTH)
            row[target] = _with_words(shown, has_evidence(heat, maps.signed), lost, maps.signed)
        rows.append(row)
    return rows


def _with_words(picture: np.ndarray, evidence: bool, lost: bool, signed: bool) -> np.ndarray:
    """The picture of a map, and words where it shows nothing or is lost."""
    if lost:
        return _note(picture, SATURATED, below=evidence)
    return picture if evidence else _note(picture, no_evidence(signed))


def crop_around(
    box: Sequence[float], points: np.ndarray, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """
    A window of whole pixels that shows a box and points with a margin: a square, or less where
    the image ends.

    Args:
        box: (x1, y1, x2, y2) in image pixels.
        points: (M, 2) as (x, y) in image pixels.
        size: (height, width) of the image.

    Returns:
        (x1, y1, x2, y2), inside the image, x2 and y2 exclusive.
    """
    limits = np.array([size[1], size[0]])
    shown = np.concatenate([np.reshape(box, (2, 2)), np.reshape(points, (-1, 2))]).clip(0, limits)
    low, high = shown.min(axis=0), shown.max(axis=0)
    side = max(math.ceil((1 + 2 * _MARGIN) * (high - low).max()), _MIN_SIDE)
    lengths = np.minimum(side, limits)
    starts = np.rint((low + high - lengths) / 2).astype(int).clip(0, limits - lengths)
    return (*starts.tolist(), *(starts + lengths).tolist())


def _peaks(heats: Tensor) -> np.ndarray:
    """Centres (M, 2) as (x, y) of the strongest pixel of each map (T, H, W) that is not zero."""
    flat = heats.flatten(1).abs()
    index = flat.argmax(dim=1)[flat.amax(dim=1) > 0].numpy()
    width = heats.shape[-1]
    return np.stack([index % width, index // width], axis=1) + 0.5


def _note(picture: np.ndarray, text: str, below: bool = False) -> np.ndarray:
    """The picture with a line of text in its middle, or at its lower end."""
    out = Image.fromarray(picture)
    face = font(12)
    text = fit_text(text, face, out.width - 8)
    place = (out.width / 2, max(out.height / 2, out.height - 12) if below else out.height / 2)
    draw = ImageDraw.Draw(out)
    draw.text(place, text, (255, 255, 255), face, "mm", stroke_width=2, stroke_fill=(17, 20, 26))
    return np.array(out)

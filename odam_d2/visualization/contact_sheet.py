"""One picture for an image: every detection with the heat maps of all its targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from odam_d2.core.targets import SIDES
from odam_d2.structures import OdamMaps
from odam_d2.structures.heat_colors import blend_heat

from .canvas import fit_canvas, resize
from .crops import draw_crop_rows
from .overlay import ACCENT, explained_side
from .overview import detection_color, draw_detections
from .text import Color, fit_text, font

__all__ = ["contact_sheet"]

_PAPER: Color = (255, 255, 255)
_INK: Color = (24, 28, 36)
_FAINT: Color = (96, 104, 118)
_MAT: Color = (238, 240, 243)

# Pixels of the sheet.
_MARGIN, _GAP, _ROW_LABEL, _COLUMN_LABEL = 28, 8, 136, 34
_OVERVIEW_HEIGHT, _OVERVIEW_WIDTH, _LEGEND_HEIGHT, _LEGEND_WIDTH = 440, 480, 236, 380
_NUMBER_SIZE = 13

# Of maps without and with a sign: a heading, and what the ends and the middle of the scale are.
_LEGENDS = (
    ("Evidence for the score, or for the side of the box", "none", "", "strongest of the map"),
    ("Evidence for and against the score, or the side", "down, inward", "none", "up, outward"),
)


@dataclass(frozen=True)
class _Layout:
    """Where things are on a sheet, in pixels. Each detection has a row for each method."""

    cell: int
    targets: tuple[str, ...]
    detections: int
    methods: tuple[str, ...]
    overview: tuple[int, int]  # height, width

    @property
    def rows(self) -> int:
        return self.detections * len(self.methods)

    @property
    def width(self) -> int:
        table = _ROW_LABEL + (1 + len(self.targets)) * (self.cell + _GAP) - _GAP
        return 2 * _MARGIN + max(table, self.overview[1] + _MARGIN + _LEGEND_WIDTH)

    @property
    def height(self) -> int:
        if not self.rows:
            return self.table_top
        return self.corner(self.rows, 0)[1] - _GAP + _MARGIN

    @property
    def table_top(self) -> int:
        return 2 * _MARGIN + max(self.overview[0], _LEGEND_HEIGHT)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """(x, y) of a cell's top left pixel."""
        pitch = self.cell + _GAP
        top = self.table_top + _COLUMN_LABEL
        return _MARGIN + _ROW_LABEL + column * pitch, top + row * pitch


def contact_sheet(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    title: str = "",
    max_rows: int = 20,
    cell: int = 208,
    found: int | None = None,
    by_method: Mapping[str, OdamMaps] | None = None,
) -> np.ndarray:
    """
    Draw an overview with numbered boxes and, for every detection, a row of crops: the picture
    itself, then the heat map of each target. A row has one scale and shows the surroundings of its
    box and the peaks of its maps.

    Args:
        image: (H, W, 3) uint8 RGB. It is not changed.
        instances: N detections in pixels of ``image``, the best first, with ``pred_boxes``,
            ``scores``, ``pred_classes`` and ``odam_maps``.
        class_names: name of each class index.
        title: such as the file's name.
        max_rows: detections beyond that many are in the overview only.
        cell: longest side of a crop in pixels.
        found: how many detections there were, where ``instances`` are the best of more.
        by_method: maps of these detections and the same targets by the name of what made them, each
            of which gets a row of its own; None for ``odam_maps`` alone.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    by_method = by_method or {"": instances.odam_maps}
    targets = instances.odam_maps.targets
    table = _ROW_LABEL + (1 + len(targets)) * (cell + _GAP) - _GAP
    room = max(table - _MARGIN - _LEGEND_WIDTH, _OVERVIEW_WIDTH)
    overview = _draw_overview(image, instances, (_OVERVIEW_HEIGHT, room))
    count = min(len(instances), max_rows)
    layout = _Layout(cell, targets, count, tuple(by_method), overview.shape[:2])
    paper = Image.new("RGB", (layout.width, layout.height), _PAPER)
    paper.paste(Image.fromarray(overview), (_MARGIN, _MARGIN))
    found = len(instances) if found is None else found
    signed = instances.odam_maps.signed
    _write_legend(paper, layout, title, image.shape[:2], found, signed)
    if layout.rows:
        _write_column_labels(paper, layout)
    picture, scaled = fit_canvas(image, instances)
    for number in range(count):
        _write_row_label(paper, layout, number, instances[number], class_names)
        sets = [maps[number] for maps in by_method.values()]
        rows = draw_crop_rows(picture, scaled[number], number, cell, sets)
        for place, crops in enumerate(rows):
            row = number * len(sets) + place
            for column, (target, crop) in enumerate(crops.items()):
                if place == 0 or target:  # the detection itself once
                    _paste_crop(paper, layout.corner(row, column), cell, crop)
    return np.array(paper)


def _draw_overview(image: np.ndarray, instances: Instances, room: tuple[int, int]) -> np.ndarray:
    """The image, at most ``room`` (height, width) pixels large, with numbered boxes."""
    height, width = image.shape[:2]
    scale = min(room[0] / height, room[1] / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    boxes = instances.pred_boxes.tensor.cpu().numpy()
    boxes = boxes * np.array([size[1] / width, size[0] / height] * 2)
    return draw_detections(resize(image, size), boxes.tolist(), _NUMBER_SIZE)


def _paste_crop(paper: Image.Image, corner: tuple[int, int], cell: int, crop: np.ndarray) -> None:
    """Put a crop in the middle of its cell."""
    x, y = corner
    ImageDraw.Draw(paper).rectangle((x, y, x + cell - 1, y + cell - 1), fill=_MAT)
    height, width = crop.shape[:2]
    paper.paste(Image.fromarray(crop), (x + (cell - width) // 2, y + (cell - height) // 2))


def _write_legend(
    paper: Image.Image,
    layout: _Layout,
    title: str,
    size: tuple[int, int],
    count: int,
    signed: bool,
) -> None:
    """Title, counts and the colour bar, right of the overview."""
    draw = ImageDraw.Draw(paper)
    x, y = 2 * _MARGIN + layout.overview[1], _MARGIN
    width = layout.width - _MARGIN - x
    draw.text((x, y), fit_text(title, font(22, True), width), _INK, font(22, True))
    shown = f"{count or 'no'} detection{'' if count == 1 else 's'}"
    if layout.detections < count:
        shown = f"the best {layout.detections} of {shown}"
    draw.text((x, y + 36), f"{size[1]} × {size[0]} pixels · {shown}", _FAINT, font(14))
    if not layout.rows:
        return
    y += 84
    heading, low, middle, high = _LEGENDS[signed]
    draw.text((x, y), fit_text(heading, font(14), width), _INK, font(14))
    bar = min(width, 320)
    ramp = np.tile(np.linspace(-1 if signed else 0, 1, bar, dtype=np.float32), (18, 1))
    strip = blend_heat(np.full((18, bar, 3), 190, np.uint8), ramp, signed=signed)
    paper.paste(Image.fromarray(strip), (x, y + 26))
    draw.text((x, y + 50), low, _FAINT, font(12))
    draw.text((x + bar // 2, y + 50), middle, _FAINT, font(12), anchor="ma")
    draw.text((x + bar, y + 50), high, _FAINT, font(12), anchor="ra")
    if any(side in layout.targets for side in SIDES):
        draw.rectangle((x, y + 88, x + 40, y + 94), ACCENT, _INK)
        draw.text((x + 52, y + 91), "the side that is explained", _INK, font(14), anchor="lm")
    notes = "Every map is scaled to its own maximum" + (" in size." if signed else ".")
    draw.text((x, y + 116), notes, _FAINT, font(12))


def _write_column_labels(paper: Image.Image, layout: _Layout) -> None:
    draw = ImageDraw.Draw(paper)
    for column, target in enumerate(("", *layout.targets)):
        x, y = layout.corner(0, column)
        text = f"{target} side" if explained_side(target) else target or "detection"
        text = fit_text(text, font(15, True), layout.cell)
        draw.text((x, y - 10), text, _INK, font(15, True), anchor="ls")


def _write_row_label(
    paper: Image.Image,
    layout: _Layout,
    number: int,
    instance: Instances,
    class_names: Sequence[str],
) -> None:
    """Number, class, score and size of a detection, and the methods, left of its rows."""
    draw = ImageDraw.Draw(paper)
    first = number * len(layout.methods)
    x, y = _MARGIN, layout.corner(first, 0)[1]
    width = _ROW_LABEL - 12
    chip = round(font(15, True).getlength(str(number))) + 14
    draw.rectangle((x, y, x + chip - 1, y + 23), detection_color(number))
    draw.text((x + chip / 2, y + 12), str(number), (17, 20, 26), font(15, True), anchor="mm")
    name = fit_text(class_names[int(instance.pred_classes)], font(15, True), width)
    draw.text((x, y + 36), name, _INK, font(15, True))
    draw.text((x, y + 60), f"score {float(instance.scores):.2f}", _INK, font(14))
    box = instance.pred_boxes.tensor[0].tolist()
    extent = f"{box[2] - box[0]:.0f} × {box[3] - box[1]:.0f} px"
    draw.text((x, y + 82), fit_text(extent, font(12), width), _FAINT, font(12))
    for row, method in enumerate(layout.methods, start=first):
        bottom = layout.corner(row, 0)[1] + layout.cell
        text = fit_text(method and f"by {method}", font(14, True), width)
        draw.text((x, bottom - 4), text, _INK, font(14, True), anchor="ls")

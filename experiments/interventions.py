"""
Interventions as pictures: a map, what is removed at its peak, and what the detector says then.

Of each object two decisions are shown: its class, and the side that the true part moves the most.
What is removed has the shape of the true part (see ``odam_d2/evaluation/causal_recovery.py``), what
is told is read at the same anchor or proposal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image, ImageDraw
from torch import Tensor, nn

from odam_d2 import explain
from odam_d2.core.perturbation import ranking
from odam_d2.core.targets import DEFAULT_TARGETS, SIDES
from odam_d2.data.mapper import PictureMapper
from odam_d2.errors import UserError
from odam_d2.evaluation.found_objects import found_objects
from odam_d2.evaluation.known_causes import has_known_causes
from odam_d2.evaluation.regions import true_objects
from odam_d2.evaluation.removal import Patch, Removal
from odam_d2.modeling.attribution import preset_names
from odam_d2.modeling.rereading import Rereading, rereading
from odam_d2.visualization.canvas import resize
from odam_d2.visualization.crops import crop_around
from odam_d2.visualization.overlay import blend_heat, draw_box, explained_side
from odam_d2.visualization.text import font

__all__ = ["Intervention", "draw", "interventions"]

_SCORE, _IOU = 0.5, 0.5  # from which an object counts as found
_FILL = "inpaint"

# Pixels of the picture that is drawn.
_CELL, _GAP, _TEXT, _LABEL = 116, 5, 17, 116
_INK, _PAPER = (29, 36, 44), (255, 255, 255)


@dataclass(frozen=True)
class Intervention:
    """
    Attributes:
        target: what was explained.
        box: of the detection.
        heat: (H, W), the map; None for the true part.
        mask: (H, W) of bool, what was removed.
        removed: (H, W, 3) uint8 RGB, the image without it.
        said: what the detector says of the target then.
    """

    target: str
    box: list[float]
    heat: np.ndarray | None
    mask: np.ndarray
    removed: np.ndarray
    said: str


def interventions(
    cfg: CfgNode, model: nn.Module, methods: Sequence[str], count: int
) -> Iterator[tuple[np.ndarray, dict[str, list[Intervention]]]]:
    """
    Of the best scored object that is found, and wholly seen, in each of the first images that have
    one: the image (H, W, 3), and by method what was done.

    Args:
        cfg: of the detector; of the first data set, whose parts are annotated.
        methods: names of methods and presets.
        count: of objects.
    """
    name = cfg.DATASETS.TEST[0]
    if not has_known_causes(name):
        raise UserError(f"data set {name!r} has no part_segmentations, so no true parts to remove")
    mapper = PictureMapper(cfg, False)
    for entry in DatasetCatalog.get(name):
        given = mapper(entry)
        with torch.no_grad():
            (plain,) = explain(model, [given], ["class"], method="box_blob")
        pairs = found_objects(entry, plain["instances"], _SCORE, _IOU, 1)
        if count and pairs:
            count -= 1
            yield _of_object(model, given, true_objects(entry)[pairs[0][1]], pairs[0][0], methods)
        if not count:
            return
    raise UserError(f"{count} objects fewer than asked for are found in data set {name!r}")


def _of_object(
    model: nn.Module, given: dict, annotation: Mapping, detection: int, methods: Sequence[str]
) -> tuple[np.ndarray, dict[str, list[Intervention]]]:
    removal = Removal(given["image"])
    patches = {
        target: patch
        for target in DEFAULT_TARGETS
        if (patch := Patch.of_part(_decoded(annotation, target), removal.size)) is not None
    }
    maps = {method: _map_of(model, given, detection, method) for method in methods}
    with rereading(model, given, DEFAULT_TARGETS, getattr(model, "odam", None)) as again:
        box = again.found.pred_boxes.tensor[detection].tolist()
        see = _Reader(again, removal, detection, box)
        true = {t: see(t, patch.at(patch.centre, removal.size)) for t, patch in patches.items()}
        side = max(true.keys() & set(SIDES), key=lambda target: (true[target][1], target))
        found = {"the true part": [true[target][0] for target in ("class", side)]}
        for method, heats in maps.items():
            of_method = []
            for target in ("class", side):
                heat = heats[DEFAULT_TARGETS.index(target)]
                order = ranking(heat, torch.Generator().manual_seed(0))
                place = divmod(int(order[0]), removal.size[1])
                mask = patches[target].at(place, removal.size)
                of_method.append(see(target, mask, heat)[0])
            found[method] = of_method
    return see.picture, found


def _decoded(annotation: Mapping, target: str) -> np.ndarray:
    return mask_utils.decode(annotation["part_segmentations"][target])


def _map_of(model: nn.Module, given: dict, detection: int, method: str) -> Tensor:
    """(T, H, W) of one detection."""
    chosen = {"preset" if method in preset_names() else "method": method}
    (output,) = explain(model, [given], DEFAULT_TARGETS, signed=False, **chosen)
    maps = output["instances"][detection].odam_maps
    return maps.dense(*given["image"].shape[-2:])[0].cpu()


class _Reader:
    """Removes pixels and asks the detector again."""

    def __init__(self, again: Rereading, removal: Removal, detection: int, box: list[float]):
        self.again, self.removal, self.detection, self.box = again, removal, detection, box
        bgr = getattr(again.adapter.model, "input_format", "BGR") == "BGR"
        self.order = [2, 1, 0] if bgr else [0, 1, 2]
        self.picture = self._shown(removal.image)

    def _shown(self, image: Tensor) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return image[self.order].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

    def __call__(
        self, target: str, mask: np.ndarray, heat: Tensor | None = None
    ) -> tuple[Intervention, float]:
        """With the effect: the drop of the probability, or pixels inward."""
        image = self.removal(mask, _FILL)
        reading = self.again.read(image[None], [self.detection])
        effect = float(reading.place[0, DEFAULT_TARGETS.index(target)])
        if target == "class":
            score = float(self.again.found.scores[self.detection])
            said = f"score {score:.2f} → {max(0.0, score - effect):.2f}"
        else:
            said = f"{target} side {round(effect, 1) + 0.0:+.1f} px"  # never -0.0
        values = None if heat is None else heat.numpy()
        shown = Intervention(target, self.box, values, mask, self._shown(image), said)
        return shown, effect


def draw(
    objects: Sequence[tuple[np.ndarray, Mapping[str, Sequence[Intervention]]]],
    names: Mapping[str, str],
) -> Image.Image:
    """
    A row for each method, for each decision the map and what was removed; objects side by side.

    Args:
        objects: of :func:`interventions`.
        names: of methods, where they have others here.
    """
    methods = list(objects[0][1])
    columns = 2 * sum(len(of[methods[0]]) for _, of in objects)
    width = _LABEL + columns * (_CELL + _GAP)
    height = _TEXT + len(methods) * (_CELL + _TEXT + _GAP)
    canvas = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for row, method in enumerate(methods):
        top = _TEXT + row * (_CELL + _TEXT + _GAP)
        words = textwrap.fill(names.get(method, method), 13)
        beside = (_LABEL - 10, top + _CELL / 2)
        pen.multiline_text(beside, words, _INK, font(13, bold=True), "rm", align="right")
        left = _LABEL
        for picture, of_object in objects:
            for shown in of_object[method]:
                if not row:
                    title = "class" if shown.target == "class" else f"{shown.target} side"
                    pen.text((left + _CELL, _TEXT / 2), title, _INK, font(12, bold=True), "mm")
                for cell in _cells(picture, shown):
                    canvas.paste(Image.fromarray(cell), (left, top))
                    left += _CELL + _GAP
                below = (left - _GAP - _CELL / 2, top + _CELL + _TEXT / 2)
                pen.text(below, shown.said, _INK, font(12), "mm")
    return canvas


def _cells(picture: np.ndarray, shown: Intervention) -> Iterator[np.ndarray]:
    """The map, or the picture where there is none, and what was removed, as squares."""
    corners = np.zeros((0, 2))
    x1, y1, x2, y2 = crop_around(shown.box, corners, picture.shape[:2])
    scale = _CELL / max(x2 - x1, y2 - y1)
    size = (max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale)))
    box = ((np.array(shown.box) - (x1, y1, x1, y1)) * scale).tolist()
    window = np.s_[y1:y2, x1:x2]
    side = explained_side(shown.target)
    plain = resize(picture[window], size)
    if shown.heat is not None:
        plain = blend_heat(plain, resize(shown.heat[window], size), peak=shown.heat.max())
    mask = resize(shown.mask[window].astype(np.float32), size) > 0.5
    changed = _outlined(resize(shown.removed[window], size), mask)
    for cell in (plain, changed):
        square = np.full((_CELL, _CELL, 3), _PAPER, np.uint8)
        square[: size[0], : size[1]] = draw_box(cell, box, side=side, width=1)[:_CELL, :_CELL]
        yield square


def _outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """With a line around what was removed."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    out = picture.copy()
    out[mask & ~inner] = (255, 64, 64)
    return out

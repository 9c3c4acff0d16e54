"""
What removing a part of an image does to a detector's decisions: the part that a map points at, the
true cause, or any other.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.errors import InputError
from odam_d2.core.perturbation import ranking
from odam_d2.core.ranges import check_flag, check_number, check_one_of
from odam_d2.modeling.rereading import Reading, Rereading
from odam_d2.structures import OdamMaps

from .removal import REMOVALS, Patch, Removal

__all__ = ["CausalEffects", "CausalRecoverySettings", "ExplainedObject"]

GRID = 9
"""Places of a patch along each side of the box, among which the best one is looked for."""

_MOST = 10**9


@dataclass(frozen=True)
class CausalRecoverySettings:
    """
    Attributes:
        score_thresh, iou_thresh: of detections.
        per_image: objects of each image, the best scores first; -1 is all.
        fills: what takes the place of pixels, of :data:`odam_d2.evaluation.removal.REMOVALS`;
            areas, random places and the grid have the first one.
        areas: of the map's highest pixels that are removed, in areas of the true part.
        oracle: look for the best place also where the true parts are known.
        batch_size: changed images that the detector sees at once.
        seed: of random places, and of the order of equal pixels.
    """

    score_thresh: float = 0.1
    iou_thresh: float = 0.5
    per_image: int = -1
    fills: tuple[str, ...] = REMOVALS
    areas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    oracle: bool = False
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        prefix = "TEST.ODAM.CAUSAL_RECOVERY."
        for name in ("score_thresh", "iou_thresh"):
            check_number(prefix + name.upper(), getattr(self, name), "in [0, 1]", 0, 1)
        for name, least in (("per_image", -1), ("batch_size", 1), ("seed", -_MOST)):
            words = f"{least} or more"
            check_number(
                prefix + name.upper(), getattr(self, name), words, least, _MOST, whole=True
            )
        if not self.fills:
            raise InputError(f"{prefix}FILLS is empty; it must be one or more of {REMOVALS}")
        for fill in self.fills:
            check_one_of(prefix + "FILLS", fill, REMOVALS)
        for area in self.areas:
            words = "numbers above 0"
            check_number(prefix + "AREAS", area, words, 0, _MOST, above=True)
        check_flag(prefix + "ORACLE", self.oracle)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CausalRecoverySettings:
        """Of ``cfg.TEST.ODAM.CAUSAL_RECOVERY``."""
        node = {name.lower(): value for name, value in cfg.TEST.ODAM.CAUSAL_RECOVERY.items()}
        return cls(**node | {name: tuple(node[name] or ()) for name in ("fills", "areas")})


class ExplainedObject(NamedTuple):
    """
    Attributes:
        number: of the object in its image.
        detection: its row of the maps.
        row: its row of the rereading.
        box: (4,) XYXY in pixels of the network's input.
        patches: what is removed, by target.
        seed: of this object; the same for every map that is compared.
    """

    number: int
    detection: int
    row: int
    box: Tensor
    patches: Mapping[str, Patch]
    seed: int


class _Edit(NamedTuple):
    """One changed image: whose decisions are read, what is removed, and what is told of it."""

    row: int
    mask: np.ndarray
    fill: str
    told: dict


class CausalEffects:
    """
    Effects in one image. Each is a row: ``object``, ``target``, what was removed (``edit``, its
    ``size`` in areas of the patch, its ``fill``), the effects ``place`` and ``detection``, and
    ``lost`` and ``others``, see :class:`odam_d2.modeling.rereading.Reading`.

    Args:
        again: reads the detector's decisions.
        removal: from the image.
        names: targets that are read.
        settings: what is removed, and how often.
    """

    def __init__(
        self,
        again: Rereading,
        removal: Removal,
        names: Sequence[str],
        settings: CausalRecoverySettings,
    ):
        self.again, self.removal, self.names, self.settings = again, removal, names, settings

    def of_maps(self, objects: Sequence[ExplainedObject], maps: OdamMaps) -> list[dict]:
        """
        Of a patch at each map's peak (``"peak"``), of its highest pixels (``"area"``), and of a
        patch where a signed one has the strongest evidence against (``"against"``). A map that is
        zero everywhere points at nothing, which has no effect.
        """
        return list(self._read(self._map_edits(objects, maps)))

    def _map_edits(self, objects: Sequence[ExplainedObject], maps: OdamMaps) -> Iterator[_Edit]:
        fills, size = self.settings.fills, self.removal.size
        for this in objects:
            of_object = maps[this.detection]
            for target, patch in this.patches.items():
                if target not in maps.targets:
                    continue
                of_target = of_object.select(target)
                order = _ranked(of_target.positive(), size, this.seed)
                told = {"object": this.number, "target": target}
                mask = _at_peak(patch, order, size)
                for fill in fills:
                    yield _Edit(this.row, mask, fill, told | {"edit": "peak", "size": None})
                if maps.signed:
                    mask = _at_peak(patch, _ranked(of_target.negative(), size, this.seed), size)
                    against = told | {"edit": "against", "size": None}
                    yield _Edit(this.row, mask, fills[0], against)
                for area in self.settings.areas:
                    chosen = np.zeros(size, bool)
                    chosen.flat[order[: max(1, round(area * patch.area))]] = True
                    yield _Edit(this.row, chosen, fills[0], told | {"edit": "area", "size": area})

    def of_references(
        self, objects: Sequence[ExplainedObject], targets: Sequence[str], parts_known: bool
    ) -> list[dict]:
        """
        What maps are compared with: the true part (``"part"``), a random place of the box
        (``"random"``), and, where it is asked for or no part is known, the best place of a grid
        over the box (``"best"``, of each reading by itself).
        """
        objects = [
            this._replace(patches={t: p for t, p in this.patches.items() if t in targets})
            for this in objects
        ]
        rows: list[dict] = []
        if parts_known:
            rows += self._read(self._part_edits(objects))
        if self.settings.oracle or not parts_known:
            for this in objects:
                rows += self._of_grid(this, self.settings.fills[: 1 if parts_known else None])
        return rows

    def _part_edits(self, objects: Sequence[ExplainedObject]) -> Iterator[_Edit]:
        fills, size = self.settings.fills, self.removal.size
        for this in objects:
            generator = torch.Generator().manual_seed(this.seed)
            for target, patch in this.patches.items():
                told = {"object": this.number, "target": target, "size": None}
                for fill in fills:
                    mask = patch.at(patch.centre, size)
                    yield _Edit(this.row, mask, fill, told | {"edit": "part"})
                extent = this.box[2:] - this.box[:2]
                x, y = (this.box[:2] + torch.rand(2, generator=generator) * extent).tolist()
                mask = patch.at((int(y), int(x)), size)
                yield _Edit(this.row, mask, fills[0], told | {"edit": "random"})

    def _of_grid(self, this: ExplainedObject, fills: Sequence[str]) -> list[dict]:
        """
        Of the best of a grid of places, and the mean over all of them.

        Args:
            fills: the first one is tried everywhere, the others at the best place.
        """
        size, (x1, y1, x2, y2) = self.removal.size, this.box.tolist()
        across = itertools.product(np.linspace(y1, y2, GRID), np.linspace(x1, x2, GRID))
        places = [(int(y), int(x)) for y, x in across]
        rows: list[dict] = []
        again: list[_Edit] = []
        same: dict[int, list[str]] = {}  # patches that several targets share are read once
        for target, patch in this.patches.items():
            same.setdefault(id(patch), []).append(target)
        for targets in same.values():
            masks = [this.patches[targets[0]].at(place, size) for place in places]
            told = {"object": this.number, "size": None}
            read = list(self._readings([_Edit(this.row, mask, fills[0], told) for mask in masks]))
            for target in targets:
                at = self.names.index(target)
                found = [_row(edit, effects, at) | {"target": target} for edit, effects in read]
                best = max(range(len(found)), key=lambda k: _read_first(found[k]))
                readings = {key: [row[key] for row in found] for key in ("place", "detection")}
                highest = {key: max(values) for key, values in readings.items()}
                means = {key: statistics.fmean(values) for key, values in readings.items()}
                rows.append(found[best] | {"edit": "best"} | highest)
                rows.append(found[best] | {"edit": "anywhere"} | means)
                told_best = told | {"target": target, "edit": "best"}
                again += [_Edit(this.row, masks[best], fill, told_best) for fill in fills[1:]]
        return rows + list(self._read(again))

    def _read(self, edits: Iterable[_Edit]) -> Iterator[dict]:
        for edit, effects in self._readings(edits):
            yield _row(edit, effects, self.names.index(edit.told["target"]))

    def _readings(self, edits: Iterable[_Edit]) -> Iterator[tuple[_Edit, Reading]]:
        """Each edit with what it does, (1, T)."""
        bar = iter(tqdm(edits, "causal recovery", unit="pass", leave=False, disable=None))
        while batch := list(itertools.islice(bar, self.settings.batch_size)):
            images = torch.stack([self.removal(edit.mask, edit.fill) for edit in batch])
            reading = self.again.read(images, [edit.row for edit in batch])
            for number, edit in enumerate(batch):
                yield edit, Reading(*(values[number] for values in reading))


def _ranked(maps: OdamMaps, size: tuple[int, int], seed: int) -> np.ndarray:
    """The pixels of a single map that are not zero, which is no evidence: the highest first."""
    heat = maps.dense(*size)[0, 0].cpu()
    order = ranking(heat, torch.Generator().manual_seed(seed)).numpy()
    return order[: int((heat > 0).sum())]


def _at_peak(patch: Patch, order: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) of a patch at the first of some pixels; none without one."""
    if not len(order):
        return np.zeros(size, bool)
    return patch.at(divmod(int(order[0]), size[1]), size)


def _row(edit: _Edit, effects: Reading, target: int) -> dict:
    """
    Args:
        effects: of one image, (T,) and single flags.
        target: index of T.
    """
    return edit.told | {
        "fill": edit.fill,
        "place": float(effects.place[target]),
        "detection": float(effects.detection[target]),
        "lost": bool(effects.lost),
        "others": bool(effects.others),
    }


def _read_first(row: Mapping) -> float:
    """The effect in place, where it is known."""
    return row["detection"] if math.isnan(row["place"]) else row["place"]

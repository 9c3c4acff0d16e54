"""Similarities of maps, summed up, and the verdict on a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from odam_d2.core import bootstrap
from odam_d2.core.bootstrap import Interval
from odam_d2.core.targets import SIDES

__all__ = [
    "CASCADING",
    "INDEPENDENT",
    "MEASURES",
    "OTHER_IMAGE",
    "Similarities",
    "results",
    "summarize",
]

CASCADING, INDEPENDENT, OTHER_IMAGE = "cascading", "independent", "other_image"

MEASURES = ("spearman", "ssim")
"""Rank correlation and structural similarity; 1 is equal."""

PASSES = "passes"
UNCHANGED = "fails: does not change"
IMAGE = "fails: shows the image"

_EQUAL = 1e-6  # below one
_DRAWS = 2000  # of images, for intervals

Key = tuple[object, int, str]
"""Image, object, target."""


@dataclass(frozen=True)
class Similarities:
    """
    Of the maps of one method.

    Attributes:
        rows: ``image_id``, ``object``, ``target``, what was compared (``state``, and the number of
            its ``layer``), and each of :data:`MEASURES`.
        layers: their names, from the top down.
    """

    rows: Sequence[Mapping]
    layers: Sequence[str]

    @classmethod
    def of(cls, rows: Mapping[object, Sequence[Mapping]], layers: Sequence[str]) -> Similarities:
        """Rows by image."""
        together = [
            {"image_id": image_id, **row} for image_id, of_image in rows.items() for row in of_image
        ]
        return cls(together, layers)

    @cached_property
    def _by_state(self) -> dict[tuple, dict[Key, Mapping]]:
        found: dict[tuple, dict[Key, Mapping]] = {}
        for row in self.rows:
            key = (row["image_id"], row["object"], row["target"])
            found.setdefault((row["state"], row["layer"]), {})[key] = row
        return found

    @property
    def states(self) -> list[str]:
        """What maps were compared with, the orders of layers aside."""
        names = dict.fromkeys(row["state"] for row in self.rows)
        return [name for name in names if name not in (CASCADING, INDEPENDENT)]

    @property
    def all_layers(self) -> tuple[str, int]:
        """The state in which all layers are random."""
        return CASCADING, len(self.layers) - 1

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Targets that are averaged together: each by itself, and all sides."""
        targets = dict.fromkeys(row["target"] for row in self.rows)
        sides = tuple(side for side in SIDES if side in targets)
        together = {"sides": sides} if sides else {}
        others = {target: (target,) for target in targets if target not in SIDES}
        return others | together | {side: (side,) for side in sides}

    def objects(self, group: Sequence[str]) -> int:
        """That were compared."""
        keys = self._by_state.get(self.all_layers, {})
        return len({key[:2] for key in keys if key[2] in group})

    def mean(
        self, measure: str, group: Sequence[str], state: str, layer: int | None = None
    ) -> Interval | None:
        """None where nothing was compared."""
        return self._interval(measure, group, (state, layer))

    def more_than_place(self, measure: str, group: Sequence[str]) -> Interval | None:
        """By how much random parameters in this image are more alike than another image is."""
        return self._interval(measure, group, self.all_layers, (OTHER_IMAGE, None))

    def _interval(self, measure: str, group: Sequence[str], *states: tuple) -> Interval | None:
        """Of one state, or of the difference of two of the same decisions."""
        columns = [self._by_state.get(state, {}) for state in states]
        keys = [k for k in columns[0] if k[2] in group and all(k in column for column in columns)]
        if not keys:
            return None
        first, *second = (torch.tensor([c[key][measure] for key in keys]) for c in columns)
        images, count = bootstrap.group_numbers([key[0] for key in keys])
        each = torch.ones(len(keys))
        if second:
            return bootstrap.difference(first, second[0], each, images, _weights(count))
        return bootstrap.ratio(first, each, images, _weights(count))

    def verdict(self, group: Sequence[str]) -> str | None:
        """
        A method fails where its maps are the same when all layers are random, and where they are
        more like those of the trained detector than what the place alone gives, in any measure.
        There is none of a single image, whose figures have no interval.
        """
        for measure in MEASURES:
            alike = self.mean(measure, group, *self.all_layers)
            more = self.more_than_place(measure, group)
            if alike is None or more is None or not math.isfinite(more.low):
                return None
            if alike.high > 1 - _EQUAL:
                return UNCHANGED
            if more.low > 0:
                return IMAGE
        return PASSES


@lru_cache(maxsize=8)
def _weights(groups: int) -> Tensor:
    return bootstrap.bootstrap_weights(groups, _DRAWS)


def _described(found: Interval | None) -> dict | None:
    return None if found is None else found._asdict()


def results(found: Similarities) -> dict:
    """
    All figures of one method, for JSON: by group ``verdict``, ``objects``, and by measure the mean
    of each state (a list of the layers where they have an order), and ``more_than_place``.
    """
    groups = {}
    for group, targets in found.groups().items():
        of_group: dict = {"verdict": found.verdict(targets), "objects": found.objects(targets)}
        for measure in MEASURES:
            means: dict = {
                state: _described(found.mean(measure, targets, state)) for state in found.states
            }
            for order in (CASCADING, INDEPENDENT):
                means[order] = [
                    _described(found.mean(measure, targets, order, layer))
                    for layer in range(len(found.layers))
                ]
            more = _described(found.more_than_place(measure, targets))
            of_group[measure] = means | {"more_than_place": more}
        groups[group] = of_group
    return {"layers": list(found.layers), "groups": groups}


def summarize(found: Similarities) -> dict[str, float]:
    """The first measure of each group, by name, and whether it passes."""
    summary: dict[str, float] = {}
    measure, objects = MEASURES[0], 0
    for group, targets in found.groups().items():
        random = found.mean(measure, targets, *found.all_layers)
        place = found.mean(measure, targets, OTHER_IMAGE)
        more = found.more_than_place(measure, targets)
        if random is None or place is None or more is None:
            continue
        summary |= {
            f"{group}_all_random": random.value,
            f"{group}_other_image": place.value,
            f"{group}_more": more.value,
            f"{group}_passes": float(found.verdict(targets) == PASSES),
        }
        objects = max(objects, found.objects(targets))
    return summary | {"num_objects": objects}

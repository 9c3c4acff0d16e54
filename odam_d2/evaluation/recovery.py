"""
Causal recovery: the mean effect of removing what maps point at, divided by the mean effect of
removing the true causes of the same decisions, in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from odam_d2.core import bootstrap
from odam_d2.core.bootstrap import Interval
from odam_d2.core.targets import SIDES

__all__ = ["COMPARED", "READINGS", "Effects", "Recovery", "compare", "results", "summarize"]

READINGS = ("place", "detection")
"""At the same anchor or proposal, and in the final detection that matches best."""

COMPARED = ("side_middle", "odam")
"""Methods that others are compared with: what knows the box alone, and what is published."""

DRAWS = 2000  # of images, for intervals

Key = tuple[object, int, str]
"""Image, object, target."""


class Recovery(NamedTuple):
    """In percent, with how many decisions and objects it is of."""

    interval: Interval
    decisions: int
    objects: int

    def described(self) -> dict:
        """For JSON."""
        return {**self.interval._asdict(), "decisions": self.decisions, "objects": self.objects}


@dataclass(frozen=True)
class Effects:
    """
    What was measured with the maps of one method.

    Attributes:
        rows: of :class:`odam_d2.evaluation.causal_effects.CausalEffects`, with ``image_id``.
        fills: the first one is that of areas and references.
        areas: that were removed.
        truth: the edit that stands for the cause: ``"part"``, or ``"best"`` where none is known.
    """

    rows: Sequence[Mapping]
    fills: Sequence[str]
    areas: Sequence[float]
    truth: str

    @classmethod
    def of(
        cls,
        rows: Mapping[object, Sequence[Mapping]],
        references: Mapping[object, Sequence[Mapping]],
        fills: Sequence[str],
        areas: Sequence[float],
        parts_known: bool,
    ) -> Effects:
        """Rows and references by image."""
        together = [
            {"image_id": image_id, **row}
            for by_image in (rows, references)
            for image_id, of_image in by_image.items()
            for row in of_image
        ]
        return cls(together, fills, areas, "part" if parts_known else "best")

    @cached_property
    def _by_edit(self) -> dict[tuple, list[Mapping]]:
        found: dict[tuple, list[Mapping]] = {}
        for row in self.rows:
            found.setdefault((row["edit"], row["fill"], row["size"]), []).append(row)
        return found

    def chosen(self, edit: str, fill: str, size: float | None = None) -> list[Mapping]:
        """The rows of one kind of edit."""
        return self._by_edit.get((edit, fill, size), [])

    def column(
        self, reading: str, edit: str, fill: str, size: float | None = None
    ) -> dict[Key, float]:
        """The effects of one kind of edit, where they are known."""
        return {
            (row["image_id"], row["object"], row["target"]): row[reading]
            for row in self.chosen(edit, fill, size)
            if row[reading] is not None
        }

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Targets whose effects are averaged together: each by itself, and all sides."""
        mapped = [row["target"] for row in self.rows if row["edit"] == "peak"]
        targets = dict.fromkeys(mapped)
        sides = tuple(side for side in SIDES if side in targets)
        others = {target: (target,) for target in targets if target not in SIDES}
        together = {"sides": sides} if sides else {}
        return others | together | {side: (side,) for side in sides}

    def recovery(
        self,
        reading: str,
        group: Sequence[str],
        edit: str = "peak",
        fill: str | None = None,
        size: float | None = None,
    ) -> Recovery | None:
        """None where nothing was measured, or the causes have no effect."""
        fill = fill or self.fills[0]
        columns = [self.column(reading, edit, fill, size), self.column(reading, self.truth, fill)]
        return _recovery(columns, group)

    def ahead_of(
        self, other: Effects, reading: str, group: Sequence[str], fill: str
    ) -> Recovery | None:
        """By how much of the same decisions; ahead is who has an interval above zero."""
        peaks = [effects.column(reading, "peak", fill) for effects in (self, other)]
        return _recovery([*peaks, self.column(reading, self.truth, fill)], group)


def _recovery(columns: Sequence[Mapping[Key, float]], group: Sequence[str]) -> Recovery | None:
    """Of one column of effects by that of the causes, or the difference of two by it."""
    keys = [
        key for key in columns[-1] if key[2] in group and all(key in column for column in columns)
    ]
    *effects, causes = (torch.tensor([column[key] for key in keys]).double() for column in columns)
    if not keys or causes.sum() <= 0:
        return None
    images, count = bootstrap.group_numbers([key[0] for key in keys])
    weights = _weights(count)
    if len(effects) == 1:
        found = bootstrap.ratio(effects[0], causes, images, weights)
    else:
        found = bootstrap.difference(effects[0], effects[1], causes, images, weights)
    objects = len({key[:2] for key in keys})
    return Recovery(Interval(*(100 * number for number in found)), len(keys), objects)


@lru_cache(maxsize=8)
def _weights(groups: int) -> Tensor:
    return bootstrap.bootstrap_weights(groups, DRAWS)


def _described(found: Recovery | None) -> dict | None:
    return None if found is None else found.described()


def results(effects: Effects) -> dict:
    """
    All figures of one method, for JSON: ``recovery`` by reading, group and fill; ``areas`` by
    reading, group and area; ``references`` by what was removed instead, reading and group;
    ``against``, of signed maps, the same where evidence against a decision was removed, with the
    first fill: below zero where the decision gains by that;
    ``causes``, mean effects of these (probability, pixels); ``others_changed`` and ``lost``, shares
    of the edits, by fill, at peaks and at the causes.
    """
    groups, first = effects.groups(), effects.fills[0]

    def table(make: dict) -> dict:
        return {
            reading: {
                group: {name: _described(effects.recovery(reading, targets, **how))
                        for name, how in make.items()}
                for group, targets in groups.items()
            }
            for reading in READINGS
        }  # fmt: skip

    causes = {
        reading: {
            group: {fill: _mean(effects, reading, targets, fill) for fill in effects.fills}
            for group, targets in groups.items()
        }
        for reading in READINGS
    }
    edits = dict.fromkeys(row["edit"] for row in effects.rows)
    of_maps = ("peak", "area", "against", effects.truth)
    return {
        "truth": effects.truth,
        "recovery": table({fill: {"fill": fill} for fill in effects.fills}),
        "areas": table({f"{a:g}": {"edit": "area", "size": a} for a in effects.areas}),
        "references": table({e: {"edit": e, "fill": first} for e in edits if e not in of_maps}),
        "against": table({first: {"edit": "against"}} if "against" in edits else {}),
        "causes": causes,
        **{name: {fill: _shares(effects, field, fill) for fill in effects.fills}
           for name, field in (("others_changed", "others"), ("lost", "lost"))},
    }  # fmt: skip


def _mean(effects: Effects, reading: str, group: Sequence[str], fill: str) -> float | None:
    column = effects.column(reading, effects.truth, fill)
    values = [value for key, value in column.items() if key[2] in group]
    return sum(values) / len(values) if values else None


def _shares(effects: Effects, field: str, fill: str) -> dict[str, float]:
    """In percent, of the edits at peaks and at the causes."""
    found = {edit: effects.chosen(edit, fill) for edit in ("peak", effects.truth)}
    return {
        edit: 100 * sum(row[field] for row in rows) / len(rows)
        for edit, rows in found.items()
        if rows
    }


def compare(by_method: Mapping[str, Effects]) -> dict[str, dict]:
    """:func:`results` of each method, and ``ahead_of`` those of :data:`COMPARED`."""
    found = {}
    for method, effects in by_method.items():
        others = {name: by_method[name] for name in COMPARED if name in by_method}
        ahead = {
            name: {
                reading: {
                    group: {
                        fill: _described(effects.ahead_of(other, reading, targets, fill))
                        for fill in effects.fills
                    }
                    for group, targets in effects.groups().items()
                }
                for reading in READINGS
            }
            for name, other in others.items()
            if name != method
        }
        found[method] = {**results(effects), "ahead_of": ahead}
    return found


def summarize(effects: Effects) -> dict[str, float]:
    """Recovery at peaks with the first fill, and its interval, of each group in both readings."""
    found: dict[str, float] = {}
    objects = 0
    for reading in READINGS:
        for group, targets in effects.groups().items():
            recovery = effects.recovery(reading, targets)
            if recovery is not None:
                name = group if reading == "place" else f"{group}_{reading}"
                value, low, high = recovery.interval
                found |= {name: value, f"{name}_low": low, f"{name}_high": high}
                objects = max(objects, recovery.objects)
    return found | {"num_objects": objects}

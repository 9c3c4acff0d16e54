"""What can be explained: the names of targets, and the scalars they stand for."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["DEFAULT_TARGETS", "SIDES", "Target", "outward", "parse_targets"]

SIDES = ("left", "top", "right", "bottom")
"""The sides of a box, in the order of its XYXY coordinates."""

DEFAULT_TARGETS = ("class", *SIDES)


@dataclass(frozen=True)
class Target:
    """
    One decision of a detection.

    Attributes:
        name: as the user wrote it, such as ``"class:person"``.
        kind: ``"class"``, ``"side"`` or ``"combined"``.
        index: for a side, its place in :data:`SIDES`; for a class, the class id, or None for the
            class that each detection has.
    """

    name: str
    kind: str
    index: int | None = None


def outward(boxes: Tensor) -> Tensor:
    """
    How far each side reaches outward: left = -x1, top = -y1, right = x2, bottom = y2, in pixels.

    Args:
        boxes: (..., 4), XYXY.

    Returns:
        (..., 4), in the order of :data:`SIDES`.
    """
    return torch.cat([-boxes[..., :2], boxes[..., 2:]], dim=-1)


def parse_targets(
    targets: Sequence[str], num_classes: int, class_names: Sequence[str] | None = None
) -> tuple[Target, ...]:
    """
    Turn target names into targets.

    Args:
        targets: ``"class"``, ``"class:NAME"``, ``"class:K"`` with ``0 <= K < num_classes``, one of
            :data:`SIDES`, or ``"combined"``. Names of classes win over numbers.
        num_classes: classes of the detector, without background.
        class_names: names of the classes in the order of their ids, if known.

    Raises:
        InputError: a name is unknown, or given twice; the message lists what there is.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets:
        raise InputError("no targets to explain; give at least one, such as 'class'")
    twice = sorted({name for name in targets if targets.count(name) > 1})
    if twice:
        raise InputError(f"targets given twice: {', '.join(twice)}")
    return tuple(_parse(name, num_classes, class_names) for name in targets)


def _parse(name: str, num_classes: int, class_names: Sequence[str] | None) -> Target:
    if name in SIDES:
        return Target(name, "side", SIDES.index(name))
    if name == "combined":
        return Target(name, "combined")
    if name == "class":
        return Target(name, "class")
    kind, _, which = str(name).partition(":")
    if kind != "class":
        raise InputError(
            f"unknown target {name!r}; there are class, class:NAME, class:K, "
            f"{', '.join(SIDES)} and combined"
        )
    if class_names is not None and which in class_names:
        return Target(name, "class", list(class_names).index(which))
    if which.isdecimal() and int(which) < num_classes:
        return Target(name, "class", int(which))
    raise InputError(
        f"unknown class in target {name!r}; {_classes(which, num_classes, class_names)}"
    )


def _classes(wrong: str, num_classes: int, class_names: Sequence[str] | None) -> str:
    """The part of an error message that tells which classes there are."""
    numbers = f"classes are numbered 0 to {num_classes - 1}"
    if class_names is None:
        return f"{numbers}, and their names are not known here"
    close = difflib.get_close_matches(wrong, class_names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{numbers}, named {', '.join(class_names)}"

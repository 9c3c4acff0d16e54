"""
What can be explained of a detection: the targets, each an object that reads one scalar off what a
head decided, and the registry by which their names are understood.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import combine
from odam_d2.core.probabilities import linearised, loses_digits, rescaled
from odam_d2.core.targets import DEFAULT_TARGETS, SIDES
from odam_d2.structures import OdamMaps

from .adapters.trace import Decisions

__all__ = [
    "ClassScore",
    "Classes",
    "Combined",
    "Differentiable",
    "Side",
    "Target",
    "Targets",
    "register_target",
]


class Differentiable(NamedTuple):
    """
    One scalar of each of N detections in a form whose derivative keeps its digits.

    Attributes:
        values: (N,), what is differentiated, with a graph.
        exponents: (N,) float64: the derivative of the target is ``2 ** exponent`` times that of
            its value, see :mod:`odam_d2.core.probabilities`.
        saturated: (N,) bool, targets whose derivative is lost in rounding.
    """

    values: Tensor
    exponents: Tensor
    saturated: Tensor

    @classmethod
    def as_computed(cls, values: Tensor) -> Differentiable:
        """Values (N,) that are differentiated as they are."""
        zeros = torch.zeros_like(values, dtype=torch.float64, requires_grad=False)
        return cls(values, zeros, zeros.bool())


class Target(ABC):
    """
    One decision of a detection.

    Attributes:
        name: as the user wrote it, such as ``"class:person"``.
    """

    name: str

    @abstractmethod
    def of(self, decisions: Decisions) -> Differentiable:
        """The scalar of each of the N detections."""


@dataclass(frozen=True)
class Classes:
    """
    What names of targets refer to.

    Attributes:
        count: classes of the detector, without background.
        names: by class id, if known.
        score: ``"probability"`` or ``"logit"``, what class scores are.
    """

    count: int
    names: Sequence[str] | None = None
    score: str = "probability"


Make = Callable[[str, str, Classes], Target]

_KINDS: dict[str, Make] = {}


def register_target(*words: str) -> Callable[[Make], Make]:
    """
    Decorator of what makes a target of its name, ``make(name, argument, classes)``: for the name
    ``"class:dog"`` of the word ``"class"``, the argument is ``"dog"``; it is empty without a colon.

    Args:
        words: what names begin with, up to a colon or their end.

    Returns:
        The decorator, which gives the function back.
    """

    def register(make: Make) -> Make:
        _KINDS.update(dict.fromkeys(words, make))
        return make

    return register


@dataclass(frozen=True)
class ClassScore(Target):
    """
    The score of a class.

    Attributes:
        index: the class id; None for the class that each detection has.
        score: ``"probability"`` or ``"logit"``.
    """

    name: str = "class"
    index: int | None = None
    score: str = "probability"

    def of(self, decisions: Decisions) -> Differentiable:
        labels = decisions.classes
        if self.index is not None:
            labels = torch.full_like(labels, self.index)
        if self.score == "logit":
            if decisions.logits is None:
                raise InputError("the score 'logit' is not known of this model; use 'probability'")
            return Differentiable.as_computed(_of_class(decisions.logits, labels))
        chosen = _of_class(decisions.probabilities, labels)
        closed = decisions.closed_form and decisions.closed_form(labels)
        if closed and chosen.requires_grad:
            values, exponents = linearised(*closed)
            return Differentiable(values, exponents, torch.zeros_like(exponents, dtype=torch.bool))
        plain = Differentiable.as_computed(chosen)
        return plain._replace(saturated=loses_digits(chosen.detach()))


def _of_class(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels[:, None]).squeeze(1)


@register_target("class")
def _class_score(name: str, argument: str, classes: Classes) -> ClassScore:
    if name == "class":
        return ClassScore(name, None, classes.score)
    if classes.names is not None and argument in classes.names:
        return ClassScore(name, list(classes.names).index(argument), classes.score)
    if argument.isdecimal() and int(argument) < classes.count:
        return ClassScore(name, int(argument), classes.score)
    raise InputError(f"unknown class in target {name!r}; {_known_classes(argument, classes)}")


def _known_classes(wrong: str, classes: Classes) -> str:
    """The part of an error message that tells which classes there are."""
    numbers = f"classes are numbered 0 to {classes.count - 1}"
    if classes.names is None:
        return f"{numbers}, and their names are not known here"
    close = difflib.get_close_matches(wrong, classes.names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{numbers}, named {', '.join(classes.names)}"


@dataclass(frozen=True)
class Side(Target):
    """How far a side of the box reaches outward, in pixels of the network's input."""

    name: str

    def of(self, decisions: Decisions) -> Differentiable:
        side = decisions.boxes[:, SIDES.index(self.name)]
        return Differentiable.as_computed(-side if self.name in ("left", "top") else side)


class Combined(Target):
    """The maximum of the maps of the other targets, each normalised; no scalar of its own."""

    name = "combined"

    def of(self, decisions: Decisions) -> Differentiable:
        raise InputError("the target 'combined' is made of the maps of others")


@register_target(*SIDES, Combined.name)
def _without_argument(name: str, argument: str, classes: Classes) -> Target:
    if argument:
        raise _unknown(name)
    return Combined() if name == Combined.name else Side(name)


def _unknown(name: str) -> InputError:
    known = ["class", "class:NAME", "class:K", *(w for w in _KINDS if w != "class")]
    return InputError(f"unknown target {name!r}; there are {', '.join(known[:-1])} and {known[-1]}")


class Targets:
    """
    The targets of an explanation, in the order of the axis T.

    Attributes:
        requested: all of them.
        differentiated: those that are scalars, of which maps are made: all but ``combined``.
            ``combined`` alone is the maximum over the default targets.
    """

    def __init__(self, requested: Sequence[Target]):
        self.requested = tuple(requested)
        self.differentiated = tuple(t for t in self.requested if not isinstance(t, Combined))
        if self.requested and not self.differentiated:
            self.differentiated = Targets.named(DEFAULT_TARGETS, Classes(1)).requested

    @classmethod
    def named(cls, names: Sequence[str] | str, classes: Classes) -> Targets:
        """
        Args:
            names: ``"class"``, ``"class:NAME"``, ``"class:K"`` with ``0 <= K < classes.count``, a
                side, ``"combined"``, or what :func:`register_target` added. Names of classes win
                over numbers.

        Raises:
            InputError: a name is unknown, or given twice; the message lists what there is.
        """
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise InputError("no targets to explain; give at least one, such as 'class'")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"targets given twice: {', '.join(twice)}")
        found = []
        for name in names:
            word, _, argument = str(name).partition(":")
            if word not in _KINDS:
                raise _unknown(name)
            found.append(_KINDS[word](name, argument, classes))
        return cls(found)

    def __len__(self) -> int:
        """How many scalars are differentiated."""
        return len(self.differentiated)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.differentiated)

    @property
    def names(self) -> list[str]:
        return [target.name for target in self.requested]

    def of(self, decisions: Decisions) -> list[Differentiable]:
        """
        The scalars. Each has a graph of its own: in that of a stacked tensor, autograd would not
        see what a target does not read, and compute its zeros.
        """
        scalars = [target.of(decisions) for target in self.differentiated]
        if all(scalar.values.requires_grad for scalar in scalars):
            return scalars
        # What a head detaches has the gradient zero, as a part of what has a graph.
        values = torch.stack([scalar.values for scalar in scalars], dim=1).unbind(dim=1)
        return [
            scalar._replace(values=column) for scalar, column in zip(scalars, values, strict=True)
        ]

    def maps(
        self,
        values: Tensor,
        exponents: Tensor | None = None,
        saturated: Tensor | None = None,
        *,
        signed: bool = False,
        **geometry: Tensor,
    ) -> OdamMaps:
        """
        Name the maps, and add ``combined`` where it was asked for.

        Args:
            values: (N, T, h, w), maps of what :meth:`of` gave, in that order.
            exponents, saturated: (N, T), of the scalars.
            signed, **geometry: as for ``OdamMaps``.
        """
        maps = values
        if saturated is None:
            saturated = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
        if exponents is not None:
            maps, lost = rescaled(values, exponents)
            saturated = saturated | lost
        if self.requested != self.differentiated:
            order = {target.name: number for number, target in enumerate(self.differentiated)}
            combined = combine(values)[:, 0], saturated.any(dim=1)
            chosen = [
                combined if isinstance(target, Combined) else (maps[:, at], saturated[:, at])
                for target, at in ((t, order.get(t.name)) for t in self.requested)
            ]
            maps, saturated = (torch.stack(parts, dim=1) for parts in zip(*chosen, strict=True))
        return OdamMaps(self.names, maps, saturated=saturated, signed=signed, **geometry)

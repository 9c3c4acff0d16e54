"""What is kept of a run of a dense detector."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from odam_d2.modeling.views import Call

from .anchors import Anchors
from .head import Recording
from .towers import Derivative

__all__ = ["DensePlaces", "DenseRecording"]

Masks = Mapping[str, list[list[Derivative]]]
"""For each tower and level, the derivative of what follows each of its convolutions."""


@dataclass(frozen=True)
class DensePlaces:
    """
    Where N detections of a dense detector were read.

    Attributes:
        anchors: of the detections.
        outputs: what the head returned, for each predictor and level.
        masks: of the towers, where windows can go through them.
    """

    anchors: Anchors
    outputs: list[list[Tensor]] = field(repr=False)
    masks: Masks = field(default_factory=dict, repr=False)

    def select(self, index: Tensor) -> DensePlaces:
        return replace(self, anchors=self.anchors.select(index))

    def on_images(self, image: Tensor) -> DensePlaces:
        cells = self.anchors.cells._replace(image=image)
        return DensePlaces(replace(self.anchors, cells=cells), [])


@dataclass
class DenseRecording(Recording):
    """
    Attributes:
        head_calls: the last call of the head.
        anchor_calls: the last call of what generates anchors.
        masks: see :class:`DensePlaces`.
    """

    head_calls: deque[Call] = field(default_factory=lambda: deque(maxlen=1))
    anchor_calls: deque[Call] = field(default_factory=lambda: deque(maxlen=1))
    masks: dict[str, list[list[Derivative]]] = field(default_factory=dict)

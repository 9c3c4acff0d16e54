"""
What the head of a dense detector decides at an anchor. Towers of plain convolutions can be
explained on windows, since an output reads a window of one level (design: "dense heads").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from odam_d2.core.probabilities import Probability
from odam_d2.modeling.views import is_plain, own_parts, with_overrides

from .dense_records import DensePlaces
from .head import HeadAdapter
from .towers import is_local, with_constant_statistics
from .trace import Decisions, Trace

__all__ = ["DenseDecisions"]


class DenseDecisions(HeadAdapter):
    """
    The part of an adapter for dense detectors that reads their head. The places of a trace are
    :class:`DensePlaces`.

    Attributes:
        head_type: the head whose ``forward`` the towers describe.
        towers: for each of the head's outputs, predictor and the tower that it reads. The first
            one gives class logits, the second one what boxes are decoded from.
        local: whether windows can go through the towers of this very head.
    """

    head_type: ClassVar[type[nn.Module]]
    towers: ClassVar[Mapping[str, str]]

    def __init__(self, model: DenseDetector, norm_statistics: str = "constant"):
        super().__init__(model, norm_statistics)
        self.local = self._is_local(constant=norm_statistics == "constant")

    def _is_local(self, *, constant: bool) -> bool:
        return is_plain(self.model.head, self.head_type) and all(
            is_local(self.tower(name), self.predictors(name), constant=constant)
            for name in self.tower_names
        )

    @property
    @abstractmethod
    def output_sizes(self) -> list[int]:
        """Outputs for each anchor of each predictor, such as K and 4."""

    @abstractmethod
    def scores(self, outputs: list[Tensor], kind: str) -> Tensor:
        """
        Class scores (N, K) of anchors.

        Args:
            outputs: of each predictor (N, size), before any sigmoid.
            kind: "probability", what detections are ranked by, or "logit".
        """

    def closed_form(
        self, outputs: list[Tensor], labels: Tensor
    ) -> tuple[Probability, Sequence[Tensor]] | None:
        """
        The probabilities that :meth:`scores` computes in a form whose derivative is right near 0
        and 1 too, where there is one, see ``Decisions.closed_form``. Who overrides :meth:`scores`
        overrides this, or it is not used.

        Args:
            outputs: as for :meth:`scores`.
            labels: (N,), class ids.
        """
        return None

    @property
    def name(self) -> str:
        return own_parts(self.model, self.model.head)

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def feature_names(self) -> list[str]:
        return list(self.model.head_in_features)

    @property
    def strides(self) -> list[float]:
        shape = self.model.backbone.output_shape()
        return [float(shape[name].stride) for name in self.feature_names]

    @property
    def tower_names(self) -> list[str]:
        """Of the towers of the head."""
        return [
            name for name in sorted(set(self.towers.values())) if hasattr(self.model.head, name)
        ]

    def tower(self, name: str) -> nn.Sequential:
        """The convolutions of a tower, by its name in the head."""
        return getattr(self.model.head, name)

    def predictors(self, tower: str) -> list[nn.Conv2d]:
        """What reads a tower, in the order of the head's outputs."""
        return [getattr(self.model.head, p) for p, of in self.towers.items() if of == tower]

    def evaluate(self, features: list[Tensor], trace: Trace[DensePlaces]) -> Decisions:
        head = self.model.head
        if self.norm_statistics == "constant":
            towers = {name: with_constant_statistics(self.tower(name)) for name in self.tower_names}
            head = with_overrides(head, children=towers)
        return self.decide_outputs(self.outputs_at(head(features), trace), trace)

    def decide(self, trace: Trace[DensePlaces]) -> Decisions:
        return self.decide_outputs(self.outputs_at(trace.places.outputs, trace), trace)

    def outputs_at(
        self, predictions: Sequence[list[Tensor]], trace: Trace[DensePlaces]
    ) -> list[Tensor]:
        """Outputs (N, size) of each predictor at the detections' anchors."""
        sizes, anchors = self.output_sizes, trace.places.anchors
        return [anchors.read(p, n) for p, n in zip(predictions, sizes, strict=True)]

    def decide_outputs(self, outputs: list[Tensor], trace: Trace[DensePlaces]) -> Decisions:
        """What outputs (N, size) of each predictor, at the detections' anchors, say."""
        boxes = self.model.box2box_transform.apply_deltas(outputs[1], trace.places.anchors.boxes)
        known = issubclass(_definer(type(self), "closed_form"), _definer(type(self), "scores"))
        return Decisions(
            classes=trace.classes,
            probabilities=self.scores(outputs, "probability"),
            boxes=boxes,
            logits=self.scores(outputs, "logit"),
            closed_form=(lambda labels: self.closed_form(outputs, labels)) if known else None,
        )


def _definer(adapter: type, method: str) -> type:
    """The class among an adapter's bases whose method it is."""
    return next(base for base in adapter.__mro__ if method in vars(base))

"""
Dense detectors. An output reads a window of one level, so its gradient is pushed back through the
head's convolutions on that window alone (design: "dense heads"); towers that windows cannot go
through are explained by autograd through the head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.dense_windows import ConvLayer, DenseHead
from odam_d2.core.heatmap import smoothing_radius
from odam_d2.core.probabilities import Probability
from odam_d2.core.window_cells import Windows
from odam_d2.modeling.losses import OdamTraining
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import Call, own_parts, view_of, watched

from .anchors import ORIGIN, Anchors, nearest_anchors
from .base import GENERAL_WAY, UnsupportedModelError
from .checks import check_head
from .dense_training import dense_training_view
from .dense_view import ExplainingDetector, read_given_boxes
from .head import HeadExplainer
from .reading import Evaluation, Reading
from .suppression import ALL, NO_NMS, lower_scores
from .towers import TracedTower, convolutions, is_local, is_plain, with_constant_statistics

__all__ = ["DenseExplainer"]


class DenseExplainer(HeadExplainer):
    """
    Explains dense detectors whose head is made of towers of convolutions and predictors that read
    them. A family names these, in the order of the head's outputs, and says what scores are. A
    reading's ``origin`` is the :class:`Anchors` of its detections.

    Attributes:
        head_type: the head whose ``forward`` the towers describe.
        towers: for each of the head's outputs, predictor and the tower that it reads. The first
            one gives class logits, the second one what boxes are decoded from.
        local: whether windows can go through the towers of this very head.
        outputs: what the head gave for the batch at hand, for each predictor and level.
    """

    head_type: ClassVar[type[nn.Module]]
    towers: ClassVar[Mapping[str, str]]

    def __init__(self, model: DenseDetector, settings: ExplainSettings):
        super().__init__(model, settings)
        self.head_calls: deque[Call] = deque(maxlen=1)
        self.outputs: list[list[Tensor]] = []
        self.masks: dict[str, list[list[Tensor]]] = {}
        constant = settings.norm_statistics == "constant"
        self.local = is_plain(model.head, self.head_type) and all(
            is_local(getattr(model.head, tower), self._predictors(tower), constant=constant)
            for tower in self._names()
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
        and 1 too, where there is one; see :meth:`select_targets`. Who overrides :meth:`scores`
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
    def head_way(self) -> str:
        if not self.local:
            return "autograd"
        norms = {type(m) for name in self._names() for m in self.tower(name)}
        return "window, constant statistics" if nn.GroupNorm in norms else "window"

    def view(self) -> nn.Module:
        nms = self.settings.nms is not None
        state = {"test_nms_thresh": NO_NMS, "max_detections_per_image": ALL} if nms else {}
        children = self.watched_children(self.tracing)
        self.masks = self.tracing.masks
        return view_of(
            self.model, ExplainingDetector, children=children, odam_explainer=self, **state
        )

    def watched_children(self, tracing: DenseExplainer) -> dict[str, nn.Module]:
        """Backbone and head, for a view of the model: what they read and return is kept."""
        head = watched(tracing.traced_head(), self.head_calls)
        return {"backbone": self.watched_backbone(), "head": head}

    @property
    def tracing(self) -> DenseExplainer:
        """
        The explainer that sees what the head does: that of the maps that an NMS compares, which
        goes through every head that this one can go through, or this one.
        """
        settings = self.settings
        compares = settings.nms is not None and (settings.nms.needs_maps or settings.record)
        return self.comparing if compares else self

    def check_run(
        self, images: ImageList, features: list[Tensor], predictions: Sequence[list[Tensor]]
    ) -> list[list[Tensor]]:
        """
        The predictions, when they are the head's, and the head's of the backbone's features.

        Raises:
            UnsupportedModelError: they are not.
        """
        self.check_features(images, dict(zip(self.feature_names, features, strict=False)))
        sizes = self.output_sizes
        return check_head(self.name, self.head_calls, features, predictions, sizes)

    def read_traced(
        self, images: ImageList, features: list[Tensor], results: list[Instances]
    ) -> Reading:
        """Where traced detections were read."""
        if not all(found.has(ORIGIN) for found in results):
            raise UnsupportedModelError(
                f"{self.name}: its detections are chosen in its own way, so that the anchors that "
                f"they come from are not known; {GENERAL_WAY}"
            )
        origins = [found.get(ORIGIN) for found in results]
        return self.read_anchors(images, features, origins, [x.pred_classes for x in results])

    def explain_traced(
        self, images: ImageList, features: list[Tensor], results: list[Instances]
    ) -> list[Instances]:
        """Choose among traced detections, where an NMS asks for that, and explain them."""
        reading = self.read_traced(images, features, results)
        if self.settings.nms is not None:
            limits = (self.model.test_nms_thresh, self.model.max_detections_per_image)
            results, rows = self.suppress(reading, results, *limits)
            reading = reading.select(rows)
        if self.parts:
            self.explain_detections(reading, results)
        lower_scores(results)
        return results

    def training_view(self, training: OdamTraining) -> nn.Module:
        return dense_training_view(self, training)

    def nearest(self, boxes: Boxes, anchors: list[Boxes]) -> Tensor:
        """(N, 2) level and index of the anchor that would be trained to find each box."""
        return nearest_anchors(boxes, anchors)

    def read_given(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> Reading:
        return read_given_boxes(self, batched_inputs, boxes, classes)

    def read_boxes(
        self,
        images: ImageList,
        features: list[Tensor],
        boxes: Sequence[Boxes],
        classes: Sequence[Tensor],
    ) -> Reading:
        self.outputs = list(self.traced_head()(features))
        anchors = self.model.anchor_generator(features)
        origins = [self.nearest(of_image, anchors) for of_image in boxes]
        return self.read_anchors(images, features, origins, classes)

    def read_anchors(
        self,
        images: ImageList,
        features: list[Tensor],
        origins: Sequence[Tensor],
        classes: Sequence[Tensor],
    ) -> Reading:
        """
        Args:
            origins: for each image (n, 2), see :data:`ORIGIN`.
            classes: for each image (n,).
        """
        chosen = self.anchors_at(features, origins)
        return Reading(
            images=images.tensor,
            image_sizes=images.image_sizes,
            features=features,
            image=chosen.cells.image,
            classes=torch.cat(list(classes)),
            levels=chosen.cells.level[:, None],
            origin=chosen,
        )

    def anchors_at(self, features: list[Tensor], origins: Sequence[Tensor]) -> Anchors:
        """
        Args:
            origins: for each image (n, 2), see :data:`ORIGIN`.
        """
        anchors = self.model.anchor_generator(features)
        per_cell = len(anchors[0]) // features[0].shape[-2:].numel()
        widths = [feature.shape[-1] for feature in features]
        return Anchors.of_origins(list(origins), anchors, widths, per_cell)

    def evaluate(self, features: list[Tensor], reading: Reading) -> Evaluation:
        head = self.model.head
        if self.settings.norm_statistics == "constant":
            towers = {name: with_constant_statistics(self.tower(name)) for name in self._names()}
            head = view_of(head, children=towers)
        return self._decide(self._read(head(features), reading), reading)

    def say_again(self, reading: Reading) -> Evaluation:
        return self._decide(self._read(self.outputs, reading), reading)

    def read_again(self, reading: Reading) -> Reading:
        reading = super().read_again(reading)
        self.outputs = list(self.traced_head()(reading.features))
        return reading

    def class_probabilities(self, reading: Reading) -> Tensor:
        return self.scores(self._read(self.outputs, reading), "probability")

    def heat_maps(self, reading: Reading) -> tuple[Tensor, Tensor, Evaluation]:
        if not self.local:
            return self.autograd_heat_maps(reading)
        read = [x.detach() for x in self._read(self.outputs, reading)]
        with torch.enable_grad():
            for outputs in read:
                outputs.requires_grad_()
            evaluation = self._decide(read, reading)
            seeds = evaluation.gradients(read)
        of_output = dict(zip(self.towers, zip(*seeds, strict=True), strict=True))
        heads = {tower: self._dense_head(tower) for tower in self._names()}
        radius = max(head.radius for head in heads.values())
        total = None
        for tower, head in heads.items():
            windows = self._tower_maps(tower, head, of_output, reading)
            margin = radius - head.radius
            values = F.pad(windows.values, (margin,) * 4)
            total = values if total is None else total.add_(values)
            origins = torch.stack([windows.row - margin, windows.column - margin], dim=1)
        return total.relu_(), origins, evaluation.detach()

    def release(self) -> None:
        super().release()
        self.head_calls.clear()
        self.outputs = self.tracing.outputs = []
        for masks in self.masks.values():
            masks.clear()

    def _names(self) -> list[str]:
        """Of the towers of the head."""
        return [
            name for name in sorted(set(self.towers.values())) if hasattr(self.model.head, name)
        ]

    def tower(self, name: str) -> nn.Sequential:
        return getattr(self.model.head, name)

    def _predictors(self, tower: str) -> list[nn.Conv2d]:
        """What reads a tower, in the order of the head's outputs."""
        return [getattr(self.model.head, p) for p, of in self.towers.items() if of == tower]

    def _dense_head(self, tower: str) -> DenseHead:
        layers = [ConvLayer(conv.weight.detach()) for conv in convolutions(self.tower(tower))]
        return DenseHead(layers, torch.cat([p.weight.detach() for p in self._predictors(tower)]))

    def traced_head(self) -> nn.Module:
        if not self.local:
            return self.model.head
        self.masks = {tower: [] for tower in self.towers.values()}
        traced = {
            tower: view_of(self.tower(tower), TracedTower, odam_masks=masks)
            for tower, masks in self.masks.items()
        }
        return view_of(self.model.head, children=traced)

    def _read(self, predictions: Sequence[list[Tensor]], reading: Reading) -> list[Tensor]:
        """Outputs (N, size) of each predictor at the detections' anchors."""
        sizes = self.output_sizes
        return [reading.origin.read(p, n) for p, n in zip(predictions, sizes, strict=True)]

    def _decide(self, outputs: list[Tensor], reading: Reading) -> Evaluation:
        boxes = self.model.box2box_transform.apply_deltas(outputs[1], reading.origin.boxes)
        scores = self.scores(outputs, self.settings.score)
        known = issubclass(_definer(type(self), "closed_form"), _definer(type(self), "scores"))
        columns, exponents, saturated = self.select_targets(
            scores,
            boxes,
            reading.classes,
            (lambda labels: self.closed_form(outputs, labels)) if known else None,
        )
        probability = self.scores(outputs, "probability").gather(1, reading.classes[:, None])[:, 0]
        return Evaluation(columns, probability, boxes, exponents, saturated)

    def _tower_maps(
        self,
        tower: str,
        head: DenseHead,
        seeds: dict[str, tuple[Tensor | None, ...]],
        reading: Reading,
    ) -> Windows:
        """
        Signed maps of what the targets owe to one tower.

        Args:
            seeds: for each predictor and target, the target's derivative (N, size) by the outputs
                at the detection's anchor; None for none.

        Returns:
            Windows of values (N, T, h, h).
        """
        anchors: Anchors = reading.origin
        names = [name for name, of in self.towers.items() if of == tower]
        used = [t for t in range(len(self.parts)) if any(seeds[n][t] is not None for n in names)]
        side = 2 * (head.radius + smoothing_radius(self.settings.smoothing_sigma)) + 1
        values = reading.features[0].new_zeros((len(reading), len(self.parts), side, side))
        row, column = (x - side // 2 for x in (anchors.cells.row, anchors.cells.column))
        if not used:
            return Windows(values, row, column)
        spread = []
        for name in names:
            size = self.output_sizes[list(self.towers).index(name)]
            none = values.new_zeros(len(reading), size)
            chosen = [none if seeds[name][t] is None else seeds[name][t] for t in used]
            per_cell = getattr(self.model.head, name).out_channels // size
            spread.append(anchors.spread(torch.stack(chosen, dim=1), per_cell))
        windows = head.heat_maps(
            list(zip(*self.masks[tower], strict=True)),
            reading.features,
            torch.cat(spread, dim=2),
            anchors.cells,
            sigma=self.settings.smoothing_sigma,
            signed=True,
            max_bytes=self.settings.max_bytes,
        )
        values[:, used] = windows.values.to(values)
        return windows._replace(values=values)


def _definer(explainer: type, method: str) -> type:
    """The class among an explainer's bases whose method it is."""
    return next(base for base in explainer.__mro__ if method in vars(base))

"""
Two-stage detectors. A pooled feature goes through the head alone, so one backward pass of the sum
over all instances gives every instance's gradient (design: "two-stage heads").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.pooled_gradients import pooled_gradients
from odam_d2.core.pooled_windows import pooled_heat_maps
from odam_d2.core.probabilities import Probability, sigmoid, softmax
from odam_d2.core.probabilities import mean as mean_probability
from odam_d2.core.windows import add_windows, join_windows
from odam_d2.modeling.losses import OdamTraining
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import own_parts

from .base import GENERAL_WAY, UnsupportedModelError, register_explainer
from .checks import check_apart, check_pooled
from .head import HeadExplainer
from .pooled_heads import PROPOSALS, ROWS, Regions, pooled_head
from .rcnn_training import rcnn_training_view
from .rcnn_view import explaining_view, read_given_boxes
from .reading import Evaluation, Reading

__all__ = ["RCNNExplainer"]


# Of more detections than a few, each is pooled again in a third of the channels, the next one in
# another third: what changes a detection, or a channel, is seen at a third of the cost.
_FEW, _SHARES = 12, 3


@register_explainer(GeneralizedRCNN)
class RCNNExplainer(HeadExplainer):
    """
    Explains Faster R-CNN and what is built like it: ``GeneralizedRCNN`` with ROI heads that
    :func:`pooled_head` knows. A reading's ``origin`` are :class:`Regions`.
    """

    head_way = "pooled"

    def __init__(self, model: GeneralizedRCNN, settings: ExplainSettings):
        self.head = pooled_head(model.roi_heads)
        super().__init__(model, settings)

    @property
    def name(self) -> str:
        return own_parts(self.model, self.model.roi_heads)

    @property
    def num_classes(self) -> int:
        return self.model.roi_heads.num_classes

    @property
    def feature_names(self) -> list[str]:
        return list(self.head.in_features)

    @property
    def strides(self) -> list[float]:
        count = len(self.head.pooler.level_poolers)
        return [1 / self.head.spec(level).spatial_scale for level in range(count)]

    def check_inputs(self, batched_inputs: list[dict]) -> None:
        if self.model.proposal_generator is None and any(
            "proposals" not in x for x in batched_inputs
        ):
            raise InputError(
                "the model makes no proposals of its own (MODEL.PROPOSAL_GENERATOR.NAME), so each "
                "image needs them as 'proposals'; explain_boxes works without"
            )

    def view(self) -> nn.Module:
        return explaining_view(self)

    def training_view(self, training: OdamTraining) -> nn.Module:
        return rcnn_training_view(self, training)

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
        regions = Regions(self.head.refine(features, boxes, images.image_sizes))
        return self.read_regions(images, features, regions, classes)

    def read_traced(
        self, images: ImageList, features: dict[str, Tensor], instances: list[Instances]
    ) -> Reading:
        """
        Where traced detections were read.

        Raises:
            UnsupportedModelError: it is not known, or not from the backbone's features.
        """
        if not all(found.has(PROPOSALS) for found in instances):
            raise UnsupportedModelError(
                f"{self.name}: its detections are chosen in its own way, so that the proposals "
                f"that they come from are not known; {GENERAL_WAY}"
            )
        features = {name: features[name] for name in self.feature_names}
        self.check_features(images, features)
        boxes = torch.cat([found.get(PROPOSALS) for found in instances])
        known = self.head.trace is not None and all(found.has(ROWS) for found in instances)
        rows = torch.cat([found.get(ROWS) for found in instances]) if known else None
        classes = [found.pred_classes for found in instances]
        regions = Regions(boxes, rows, self.head.trace if known else None)
        return self.read_regions(images, list(features.values()), regions, classes)

    def check_reading(self, reading: Reading) -> None:
        """
        Raises:
            UnsupportedModelError: what was read is not what is explained, or not all of it.
        """
        if not len(reading):
            return
        rows = torch.arange(len(reading), device=reading.image.device)
        trace = reading.origin.trace
        if trace is None or not trace.is_pooled(reading.features):
            self._pool_again(reading, rows)
        pair = reading.select(rows[:2])
        pooled = pair.origin.pooled() or self._pool(pair.features, pair)
        for stage, features in zip(self.head.stages, pooled, strict=True):
            check_apart(self.name, stage.predict, features)

    def _pool_again(self, reading: Reading, rows: Tensor) -> None:
        """Compare what was read in these rows with what is pooled now."""
        count = reading.features[0].shape[1]
        shares = _SHARES if len(rows) > _FEW and count >= _SHARES else 1
        channels = torch.arange(count).tensor_split(shares)
        for share, of_share in enumerate(channels):
            first, end = int(of_share[0]), int(of_share[-1]) + 1
            for index in rows[share::shares].split(self._chunk_size(reading)):
                self._check_pooled(reading.select(index), slice(first, end))

    def _check_pooled(self, reading: Reading, channels: slice) -> None:
        kept = reading.origin.pooled()
        if kept is not None:
            features = [feature[:, channels] for feature in reading.features]
            for read, again in zip(kept, self._pool(features, reading), strict=True):
                check_pooled(self.name, read[:, channels], again)

    def release(self) -> None:
        super().release()
        if self.head.trace is not None:
            self.head.trace.clear()

    def read_regions(
        self,
        images: ImageList,
        features: list[Tensor],
        regions: Regions,
        classes: Sequence[Tensor],
    ) -> Reading:
        """
        Args:
            features: what the head read, of each level.
            regions: of the detections of all images.
            classes: for each image (n,).
        """
        levels = [self.head.levels(Boxes(boxes)) for boxes in regions.boxes.unbind(dim=1)]
        return Reading(
            images=images.tensor,
            image_sizes=images.image_sizes,
            features=features,
            image=Reading.image_of(classes, regions.boxes.device),
            classes=torch.cat(list(classes)),
            levels=torch.stack(levels, dim=1),
            origin=regions,
        )

    def evaluate(self, features: list[Tensor], reading: Reading) -> Evaluation:
        return self._predict(self._pool(features, reading), reading)

    def say_again(self, reading: Reading) -> Evaluation:
        return self._predict(self._pooled(reading), reading)

    def read_again(self, reading: Reading) -> Reading:
        return replace(super().read_again(reading), origin=Regions(reading.origin.boxes))

    def heat_maps(self, reading: Reading) -> tuple[Tensor, Tensor, Evaluation]:
        rows = torch.arange(len(reading), device=reading.image.device)
        parts, evaluations = [], []
        for index in rows.split(self._chunk_size(reading)):
            values, origins, evaluation = self._chunk(reading.select(index))
            parts.append((index, values, origins))
            evaluations.append(evaluation)
        return *join_windows(parts, len(reading)), Evaluation.cat(evaluations)

    def _chunk_size(self, reading: Reading) -> int:
        """How many instances' pooled gradients fit the memory bound."""
        rows, columns = self.head.spec(0).output_size
        feature = reading.features[0]
        pooled = feature.shape[1] * rows * columns * feature.element_size()
        copies = (len(self.parts) + 1) * len(self.head.stages)
        return max(1, self.settings.max_bytes // (pooled * copies))

    def _pooled(self, reading: Reading) -> list[Tensor]:
        """What the head pooled, kept or pooled again."""
        return reading.origin.pooled() or self._pool(reading.features, reading)

    def _pool(self, features: list[Tensor], reading: Reading) -> list[Tensor]:
        """Pooled features (N, C, R, S) of each stage."""
        counts = reading.counts()
        return [
            self.head.pooler(features, [Boxes(part) for part in boxes.split(counts)])
            for boxes in reading.origin.boxes.unbind(dim=1)
        ]

    def _predict(self, pooled: list[Tensor], reading: Reading) -> Evaluation:
        """What the stages say together of their pooled features."""
        probabilities, logits = [], []
        stages = zip(self.head.stages, pooled, reading.origin.boxes.unbind(dim=1), strict=True)
        for (predict, predictor), features, proposals in stages:
            given = [Instances((0, 0), proposal_boxes=Boxes(proposals))]
            predictions = predict(features)
            logits.append(predictions[0])
            probabilities += predictor.predict_probs(predictions, given)
            (boxes,) = predictor.predict_boxes(predictions, given)
        mean = torch.stack(probabilities).mean(dim=0)
        # One box for each class, or one for all of them.
        row = torch.arange(len(reading), device=mean.device)
        boxes = boxes.view(len(row), -1, 4)
        boxes = boxes[row, reading.classes if boxes.shape[1] > 1 else 0]
        scores = torch.stack(logits).mean(dim=0) if self.settings.score == "logit" else mean
        columns, exponents, saturated = self.select_targets(
            scores, boxes, reading.classes, lambda labels: self._closed_form(logits, labels)
        )
        return Evaluation(columns, mean[row, reading.classes], boxes, exponents, saturated)

    def _closed_form(
        self, logits: Sequence[Tensor], labels: Tensor
    ) -> tuple[Probability, Sequence[Tensor]] | None:
        """
        See :meth:`select_targets`; None for a predictor with its own way from logits to scores.

        Args:
            logits: of each stage, (N, K + 1).
            labels: (N,).
        """
        of_stages = []
        for stage, of_stage in zip(self.head.stages, logits, strict=True):
            predictor = stage.predictor
            way = getattr(predictor.predict_probs, "__func__", None)
            if way is not FastRCNNOutputLayers.predict_probs:
                return None
            # Not every Detectron2 knows sigmoids there.
            sigmoids = getattr(predictor, "use_sigmoid_ce", False)
            of_stages.append((sigmoid if sigmoids else softmax)(of_stage, labels))
        return mean_probability(of_stages), logits

    def _chunk(self, reading: Reading) -> tuple[Tensor, Tensor, Evaluation]:
        """As :meth:`heat_maps`, for instances whose pooled gradients fit into memory together."""
        # Always as Detectron2 pooled, though our own RoIAlign is faster on few boxes: where it
        # rounds otherwise, a ReLU of the head may open or close, and the gradient jumps.
        pooled = self._pooled(reading)
        pooled = [features.detach() for features in pooled]
        with torch.enable_grad():
            for features in pooled:
                features.requires_grad_()
            # Copies, since a head may begin with something in place.
            evaluation = self._predict([features.clone() for features in pooled], reading)
            gradients = pooled_gradients(evaluation.columns, pooled)
        windows = []
        for stage, of_stage in enumerate(gradients):
            # Sides of a cascade's boxes owe nothing to any stage but the last.
            if of_stage is not None:
                used, gradient = of_stage
                values, origins = self.stage_windows(reading, stage, gradient)
                windows.append((_among(values, used, len(self.parts)), origins))
        values, origins = add_windows(windows)
        return values.relu_(), origins, evaluation.detach()

    def stage_windows(
        self, reading: Reading, stage: int, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Carry gradients of one stage's pooled features to the maps that they came from.

        Args:
            gradient: of each target, (n, T, C, R, S).

        Returns:
            Signed values (n, T, h, w) and origins (n, 2), on the finest of each instance's levels.
        """
        level, ratio = reading.levels[:, stage], None
        if reading.levels.shape[1] > 1:
            strides = reading.features[0].new_tensor(self.strides)
            ratio = (strides[level] / strides[reading.levels.amin(dim=1)]).round().long()
        return pooled_heat_maps(
            reading.features,
            # Boxes are float32 in Detectron2; RoIAlign computes in the dtype of the features.
            reading.origin.boxes[:, stage].to(reading.features[0].dtype),
            reading.image,
            level,
            gradient,
            [self.head.spec(number) for number in range(len(reading.features))],
            sigma=self.settings.smoothing_sigma,
            ratio=ratio,
            max_bytes=self.settings.max_bytes,
        )


def _among(values: Tensor, used: list[int], count: int) -> Tensor:
    """Windows (n, T, h, w) of all of so many targets, zero but for those that are given."""
    if len(used) == count:
        return values
    total = values.new_zeros((len(values), count, *values.shape[-2:]))
    total[:, used] = values
    return total

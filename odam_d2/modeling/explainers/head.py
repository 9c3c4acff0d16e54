"""Detectors of a backbone and a head: what a family must say of its head, and the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.cam import CAMS
from odam_d2.core.gradients import gradient_heat_maps, precise
from odam_d2.core.windows import join_windows, refined
from odam_d2.modeling.d_rise import PROBABILITIES
from odam_d2.modeling.layers import find_layer
from odam_d2.modeling.losses import Labels, Positives
from odam_d2.modeling.precision import full_precision_copy, runs_in_half
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import Call, own_parts, watched
from odam_d2.structures import OdamMaps

from .base import Explainer
from .checks import (
    BACKBONE_LOST,
    check_backbone,
    check_decisions,
    check_levels,
    check_outputs,
    rounding,
)
from .reading import Evaluation, Reading, split_by_image
from .suppression import choose_among
from .whole_maps import input_gradient_maps, layer_maps

__all__ = ["HeadExplainer"]


class HeadExplainer(Explainer):
    """
    Explains detectors with Detectron2's ``backbone`` and ``preprocess_image``.

    A family provides :attr:`feature_names`, :attr:`strides`, :meth:`view` (detect, and hand a
    :class:`Reading` to :meth:`explain_detections`), :meth:`read_boxes` and :meth:`evaluate`. That
    makes it exact, by one backward pass of the head for each map. Where its structure allows more,
    it overrides :meth:`heat_maps` and :attr:`head_way`.
    """

    def __init__(self, model: nn.Module, settings: ExplainSettings):
        super().__init__(model, settings)
        self.backbone_calls: deque[Call] = deque(maxlen=1)
        self.said: list[Instances] = []
        if settings.layer:
            find_layer(model.backbone, settings.layer)  # a wrong name is answered at once

    @property
    def name(self) -> str:
        """The model, and those of its parts that are the user's own, for error messages."""
        return own_parts(self.model)

    @property
    @abstractmethod
    def feature_names(self) -> list[str]:
        """Names of the backbone's features that the head reads, the finest first."""

    @property
    @abstractmethod
    def strides(self) -> list[float]:
        """Network-input pixels per cell of each of them."""

    @abstractmethod
    def read_boxes(
        self,
        images: ImageList,
        features: list[Tensor],
        boxes: Sequence[Boxes],
        classes: Sequence[Tensor],
    ) -> Reading:
        """Where the head would read given boxes, see :meth:`explain_boxes`."""

    @abstractmethod
    def evaluate(self, features: list[Tensor], reading: Reading) -> Evaluation:
        """
        The definition that fast ways are held to: run the head and read off the targets, with a
        graph to ``features``, which stand in for the reading's own.
        """

    @property
    def head_way(self) -> str:
        """How :meth:`heat_maps` works."""
        return "autograd"

    @property
    def way(self) -> str:
        if self.settings.method == "d_rise":
            return "masked images"
        if self.settings.method == "input_gradient":
            return "autograd at the image"
        if self.settings.layer:
            return f"autograd at {self.settings.layer}"
        return "autograd" if self.settings.method in CAMS else self.head_way

    def finish(self, outputs: list[dict], batched_inputs: list[dict]) -> list[dict]:
        if self.parts:
            check_outputs(self.name, outputs, self.said)
        self.forget()
        return super().finish(outputs, batched_inputs)

    def remember(self, instances: list[Instances]) -> None:
        """What leaves the head, as the model will be seen to return it."""
        for found in instances:
            fields = {name: found.get(name).clone() for name in ("pred_boxes", "scores")}
            fields["pred_classes"] = found.pred_classes.clone()
            self.said.append(Instances(found.image_size, **fields))

    def release(self) -> None:
        """Drop the tensors of a batch, when it has been explained."""
        self.backbone_calls.clear()

    def forget(self) -> None:
        self.release()
        self.said.clear()

    def watched_backbone(self) -> nn.Module:
        """The backbone, for a view of the model: what it reads and returns is kept."""
        return watched(self.model.backbone, self.backbone_calls)

    def heat_maps(self, reading: Reading) -> tuple[Tensor, Tensor, Evaluation]:
        """
        Heat maps on the features that the head read, for N > 0 detections.

        Returns:
            Values (N, T, h, w), one map for each of :attr:`parts`; origins (N, 2), the (row,
            column) of each window on the finest level that the detection was read from; and what
            the head says again.
        """
        return self.autograd_heat_maps(reading)

    def explain_detections(self, reading: Reading, instances: list[Instances]) -> None:
        """Set the field ``odam_maps`` of detections, one ``Instances`` for each image."""
        if self.settings.method == "d_rise":  # the maps come last, see :meth:`finish`
            probabilities = self.class_probabilities(reading)
            scores = probabilities.gather(1, reading.classes[:, None]).squeeze(1)
            boxes = torch.cat([found.pred_boxes.tensor for found in instances])
            self.check_same(reading, instances, scores, boxes)
            probabilities = split_by_image(probabilities, reading.counts())
            for found, part in zip(instances, probabilities, strict=True):
                found.set(PROBABILITIES, part)
            return
        maps = self._checked_maps(self, reading, instances)
        for found, part in zip(instances, split_by_image(maps, reading.counts()), strict=True):
            found.odam_maps = part

    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Instances]:
        like = next(self.model.parameters())
        if runs_in_half(like):
            with torch.autocast(like.device.type, enabled=False):
                return self._in_full_precision.explain_boxes(batched_inputs, boxes, classes)
        try:
            if any(len(of_image) for of_image in boxes):
                reading = self.read_given(batched_inputs, boxes, classes)
            else:
                reading = HeadExplainer.read_given(self, batched_inputs, boxes, classes)
            maps, evaluation = self._maps(reading)
        finally:
            self.forget()
        counts = reading.counts()
        results = []
        for number, size in enumerate(reading.image_sizes):
            found = Instances(size, pred_boxes=boxes[number], pred_classes=classes[number])
            found.scores = split_by_image(evaluation.scores, counts)[number]
            found.odam_maps = split_by_image(maps, counts)[number]
            results.append(found)
        return results

    def read_given(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> Reading:
        """
        Where the model reads N > 0 given boxes, see :meth:`explain_boxes`. A family that can run
        the model's own inference for that overrides it, and sees whether the model does more.
        """
        images = self.model.preprocess_image(batched_inputs)
        return self.read_boxes(images, self.features(images.tensor), boxes, classes)

    def say_again(self, reading: Reading) -> Evaluation:
        """What the head says of N > 0 detections, in the precision in which it runs."""
        return self.evaluate(reading.features, reading)

    def features(self, images: Tensor) -> list[Tensor]:
        """What the head reads of images (I, 3, H, W), one tensor for each level."""
        features = self.model.backbone(images)
        return [features[name] for name in self.feature_names]

    def read_again(self, reading: Reading) -> Reading:
        """
        The same detections in full precision, where the detector ran in half: the places are kept,
        and what was read there is computed again. A family that keeps more than features of a
        pass computes that again, too.
        """
        images = precise(reading.images)
        return replace(reading, images=images, features=self.features(images))

    @cached_property
    def _in_full_precision(self) -> HeadExplainer:
        return type(self)(full_precision_copy(self.original), self.settings)

    def class_probabilities(self, reading: Reading) -> Tensor:
        """(N, K) of the detections, without background."""
        if not len(reading):
            return reading.features[0].new_zeros(0, self.num_classes)
        return self._of_all_classes.evaluate(reading.features, reading).values

    @cached_property
    def _of_all_classes(self) -> HeadExplainer:
        every = tuple(f"class:{number}" for number in range(self.num_classes))
        settings = replace(
            self.settings, targets=every, method="odam", score="probability", class_names=None
        )
        return type(self)(self.original, settings)

    @cached_property
    def comparing(self) -> HeadExplainer:
        """The explainer whose maps an NMS compares."""
        return type(self)(self.original, self.settings.of_class_logit())

    def suppress(
        self, reading: Reading, candidates: list[Instances], iou_thresh: float, most: int
    ) -> tuple[list[Instances], Tensor]:
        """
        Choose among candidates by ``settings.nms``.

        Args:
            reading: where all candidates were read.
            candidates: of each image.
            iou_thresh, most: of the detector's own NMS, and detections of an image.

        Returns:
            The detections of each image, and their rows (n,) of the reading, in that order.
        """
        nms = self.settings.nms
        asked = nms.needs_maps or self.settings.record
        maps = self._checked_maps(self.comparing, reading, candidates) if asked else None
        chosen, rows, records = choose_among(candidates, nms, maps, iou_thresh, most)
        if self.settings.record:
            self.records = records
        first = torch.tensor([0, *(len(found) for found in candidates)]).cumsum(0).tolist()
        shifted = [of_image + start for of_image, start in zip(rows, first, strict=False)]
        return chosen, torch.cat(shifted)

    def _checked_maps(
        self, explainer: HeadExplainer, reading: Reading, instances: Sequence[Instances]
    ) -> OdamMaps:
        """Maps by an explainer of this model, if the explained head says what was detected."""
        maps, evaluation = explainer._maps(reading)
        if len(reading) and runs_in_half(reading.features[0]):
            evaluation = explainer.say_again(reading)  # in full precision, scores are others
        self.check_same(reading, instances, evaluation.scores, evaluation.boxes)
        return maps

    def _maps(self, reading: Reading) -> tuple[OdamMaps, Evaluation]:
        """Of a reading in any precision; maps and evaluation are of full precision."""
        like = precise(reading.features[0])
        if not len(reading):
            empty = OdamMaps.empty([t.name for t in self.targets], like)
            none = (like.new_zeros(0),) * len(self.parts)
            return empty, Evaluation(none, like.new_zeros(0), like.new_zeros(0, 4))
        if runs_in_half(reading.features[0]):
            explainer = self._in_full_precision
            with torch.autocast(like.device.type, enabled=False):
                return explainer._maps(explainer.read_again(reading))
        if self.settings.method == "input_gradient":
            return input_gradient_maps(self, reading)
        if self.settings.layer:
            return layer_maps(self, reading)
        # The fast ways never hold a whole gradient, which these methods need.
        whole = self.settings.method in CAMS
        heat_maps = self.autograd_heat_maps if whole else self.heat_maps
        values, origins, evaluation = heat_maps(reading)
        flags = evaluation.exponents, evaluation.saturated
        return self.pack(values, *flags, **self.geometry(reading, origins)), evaluation

    def geometry(self, reading: Reading, origins: Tensor) -> dict[str, Tensor]:
        """
        What ``OdamMaps`` wants to know of windows of the features that the head read.

        Args:
            origins: (N, 2), see :meth:`heat_maps`.
        """
        level = reading.levels.amin(dim=1)
        grids = origins.new_tensor([feature.shape[-2:] for feature in reading.features])
        return {
            "origins": origins,
            "strides": reading.features[0].new_tensor(self.strides)[level],
            "grid_sizes": grids[level],
            "image_sizes": origins.new_tensor(reading.image_sizes)[reading.image],
            "levels": level,
        }

    def positives(
        self, reading: Reading, windows: tuple[Tensor, Tensor], labels: list[Labels], stride: float
    ) -> list[Positives]:
        """
        What a loss sees of each image.

        Args:
            reading: the chosen positives of the batch, N > 0.
            windows: their maps (N, 1, h, w), with a graph, and origins (N, 2).
            labels: of each image's.
            stride: pixels of the network's input per cell of the grid for all maps of an image.
        """
        values, origins = windows
        maps = self.pack(values, **self.geometry(reading, origins))
        split = split_by_image(maps, reading.counts())
        return [
            Positives(of_image.on_grid(stride)[:, 0], of_labels)
            for of_image, of_labels in zip(split, labels, strict=True)
        ]

    @torch.enable_grad()
    def autograd_heat_maps(self, reading: Reading) -> tuple[Tensor, Tensor, Evaluation]:
        """As :meth:`heat_maps`, by one backward pass of the head for each map."""
        leaves = [feature.detach().requires_grad_() for feature in reading.features]
        evaluation = self.evaluate(leaves, reading)
        parts = []
        read = reading.levels.sort(dim=1).values
        for levels in read.unique(dim=0):
            index = (read == levels).all(dim=1).nonzero().squeeze(1)
            origins = reading.image.new_zeros((len(index), 2))
            finest = int(levels[0])
            height, width = leaves[finest].shape[-2:]
            total = evaluation.values.new_zeros((len(index), len(self.parts), height, width))
            others = set(range(len(leaves))) - set(levels.tolist())
            check_levels(self.name, evaluation.values[index], [leaves[n] for n in sorted(others)])
            for level in levels.unique().tolist():
                maps = self.gradient_maps(evaluation, leaves[level], reading.image, index)
                ratio = round(self.strides[level] / self.strides[finest])
                maps = refined(maps, ratio)
                total += maps[..., :height, :width]
            parts.append((index, total.relu_(), origins))
        values, origins = join_windows(parts, len(reading))
        return values, origins, evaluation.detach()

    def gradient_maps(
        self, evaluation: Evaluation, leaf: Tensor, image: Tensor, index: Tensor | slice
    ) -> Tensor:
        """
        Signed maps (n, T, H, W) of some of N detections on one feature map.

        Args:
            evaluation: of N detections, with a graph.
            leaf: (I, C, H, W).
            image: (N,).
            index: which detections.
        """
        settings = self.settings
        exponents = evaluation.exponents
        scales = None if exponents is None else torch.exp2(exponents[index])
        maps = [
            gradient_heat_maps(
                column[index],
                leaf,
                image[index],
                settings.smoothing_sigma,
                signed=True,
                max_bytes=settings.max_bytes,
                weigh=CAMS.get(settings.method),
                scale=None if scales is None else scales[:, target],
            )
            for target, column in enumerate(evaluation.columns)
        ]
        return torch.stack(maps, dim=1)

    def check_features(self, images: ImageList, features: dict[str, Tensor]) -> None:
        """
        Refuse to explain when these, of the head, are not what the backbone of :meth:`view`
        returned, or not of these images.
        """
        again = self.settings.layer or self.settings.method == "input_gradient"
        again = again or any(map(runs_in_half, features.values()))
        read = images.tensor if again else None
        check_backbone(self.name, self.backbone_calls, features, read)

    def check_same(
        self, reading: Reading, instances: Sequence[Instances], scores: Tensor, boxes: Tensor
    ) -> None:
        """
        Refuse to explain detections of which the explained head says something else.

        Args:
            scores, boxes: (N,) and (N, 4), what it says of the detections of all images.
        """
        tolerance = rounding(reading.features[0], *(found.scores for found in instances))
        if self.settings.layer or self.settings.method == "input_gradient":
            tolerance *= BACKBONE_LOST
        split = (split_by_image(x, reading.counts()) for x in (scores, boxes))
        for found, *of_image in zip(instances, *split, strict=True):
            check_decisions(self.name, type(self).__name__, found, *of_image, tolerance)

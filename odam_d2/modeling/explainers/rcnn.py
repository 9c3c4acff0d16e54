"""
Two-stage detectors. A pooled feature goes through the head alone, so one backward pass of the sum
over all instances gives every instance's gradient (design: "two-stage heads").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.roi_align import pooled_heat_maps
from odam_d2.core.targets import Target, outward
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import view_of
from odam_d2.structures import OdamMaps

from .base import Explainer, register_explainer
from .pooled_heads import pooled_head

__all__ = ["RCNNExplainer"]

_ORIGIN = "odam_proposal_boxes"


class _Traced:
    """Mixin for a box predictor: its detections remember the proposal that they came from."""

    def inference(self, predictions, proposals):
        instances, kept = super().inference(predictions, proposals)
        usable = self._usable_rows(predictions, proposals)
        for found, index, rows, given in zip(instances, kept, usable, proposals, strict=True):
            found.set(_ORIGIN, Boxes(given.proposal_boxes.tensor[rows][index]))
        return instances, kept

    def _usable_rows(self, predictions, proposals) -> list[Tensor | slice]:
        """Detectron2 counts kept indices among the rows without nan or inf only."""
        if all(p.isfinite().all() for p in predictions):
            return [slice(None)] * len(proposals)
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        return [
            box.isfinite().all(dim=1) & score.isfinite().all(dim=1)
            for box, score in zip(boxes, scores, strict=True)
        ]


class _Explaining:
    """Mixin for ROI heads: detections get ``odam_maps`` on the way out."""

    def forward(self, images, features, proposals, targets=None):
        instances, losses = super().forward(images, features, proposals, targets)
        self.odam_explainer.explain_detections(features, instances)
        return instances, losses


@register_explainer(GeneralizedRCNN)
class RCNNExplainer(Explainer):
    """
    Explains Faster R-CNN and what is built like it: ``GeneralizedRCNN`` with ROI heads that
    :func:`pooled_head` knows.
    """

    def __init__(self, model: GeneralizedRCNN, settings: ExplainSettings):
        super().__init__(model, settings)
        self.head = pooled_head(model.roi_heads)

    @property
    def num_classes(self) -> int:
        return self.model.roi_heads.num_classes

    def view(self) -> nn.Module:
        predictor = view_of(self.head.predictor, _Traced)
        roi_heads = view_of(
            self.model.roi_heads,
            _Explaining,
            children={"box_predictor": predictor},
            odam_explainer=self,
        )
        return view_of(self.model, children={"roi_heads": roi_heads})

    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Instances]:
        images = self.model.preprocess_image(batched_inputs)
        features = self.model.backbone(images.tensor)
        results = []
        for number, image_size in enumerate(images.image_sizes):
            found = Instances(image_size, pred_boxes=boxes[number], pred_classes=classes[number])
            found.odam_maps, found.scores, _ = self._maps(
                features, number, image_size, boxes[number], classes[number]
            )
            results.append(found)
        return results

    def explain_detections(self, features: dict[str, Tensor], instances: list[Instances]) -> None:
        """
        Args:
            features: the backbone's, as the ROI heads got them.
            instances: one for each image, with the field that the traced predictor set.
        """
        for number, found in enumerate(instances):
            proposals = found.get(_ORIGIN)
            maps, scores, boxes = self._maps(
                features, number, found.image_size, proposals, found.pred_classes
            )
            self.check_same(found, scores, boxes)
            found.odam_maps = maps
            found.remove(_ORIGIN)

    @torch.enable_grad()
    def autograd_outputs(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> tuple[list[Tensor], Tensor]:
        leaves = [features[name].detach().requires_grad_() for name in self.head.in_features]
        proposals = [found.get(_ORIGIN) for found in instances]
        classes = torch.cat([found.pred_classes for found in instances])
        pooled = self.head.pooler(leaves, proposals)
        outputs, _, _ = self._outputs(pooled, Boxes.cat(proposals), classes)
        return leaves, torch.stack(outputs, dim=1)

    def _maps(
        self,
        features: dict[str, Tensor],
        image: int,
        image_size: tuple[int, int],
        proposals: Boxes,
        classes: Tensor,
    ) -> tuple[OdamMaps, Tensor, Tensor]:
        """
        Heat maps of N proposals of one image, with scores (N,) and predicted boxes (N, 4).
        """
        levels = [features[name][image : image + 1] for name in self.head.in_features]
        if not len(proposals):
            empty = OdamMaps.empty([t.name for t in self.targets], levels[0])
            return empty, levels[0].new_zeros(0), levels[0].new_zeros(0, 4)
        parts = []
        for index in self._chunks(levels[0], proposals):
            part = proposals[index]
            gradient, scores, boxes = self._gradients(levels, part, classes[index])
            parts.append((self._heat_maps(levels, part, gradient, image_size), scores, boxes))
        maps, scores, boxes = zip(*parts, strict=True)
        return OdamMaps.cat(maps), torch.cat(scores), torch.cat(boxes)

    def _chunks(self, feature: Tensor, proposals: Boxes) -> Sequence[Tensor]:
        """Indices of proposals whose pooled gradients fit the memory bound."""
        rows, columns = self.head.spec(0).output_size
        pooled = feature.shape[1] * rows * columns * feature.element_size()
        count = max(1, self.settings.max_bytes // (pooled * (len(self.parts) + 1)))
        return torch.arange(len(proposals), device=feature.device).split(count)

    def _gradients(
        self, levels: list[Tensor], proposals: Boxes, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Run the head on n proposals: gradients (n, T, C, R, S) of the targets with respect to the
        pooled features, probabilities (n,) of ``classes`` and predicted boxes (n, 4).
        """
        pooled = self.head.pooler(levels, [proposals]).detach()
        with torch.enable_grad():
            pooled.requires_grad_()
            outputs, scores, boxes = self._outputs(pooled, proposals, classes)
            last = len(outputs) - 1
            gradient = [
                torch.autograd.grad(output.sum(), pooled, retain_graph=number < last)[0]
                for number, output in enumerate(outputs)
            ]
        return torch.stack(gradient, dim=1), scores.detach(), boxes.detach()

    def _outputs(
        self, pooled: Tensor, proposals: Boxes, classes: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """T targets (n,) as the head gives them, probabilities (n,) and boxes (n, 4)."""
        given = Instances((0, 0), proposal_boxes=proposals)
        row = torch.arange(len(proposals), device=pooled.device)
        predictions = self.head.predict(pooled)
        (probabilities,) = self.head.predictor.predict_probs(predictions, [given])
        (boxes,) = self.head.predictor.predict_boxes(predictions, [given])
        # One box for each class, or one for all of them.
        boxes = boxes.view(len(row), -1, 4)
        boxes = boxes[row, classes if boxes.shape[1] > 1 else 0]
        scores = predictions[0] if self.settings.score == "logit" else probabilities
        outputs = [_output(t, scores, outward(boxes), classes, row) for t in self.parts]
        return outputs, probabilities[row, classes], boxes

    def _heat_maps(
        self,
        levels: list[Tensor],
        proposals: Boxes,
        gradient: Tensor,
        image_size: tuple[int, int],
    ) -> OdamMaps:
        """Carry the gradients of pooled features to the feature maps that they came from."""
        level_of = self.head.levels(proposals)
        # Boxes are float32 in Detectron2; RoIAlign computes in the dtype of the features.
        tensor = proposals.tensor.to(gradient.dtype)
        found, order = [], []
        for level in level_of.unique().tolist():
            index = (level_of == level).nonzero().squeeze(1)
            feature, spec = levels[level][0], self.head.spec(level)
            values, origins = pooled_heat_maps(
                feature,
                tensor[index],
                gradient[index],
                spec,
                self.settings.smoothing_sigma,
            )
            pair = origins.new_ones(len(index), 2)
            found.append(
                self.pack(
                    values,
                    origins=origins,
                    strides=values.new_full((len(index),), 1 / spec.spatial_scale),
                    grid_sizes=pair * origins.new_tensor(feature.shape[-2:]),
                    image_sizes=pair * origins.new_tensor(image_size),
                    levels=level_of[index],
                )
            )
            order.append(index)
        return OdamMaps.cat(found)[torch.cat(order).argsort()]


def _output(target: Target, scores: Tensor, sides: Tensor, classes: Tensor, row: Tensor) -> Tensor:
    """(n,) values of one target, one for each instance."""
    if target.kind == "side":
        return sides[:, target.index]
    return scores[row, classes if target.index is None else target.index]

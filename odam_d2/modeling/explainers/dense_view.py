"""How a dense detector runs when it explains what it detects, or reads given boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from odam_d2.modeling.views import view_of

from .anchors import ORIGIN, TracedDecoding
from .base import GENERAL_WAY, UnsupportedModelError
from .checks import check_outputs
from .reading import Reading

if TYPE_CHECKING:
    from .dense import DenseExplainer

__all__ = ["ExplainingDetector", "read_given_boxes"]


class _KeepingOutputs(TracedDecoding):
    """Mixin for a ``DenseDetector``: what its head gives is kept while it decides."""

    def odam_infer(self, images, features, predictions):
        """The detections, while the explainer's ``outputs`` are those of the head."""
        explainer = self.odam_explainer
        chosen = explainer.check_run(images, features, predictions)
        # Where transposing is not a copy, Detectron2's sigmoid_ would overwrite what is kept.
        kept = [
            [x.clone() if _transposes_in_place(x, size) else x for x in levels]
            for levels, size in zip(chosen, explainer.output_sizes, strict=True)
        ]
        results = super().forward_inference(images, features, predictions)
        explainer.outputs = explainer.tracing.outputs = kept
        return results


class ExplainingDetector(_KeepingOutputs):
    """Mixin for a ``DenseDetector``: detections get ``odam_maps`` on the way out."""

    def forward_inference(self, images, features, predictions):
        explainer = self.odam_explainer
        try:
            results = self.odam_infer(images, features, predictions)
            results = explainer.explain_traced(images, features, results)
        finally:
            explainer.release()
        for found in results:
            found.remove(ORIGIN)
        explainer.remember(results)
        return results


def read_given_boxes(
    explainer: DenseExplainer,
    batched_inputs: list[dict],
    boxes: Sequence[Boxes],
    classes: Sequence[Tensor],
) -> Reading:
    """
    Where the model would read boxes, while it detects.

    Args:
        boxes, classes: see ``Explainer.explain_boxes``; N > 0.

    Raises:
        UnsupportedModelError: it decodes something else than what is explained.
    """
    view = view_of(
        explainer.model,
        _ReadingBoxes,
        children=explainer.watched_children(explainer),
        odam_explainer=explainer,
        odam_given=(boxes, classes),
        odam_readings=[],
    )
    outputs = view.forward(batched_inputs)
    if len(view.odam_readings) != 1:
        raise UnsupportedModelError(
            f"{explainer.name} does not decode all images at once, so that boxes cannot be given; "
            f"{GENERAL_WAY}"
        )
    check_outputs(explainer.name, outputs, explainer.said)
    explainer.said.clear()
    return view.odam_readings[0]


class _ReadingBoxes(_KeepingOutputs):
    """Mixin for a ``DenseDetector``: it is seen what is decoded at the anchors of given boxes."""

    def forward_inference(self, images, features, predictions):
        explainer = self.odam_explainer
        boxes, classes = self.odam_given
        object.__setattr__(self, "odam_decoded", [])
        results = self.odam_infer(images, features, predictions)
        detected = explainer.read_traced(images, features, results)
        if len(detected):
            said = explainer.say_again(detected)
            explainer.check_same(detected, results, said.scores, said.boxes)
        anchors = self.anchor_generator(features)
        origins = [explainer.nearest(of_image, anchors) for of_image in boxes]
        reading = explainer.read_anchors(images, features, origins, classes)
        said = explainer.say_again(reading)
        explainer.check_same(reading, self._at(origins, images), said.scores, said.boxes)
        explainer.remember(results)
        self.odam_readings.append(reading)
        return results

    def _decode_multi_level_predictions(self, *args, **kwargs):
        self.odam_decoded.append([])
        return super()._decode_multi_level_predictions(*args, **kwargs)

    def _decode_per_level_predictions(self, anchors, pred_scores, pred_deltas, *args):
        found = super()._decode_per_level_predictions(anchors, pred_scores, pred_deltas, *args)
        self.odam_decoded[-1].append((anchors, pred_scores, pred_deltas))
        if found.scores.dtype == torch.float64:  # which Detectron2's NMS does not take
            found.scores = found.scores.float()
        return found

    def _at(self, origins: Sequence[Tensor], images) -> list[Instances]:
        """What was decoded at these places, for the given classes."""
        found = []
        for number, (places, labels) in enumerate(zip(origins, self.odam_given[1], strict=True)):
            levels = self.odam_decoded[number]
            scores, boxes = [], []
            for (level, index), label in zip(places.tolist(), labels.tolist(), strict=True):
                anchors, of_classes, deltas = levels[level]
                scores.append(of_classes[index, label])
                at = slice(index, index + 1)
                boxes.append(self.box2box_transform.apply_deltas(deltas[at], anchors.tensor[at])[0])
            decoded = Instances(images.image_sizes[number])
            like = levels[0][1]
            decoded.scores = torch.stack(scores) if scores else like.new_zeros(0)
            decoded.pred_boxes = Boxes(torch.stack(boxes) if boxes else like.new_zeros(0, 4))
            found.append(decoded)
        return found


def _transposes_in_place(outputs: Tensor, per_anchor: int) -> bool:
    """Whether Detectron2's (I, A K, H, W) to (I, H W A, K) is a view of the same memory."""
    by_anchor = outputs.unflatten(1, (-1, per_anchor)).permute(0, 3, 4, 1, 2)
    try:
        by_anchor.view(len(outputs), -1, per_anchor)
    except RuntimeError:
        return False
    return True

"""Views of dense detectors: their inference is handed to whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .anchors import TracedDecoding

__all__ = ["Decoded", "RecordedDecoding", "RecordedDetector", "kept_outputs"]


class RecordedDetector(TracedDecoding):
    """
    Mixin for a ``DenseDetector``.

    Attributes:
        odam_inference: takes the place of ``forward_inference``, which is its first argument.
    """

    odam_inference: Callable

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        return self.odam_inference(super().forward_inference, images, features, predictions)


class Decoded(NamedTuple):
    """What a level's predictions of an image were decoded from: (R, 4), (R, K) and (R, 4)."""

    anchors: Boxes
    scores: Tensor
    deltas: Tensor


class RecordedDecoding(RecordedDetector):
    """
    As above, and what is decoded is kept.

    Attributes:
        odam_decoded: of each image and level.
    """

    odam_decoded: list[list[Decoded]]

    def _decode_multi_level_predictions(self, *args: Any, **kwargs: Any) -> Instances:
        self.odam_decoded.append([])
        return super()._decode_multi_level_predictions(*args, **kwargs)

    def _decode_per_level_predictions(
        self, anchors: Boxes, pred_scores: Tensor, pred_deltas: Tensor, *args: Any
    ) -> Instances:
        found = super()._decode_per_level_predictions(anchors, pred_scores, pred_deltas, *args)
        self.odam_decoded[-1].append(Decoded(anchors, pred_scores, pred_deltas))
        if found.scores.dtype == torch.float64:  # which Detectron2's NMS does not take
            found.scores = found.scores.float()
        return found

    def odam_at(
        self,
        origins: Sequence[Tensor],
        classes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """
        What was decoded at these places.

        Args:
            origins: for each image (n, 2), level and index of the anchor.
            classes: for each image (n,).
            sizes: (height, width) of each image.
        """
        found = []
        of_images = zip(self.odam_decoded, origins, classes, sizes, strict=True)
        for levels, places, labels, size in of_images:
            scores, boxes = [], []
            for (level, index), label in zip(places.tolist(), labels.tolist(), strict=True):
                anchors, of_classes, deltas = levels[level]
                scores.append(of_classes[index, label])
                at = slice(index, index + 1)
                boxes.append(self.box2box_transform.apply_deltas(deltas[at], anchors.tensor[at])[0])
            decoded, like = Instances(size), levels[0].scores
            decoded.scores = torch.stack(scores) if scores else like.new_zeros(0)
            decoded.pred_boxes = Boxes(torch.stack(boxes) if boxes else like.new_zeros(0, 4))
            found.append(decoded)
        return found


def kept_outputs(
    predictions: Sequence[Sequence[Tensor]], sizes: Sequence[int]
) -> list[list[Tensor]]:
    """
    What a head gave, safe from being overwritten while it is decoded: Detectron2's ``sigmoid_``
    does, where transposing is not a copy.

    Args:
        predictions: for each predictor and level, (I, A * size, H, W).
        sizes: outputs for each anchor of each predictor.
    """
    return [
        [x if _is_copied(x, size) else x.clone() for x in levels]
        for levels, size in zip(predictions, sizes, strict=True)
    ]


def _is_copied(outputs: Tensor, per_anchor: int) -> bool:
    """Whether bringing (I, A K, H, W) into the order (I, H W A, K) surely is a copy."""
    cells, anchors = outputs.shape[2:].numel(), outputs.shape[1] // per_anchor
    return outputs.is_contiguous() and cells > 1 and anchors > 1

"""Training the heat maps of dense detectors: see their positives, hand their maps to a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.structures import ImageList
from torch import Tensor, nn

from odam_d2.core.cell_gradients import cell_heat_maps
from odam_d2.core.gradients import precise
from odam_d2.core.window_cells import Windows
from odam_d2.modeling.losses import LOSS, Labels, OdamTraining, Positives, choose
from odam_d2.modeling.views import class_name, view_of, watched

from .anchors import Anchors
from .base import UnsupportedModelError
from .checks import check_head
from .towers import convolutions

if TYPE_CHECKING:
    from .dense import DenseExplainer

__all__ = ["dense_training_view"]


def dense_training_view(explainer: DenseExplainer, training: OdamTraining) -> nn.Module:
    """See ``Explainer.training_view``."""
    _check_tower(explainer)
    return view_of(
        explainer.model,
        _Training,
        children={"head": watched(explainer.traced_head(), explainer.head_calls)},
        writes_to=explainer.original,
        odam_explainer=explainer,
        odam_loss=training,
    )


def _check_tower(explainer: DenseExplainer) -> None:
    head = class_name(explainer.model.head)
    if not explainer.local:
        raise UnsupportedModelError(
            f"the towers of {head} are no chain of convolutions, norms and ReLUs, so its heat maps "
            "cannot be trained: leave MODEL.ODAM.LOSS.NAME empty"
        )
    _, tower = next(iter(explainer.towers.items()))
    for module in explainer.tower(tower).modules():
        if isinstance(module, (nn.SyncBatchNorm, NaiveSyncBatchNorm)):
            raise UnsupportedModelError(
                f"the towers of {head} have SyncBN, whose statistics in training are those of "
                "several processes; heat maps can be trained with GN, BN or FrozenBN there"
            )


class _Training:
    """Mixin for a ``DenseDetector``: one more loss, on the maps of the positives."""

    def label_anchors(self, anchors, gt_instances):
        labels = super().label_anchors(anchors, gt_instances)
        object.__setattr__(self, "odam_labels", labels)
        return labels

    def forward_training(self, images, features, predictions, gt_instances):
        explainer, training = self.odam_explainer, self.odam_loss
        sizes = explainer.output_sizes
        check_head(explainer.name, explainer.head_calls, features, predictions, sizes)
        losses = super().forward_training(images, features, predictions, gt_instances)
        read = features if training.trains else [feature.detach() for feature in features]
        try:
            with torch.autocast(read[0].device.type, enabled=False):
                batch = _positives(explainer, images, read, predictions, self.odam_labels, training)
        finally:
            explainer.release()
        losses[LOSS] = training([batch], features[-1])
        return losses


def _positives(
    explainer: DenseExplainer,
    images: ImageList,
    features: list[Tensor],
    predictions: list[list[Tensor]],
    matches: tuple[list[Tensor], list[Tensor]],
    training: OdamTraining,
) -> list[Positives]:
    """
    The positives of each image, with their maps.

    Args:
        features: of each level, (I, C, H, W), with a graph.
        predictions: of each predictor and level.
        matches: for each image, labels (R,) and boxes (R, 4) that its anchors were matched with.
    """
    features = [precise(feature) for feature in features]
    origins, labels = [], []
    for number, of_image in enumerate(zip(*matches, strict=True)):
        of_predictors = [[x[number : number + 1] for x in levels] for levels in predictions]
        found, of_labels = _labels(explainer, features, of_predictors, *of_image)
        index = choose(of_labels, training.max_samples)
        origins.append(found[index])
        labels.append(of_labels[index])
    if not any(len(of_image) for of_image in origins):
        none = features[0].new_zeros((0, 0, 0))
        return [Positives(none, of_labels) for of_labels in labels]
    classes = [of_labels.classes for of_labels in labels]
    reading = explainer.read_anchors(images, features, origins, classes)
    windows = _logit_maps(explainer, features, reading.origin, reading.classes, training)
    corner = torch.stack([windows.row, windows.column], dim=1)
    return explainer.positives(reading, (windows.values, corner), labels, training.grid_stride)


def _labels(
    explainer: DenseExplainer,
    features: list[Tensor],
    predictions: list[list[Tensor]],
    matched_classes: Tensor,
    matched_boxes: Tensor,
) -> tuple[Tensor, Labels]:
    """(N, 2) level and index of the anchors of an image that are positives, and their labels."""
    model = explainer.model
    rows = ((matched_classes >= 0) & (matched_classes < explainer.num_classes)).nonzero().squeeze(1)
    anchors = model.anchor_generator(features)
    ends = torch.tensor([len(of_level) for of_level in anchors], device=rows.device).cumsum(0)
    level = torch.bucketize(rows, ends, right=True)
    first = torch.cat([ends.new_zeros(1), ends[:-1]])[level]
    origins = torch.stack([level, rows - first], dim=1)
    chosen = explainer.anchors_at(features, [origins])
    deltas = chosen.read(predictions[1], 4).detach()
    boxes = model.box2box_transform.apply_deltas(deltas, chosen.boxes)
    return origins, Labels.of_matches(matched_classes[rows], boxes, matched_boxes[rows])


def _logit_maps(
    explainer: DenseExplainer,
    features: list[Tensor],
    anchors: Anchors,
    classes: Tensor,
    training: OdamTraining,
) -> Windows:
    """Maps (N, 1, h, h) of each positive's class logit, differentiated as often as asked for."""
    predictor, tower = next(iter(explainer.towers.items()))
    rows = getattr(explainer.model.head, predictor).weight
    rows = rows[anchors.number * explainer.num_classes + classes]
    kernels = [conv.weight for conv in convolutions(explainer.tower(tower))]
    derivatives = list(zip(*explainer.masks[tower], strict=True))
    if not (training.second_order and training.trains):
        rows = rows.detach()
        kernels = [kernel.detach() for kernel in kernels]
        derivatives = [[x.detach() for x in levels] for levels in derivatives]
    sigma = explainer.settings.smoothing_sigma
    return cell_heat_maps(kernels, rows, derivatives, features, anchors.cells, sigma)

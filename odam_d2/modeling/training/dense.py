"""Training the heat maps of dense detectors: see their positives, hand their maps to a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.cell_gradients import cell_heat_maps
from odam_d2.core.dense_windows import ConvLayer
from odam_d2.core.gradients import precise
from odam_d2.core.window_cells import Windows
from odam_d2.modeling.adapters.anchors import Anchors
from odam_d2.modeling.adapters.checks import check_head
from odam_d2.modeling.adapters.dense import DenseAdapter
from odam_d2.modeling.adapters.dense_records import DenseRecording
from odam_d2.modeling.adapters.towers import convolutions, level_scales
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.errors import UnsupportedModelError
from odam_d2.modeling.losses import LOSS, Labels, OdamTraining, Positives, limited
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import Viewed, class_name, recorded, with_overrides

from .view import positives, training_view

__all__: list[str] = []


@training_view.register
def _(adapter: DenseAdapter, training: OdamTraining, settings: ExplainSettings) -> nn.Module:
    _check_tower(adapter)
    recording = adapter.new_recording()
    _, tower = next(iter(adapter.towers.items()))  # maps are of the class logit
    head = adapter.traced_head(recording.masks, [tower])
    generator = recorded(adapter.model.anchor_generator, recording.anchor_calls)
    return with_overrides(
        adapter.model,
        _Training,
        children={
            "head": recorded(head, recording.head_calls),
            "anchor_generator": generator,
        },
        writes_to=adapter.original,
        odam_adapter=adapter,
        odam_recording=recording,
        odam_loss=training,
        odam_settings=settings,
    )


def _check_tower(adapter: DenseAdapter) -> None:
    head = class_name(adapter.model.head)
    if not adapter.local:
        raise UnsupportedModelError(
            f"the towers of {head} are no chain of convolutions, norms and ReLUs, so its heat maps "
            "cannot be trained: leave MODEL.ODAM.LOSS.NAME empty"
        )
    _, tower = next(iter(adapter.towers.items()))
    for module in adapter.tower(tower).modules():
        if isinstance(module, (nn.SyncBatchNorm, NaiveSyncBatchNorm)):
            raise UnsupportedModelError(
                f"the towers of {head} have SyncBN, whose statistics in training are those of "
                "several processes; heat maps can be trained with GN, BN or FrozenBN there"
            )


class _Training(Viewed):
    """Mixin for a ``DenseDetector``: one more loss, on the maps of the positives."""

    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels = super().label_anchors(anchors, gt_instances)
        object.__setattr__(self, "odam_labels", labels)
        return labels

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict:
        adapter, recording, training = self.odam_adapter, self.odam_recording, self.odam_loss
        sizes = adapter.output_sizes
        check_head(adapter.name, recording.head_calls, features, predictions, sizes)
        losses = super().forward_training(images, features, predictions, gt_instances)
        read = features if training.trains else [feature.detach() for feature in features]
        with torch.autocast(read[0].device.type, enabled=False):
            read = [precise(feature) for feature in read]
            matches, settings = self.odam_labels, self.odam_settings
            batch = _positives(
                adapter, recording, images, read, predictions, matches, training, settings
            )
        losses[LOSS] = training([batch], features[-1])
        return losses


def _positives(
    adapter: DenseAdapter,
    recording: DenseRecording,
    images: ImageList,
    features: list[Tensor],
    predictions: list[list[Tensor]],
    matches: tuple[list[Tensor], list[Tensor]],
    training: OdamTraining,
    settings: ExplainSettings,
) -> list[Positives]:
    """
    The positives of each image, with their maps.

    Args:
        features: of each level, (I, C, H, W), with a graph.
        predictions: of each predictor and level.
        matches: for each image, labels (R,) and boxes (R, 4) that its anchors were matched with.
    """
    found = _labels(adapter, recording, features, predictions[1], matches)
    origins, labels = zip(*limited(*found, training.max_samples), strict=True)
    if not any(len(of_image) for of_image in origins):
        none = features[0].new_zeros((0, 0, 0))
        return [Positives(none, of_labels) for of_labels in labels]
    classes = [of_labels.classes for of_labels in labels]
    trace = adapter.trace_anchors(recording, images, features, predictions, origins, classes)
    windows = _logit_maps(adapter, trace, training, settings)
    corner = torch.stack([windows.row, windows.column], dim=1)
    return positives(adapter, trace, (windows.values, corner), labels, training.grid_stride)


@torch.no_grad()
def _labels(
    adapter: DenseAdapter,
    recording: DenseRecording,
    features: list[Tensor],
    deltas: list[Tensor],
    matches: tuple[list[Tensor], list[Tensor]],
) -> tuple[Sequence[Tensor], list[Labels]]:
    """For each image (n, 2), level and index of its positives, and their labels."""
    model = adapter.model
    classes, boxes = (torch.stack(of_images) for of_images in matches)
    positive = (classes >= 0) & (classes < adapter.num_classes)
    counts = positive.sum(dim=1).tolist()
    image, rows = positive.nonzero().unbind(1)
    anchors = adapter.anchors_of(features, recording)
    ends = torch.tensor([len(of_level) for of_level in anchors], device=rows.device).cumsum(0)
    level = torch.bucketize(rows, ends, right=True)
    first = torch.cat([ends.new_zeros(1), ends[:-1]])[level]
    origins = torch.stack([level, rows - first], dim=1).split(counts)
    chosen = adapter.anchors_at(features, origins, recording)
    predicted = model.box2box_transform.apply_deltas(chosen.read(deltas, 4), chosen.boxes)
    labels = Labels.of_matches(classes[image, rows], predicted, boxes[image, rows])
    return origins, labels.split(counts)


def _logit_maps(
    adapter: DenseAdapter, trace: Trace, training: OdamTraining, settings: ExplainSettings
) -> Windows:
    """Maps (N, 1, h, h) of each positive's class logit, differentiated as often as asked for."""
    anchors: Anchors = trace.places.anchors
    predictor, tower = next(iter(adapter.towers.items()))
    rows = getattr(adapter.model.head, predictor).weight
    rows = rows[anchors.number * adapter.num_classes + trace.classes]
    of_layers = list(zip(*trace.places.masks[tower], strict=True))
    active = [[of_level.active for of_level in levels] for levels in of_layers]
    layers = [
        ConvLayer(conv.weight, level_scales(levels))
        for conv, levels in zip(convolutions(adapter.tower(tower)), of_layers, strict=True)
    ]
    if not (training.second_order and training.trains):
        rows = rows.detach()
        layers = [ConvLayer(w.detach(), s if s is None else s.detach()) for w, s in layers]
    sigma = settings.smoothing_sigma
    return cell_heat_maps(layers, rows, active, trace.features, anchors.cells, sigma)

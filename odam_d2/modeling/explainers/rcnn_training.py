"""Training the heat maps of two-stage detectors: see their positives, hand their maps to a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.gradients import precise
from odam_d2.modeling.losses import LOSS, Labels, OdamTraining, Positives, choose
from odam_d2.modeling.state import in_evaluation
from odam_d2.modeling.views import view_of, with_replaced

from .pooled_heads import Regions, Stage, pooled_head
from .rcnn_view import check_heads

if TYPE_CHECKING:
    from .rcnn import RCNNExplainer

__all__ = ["rcnn_training_view"]


# ROI heads that were seen to do with proposals what is explained, once, with a few of them.
_CHECKED: WeakSet[nn.Module] = WeakSet()
_FEW = 2


def rcnn_training_view(explainer: RCNNExplainer, training: OdamTraining) -> nn.Module:
    """See ``Explainer.training_view``."""
    matched: list[tuple] = []
    predictors = {
        stage.predictor: view_of(
            stage.predictor, _RecordingPredictor, writes_to=stage.predictor, odam_matched=matched
        )
        for stage in explainer.head.stages
    }
    roi_heads = explainer.model.roi_heads
    roi_heads = view_of(
        with_replaced(roi_heads, predictors),
        _TrainingHeads,
        writes_to=roi_heads,
        odam_explainer=explainer,
        odam_loss=training,
        odam_matched=matched,
    )
    children = {"roi_heads": roi_heads}
    return view_of(explainer.model, children=children, writes_to=explainer.original)


def _relu(x: Tensor) -> Tensor:
    """
    ReLU whose derivative counts as a constant, which it is nearly everywhere. Differentiating
    torch's own twice sends zeros back through the whole head, and through RoIAlign.
    """
    return torch.where(x > 0, x, torch.zeros_like(x))


class _ConstantMask:
    """Mixin for ``nn.ReLU``, see :func:`_relu`."""

    def forward(self, x):
        return _relu(x)


def _with_constant_masks(roi_heads: nn.Module) -> nn.Module:
    """ROI heads that compute the same."""
    masked = {m: view_of(m, _ConstantMask) for m in roi_heads.modules() if type(m) is nn.ReLU}
    convolutions = (m for m in roi_heads.modules() if isinstance(m, Conv2d))
    masked |= {m: view_of(m, activation=_relu) for m in convolutions if m.activation is F.relu}
    return with_replaced(roi_heads, masked)


class _RecordingPredictor:
    """Mixin for a box predictor: what its losses are computed from is added to ``odam_matched``."""

    def losses(self, predictions, proposals):
        # Fields of their own: Detectron2 may give the proposals other boxes later on.
        kept = [Instances(p.image_size, **p.get_fields()) for p in proposals]
        self.odam_matched.append((predictions, kept))
        return super().losses(predictions, proposals)


class _TrainingHeads:
    """Mixin for ROI heads: one more loss, on the maps of the positives."""

    def forward(self, images, features, proposals, targets=None):
        self.odam_matched.clear()
        proposals, losses = super().forward(images, features, proposals, targets)
        stages = _positives(
            self.odam_explainer, images, features, self.odam_matched, self.odam_loss
        )
        self.odam_matched.clear()
        losses[LOSS] = self.odam_loss(stages, features[self.odam_explainer.feature_names[-1]])
        return proposals, losses


def _positives(
    explainer: RCNNExplainer,
    images: ImageList,
    features: dict[str, Tensor],
    matched: Sequence[tuple],
    training: OdamTraining,
) -> list[list[Positives]]:
    """
    The positives of each stage and image, with their maps.

    Args:
        features: of the backbone, (I, C, H, W) each, with a graph.
        matched: predictions and labelled proposals of each stage.
    """
    levels = [features[name] for name in explainer.feature_names]
    if not training.trains:
        levels = [level.detach() for level in levels]
    # The heads run as they will when they are explained: no dropout, batch norm with its running
    # statistics. So nothing that runs here changes a statistic or draws a random number.
    with in_evaluation(explainer.model.roi_heads) as roi_heads:
        explainer.head = pooled_head(_with_constant_masks(roi_heads))
        if explainer.model.roi_heads not in _CHECKED:
            few = [given[:_FEW] for given in matched[0][1]]
            check_heads(explainer, images, features, few)
            _CHECKED.add(explainer.model.roi_heads)
        return [
            _stage_positives(explainer, stage, images, levels, *of_stage, training)
            for stage, of_stage in zip(explainer.head.stages, matched, strict=True)
        ]


def _stage_positives(
    explainer: RCNNExplainer,
    stage: Stage,
    images: ImageList,
    features: list[Tensor],
    predictions: tuple[Tensor, Tensor],
    proposals: list[Instances],
    training: OdamTraining,
) -> list[Positives]:
    boxes, labels = [], []
    start = 0
    for given in proposals:
        of_image = tuple(part[start : start + len(given)].detach() for part in predictions)
        start += len(given)
        found, of_labels = _labels(stage, of_image, given, explainer.num_classes)
        index = choose(of_labels, training.max_samples)
        boxes.append(found[index])
        labels.append(of_labels[index])
    if not any(len(of_image) for of_image in boxes):
        none = features[0].new_zeros((0, 0, 0))
        return [Positives(none, of_labels) for of_labels in labels]
    classes = [of_labels.classes for of_labels in labels]
    with torch.autocast(features[0].device.type, enabled=False):
        features = [precise(feature) for feature in features]
        regions = Regions(torch.cat([b.tensor for b in boxes])[:, None])
        reading = explainer.read_regions(images, features, regions, classes)
        gradient = _logit_gradients(explainer, stage, boxes, reading, training)
        values, origins = explainer.stage_windows(reading, 0, gradient[:, None])
        return explainer.positives(reading, (values.relu(), origins), labels, training.grid_stride)


def _labels(
    stage: Stage, predictions: tuple[Tensor, Tensor], given: Instances, num_classes: int
) -> tuple[Boxes, Labels]:
    """The proposals of an image that were matched with an object, and which one that is."""
    rows = ((given.gt_classes >= 0) & (given.gt_classes < num_classes)).nonzero().squeeze(1)
    chosen, classes = given.proposal_boxes[rows], given.gt_classes[rows]
    matched = Instances(given.image_size, proposal_boxes=chosen)
    (boxes,) = stage.predictor.predict_boxes(tuple(p[rows] for p in predictions), [matched])
    boxes = boxes.view(len(rows), boxes.shape[1] // 4, 4)
    # One box for each class, or one for all of them.
    boxes = boxes[torch.arange(len(rows)), classes if boxes.shape[1] > 1 else 0]
    # Without any object in the image Detectron2 sets no boxes.
    gt_boxes = given.gt_boxes.tensor[rows] if given.has("gt_boxes") else boxes
    return chosen, Labels.of_matches(classes, boxes, gt_boxes)


def _logit_gradients(explainer, stage, boxes, reading, training) -> Tensor:
    """
    Derivative of each positive's class logit by its pooled feature, (N, C, R, S), with a graph to
    the head's weights where the loss is of second order.

    Positives are pooled and read once more: a gradient through all the proposals of a batch would
    cost four times as much.
    """
    pooled = explainer.head.pooler(reading.features, boxes)
    create_graph = training.second_order and training.trains
    with torch.enable_grad():
        if not create_graph:
            pooled = pooled.detach()
        if not pooled.requires_grad:
            pooled.requires_grad_()
        logits = stage.predict(pooled)[0]
        chosen = logits.gather(1, reading.classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, pooled, create_graph=create_graph)
    return gradient

"""Training the heat maps of two-stage detectors: see their positives, hand their maps to a loss."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.gradients import precise
from odam_d2.modeling.adapters.pooled_calls import Regions
from odam_d2.modeling.adapters.pooled_heads import Stage
from odam_d2.modeling.adapters.rcnn import RCNNAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.attribution.pooled import stage_windows
from odam_d2.modeling.errors import UnsupportedModelError
from odam_d2.modeling.losses import LOSS, Labels, OdamTraining, Positives, choose
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import in_evaluation
from odam_d2.modeling.views import Call, Viewed, with_overrides, with_replaced

from .view import positives, training_view

__all__: list[str] = []


# ROI heads that were seen to do with proposals what is explained, once, with a few of them.
_CHECKED: WeakSet[nn.Module] = WeakSet()
_FEW = 2


@training_view.register
def _(adapter: RCNNAdapter, training: OdamTraining, settings: ExplainSettings) -> nn.Module:
    if not adapter.head.pools_plainly:
        raise UnsupportedModelError(
            f"{adapter.name}: its pooler does more than RoIAlign, so its heat maps cannot be "
            "trained: leave MODEL.ODAM.LOSS.NAME empty"
        )
    matched: list[tuple] = []
    predictors = {
        stage.predictor: with_overrides(
            stage.predictor, _RecordingPredictor, writes_to=stage.predictor, odam_matched=matched
        )
        for stage in adapter.head.stages
    }
    roi_heads = adapter.model.roi_heads
    roi_heads = with_overrides(
        with_replaced(roi_heads, predictors),
        _TrainingHeads,
        writes_to=roi_heads,
        odam_adapter=adapter,
        odam_loss=training,
        odam_matched=matched,
        odam_settings=settings,
    )
    children = {"roi_heads": roi_heads}
    return with_overrides(adapter.model, children=children, writes_to=adapter.original)


def _relu(x: Tensor) -> Tensor:
    """
    ReLU whose derivative counts as a constant, which it is nearly everywhere. Differentiating
    torch's own twice sends zeros back through the whole head, and through RoIAlign.
    """
    return torch.where(x > 0, x, torch.zeros_like(x))


class _ConstantMask(Viewed):
    """Mixin for ``nn.ReLU``, see :func:`_relu`."""

    def forward(self, x: Tensor) -> Tensor:
        return _relu(x)


def _with_constant_masks(roi_heads: nn.Module) -> nn.Module:
    """ROI heads that compute the same."""
    masked: dict[nn.Module, nn.Module] = {}
    masked |= {
        m: with_overrides(m, _ConstantMask) for m in roi_heads.modules() if type(m) is nn.ReLU
    }
    convolutions = (m for m in roi_heads.modules() if isinstance(m, Conv2d))
    masked |= {
        m: with_overrides(m, activation=_relu) for m in convolutions if m.activation is F.relu
    }
    return with_replaced(roi_heads, masked)


class _RecordingPredictor(Viewed):
    """Mixin for a box predictor: what its losses are computed from is added to ``odam_matched``."""

    def losses(self, predictions: tuple[Tensor, ...], proposals: list[Instances]) -> dict:
        # Fields of their own: Detectron2 may give the proposals other boxes later on.
        kept = [Instances(p.image_size, **p.get_fields()) for p in proposals]
        self.odam_matched.append((predictions, kept))
        return super().losses(predictions, proposals)


class _TrainingHeads(Viewed):
    """Mixin for ROI heads: one more loss, on the maps of the positives."""

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict]:
        self.odam_matched.clear()
        proposals, losses = super().forward(images, features, proposals, targets)
        stages = _positives(
            self.odam_adapter,
            images,
            features,
            self.odam_matched,
            self.odam_loss,
            self.odam_settings,
        )
        self.odam_matched.clear()
        losses[LOSS] = self.odam_loss(stages, features[self.odam_adapter.feature_names[-1]])
        return proposals, losses


def _positives(
    adapter: RCNNAdapter,
    images: ImageList,
    features: dict[str, Tensor],
    matched: Sequence[tuple],
    training: OdamTraining,
    settings: ExplainSettings,
) -> list[list[Positives]]:
    """
    The positives of each stage and image, with their maps.

    Args:
        features: of the backbone, (I, C, H, W) each, with a graph.
        matched: predictions and labelled proposals of each stage.
    """
    levels = [features[name] for name in adapter.feature_names]
    if not training.trains:
        levels = [level.detach() for level in levels]
    # The heads run as they will when they are explained: no dropout, batch norm with its running
    # statistics. So nothing that runs here changes a statistic or draws a random number.
    with in_evaluation(adapter.model.roi_heads) as roi_heads:
        adapter = adapter.with_heads(_with_constant_masks(roi_heads))
        if adapter.model.roi_heads not in _CHECKED:
            _check_heads(adapter, images, features, [given[:_FEW] for given in matched[0][1]])
            _CHECKED.add(adapter.model.roi_heads)
        return [
            _stage_positives(adapter, stage, images, levels, said, given, training, settings)
            for stage, (said, given) in zip(adapter.head.stages, matched, strict=True)
        ]


@torch.no_grad()
def _check_heads(
    adapter: RCNNAdapter,
    images: ImageList,
    features: dict[str, Tensor],
    proposals: Sequence[Instances],
) -> None:
    """
    Refuse ROI heads, in evaluation mode, that do something else with proposals than what is
    explained.

    Args:
        features: what the heads read.
        proposals: of each image; a few are enough.
    """
    boxes = [given.proposal_boxes for given in proposals]
    if not any(map(len, boxes)):
        return
    classes = [torch.zeros(len(b), dtype=torch.int64, device=b.device) for b in boxes]
    call = Call((images.tensor,), {}, features)
    call.see((images.tensor, features))
    recording = adapter.new_recording()
    recording.backbone_calls.append(call)
    heads = adapter.reading_heads(recording, boxes, classes, lambda trace: None)
    heads.forward(images, features, list(proposals))


def _stage_positives(
    adapter: RCNNAdapter,
    stage: Stage,
    images: ImageList,
    features: list[Tensor],
    predictions: tuple[Tensor, ...],
    proposals: list[Instances],
    training: OdamTraining,
    settings: ExplainSettings,
) -> list[Positives]:
    boxes, labels = [], []
    start = 0
    for given in proposals:
        of_image = tuple(part[start : start + len(given)].detach() for part in predictions)
        start += len(given)
        found, of_labels = _labels(stage, of_image, given, adapter.num_classes)
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
        trace = adapter.trace_regions(images, features, regions, classes)
        gradient = _logit_gradients(adapter, stage, boxes, trace, training)
        values, origins = stage_windows(
            adapter, trace, 0, gradient[:, None], settings.smoothing_sigma, settings.max_bytes
        )
        windows = (values.relu(), origins)
        return positives(adapter, trace, windows, labels, training.grid_stride)


def _labels(
    stage: Stage, predictions: tuple[Tensor, ...], given: Instances, num_classes: int
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


def _logit_gradients(
    adapter: RCNNAdapter,
    stage: Stage,
    boxes: Sequence[Boxes],
    trace: Trace,
    training: OdamTraining,
) -> Tensor:
    """
    Derivative of each positive's class logit by its pooled feature, (N, C, R, S), with a graph to
    the head's weights where the loss is of second order.

    Positives are pooled and read once more: a gradient through all the proposals of a batch would
    cost four times as much.
    """
    pooled = adapter.head.pooler(trace.features, list(boxes))
    create_graph = training.second_order and training.trains
    with torch.enable_grad():
        if not create_graph:
            pooled = pooled.detach()
        if not pooled.requires_grad:
            pooled.requires_grad_()
        logits = stage.predict(pooled)[0]
        chosen = logits.gather(1, trace.classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, pooled, create_graph=create_graph)
    return gradient

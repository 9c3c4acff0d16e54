"""Training the heat maps of two-stage detectors: see their positives, hand their maps to a loss."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from weakref import WeakSet

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.gradients import precise
from odam_d2.modeling.adapters.pooled_calls import Regions
from odam_d2.modeling.adapters.rcnn import RCNNAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.attribution.pooled import pooled_windows
from odam_d2.modeling.errors import UnsupportedModelError
from odam_d2.modeling.losses import LOSS, Labels, OdamTraining, Positives, limited
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import in_evaluation
from odam_d2.modeling.views import Call, Viewed, with_overrides, with_replaced

from .view import positives, training_view

__all__: list[str] = []


# ROI heads that were seen to do with proposals what is explained, once, with a few of them.
_CHECKED: WeakSet[nn.Module] = WeakSet()
_FEW = 2

# Windows that are computed together, in units of what explaining allows. A graph keeps them all
# anyway, however they are divided.
_KEPT_CHUNKS = 8


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
    return x.masked_fill(x <= 0, 0)


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
        groups = limited(*_labels(adapter, matched), training.max_samples)
        boxes, labels = zip(*groups, strict=True)
        found = _maps(adapter, images, levels, boxes, labels, training, settings)
        stages = len(matched)
        return [found[stage::stages] for stage in range(stages)]


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
    heads = adapter.reading_heads(
        recording, boxes, classes, lambda trace: adapter.check_apart(adapter.pooled(trace))
    )
    heads.forward(images, features, list(proposals))


@torch.no_grad()
def _labels(adapter: RCNNAdapter, matched: Sequence[tuple]) -> tuple[list[Tensor], list[Labels]]:
    """
    Of each stage of each image, image by image, the proposals that were matched with an object,
    (n, 4), and which one that is.
    """
    given = [of_image for _, of_stage in matched for of_image in of_stage]
    classes = torch.cat([x.gt_classes for x in given])
    proposals = torch.cat([x.proposal_boxes.tensor for x in given])
    # Without any object in an image Detectron2 sets no boxes there.
    with_objects = [x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes for x in given]
    objects = torch.cat([x.tensor for x in with_objects])
    rows = ((classes >= 0) & (classes < adapter.num_classes)).nonzero().squeeze(1)
    ends = [0, *accumulate(map(len, given))]
    on_host = rows.tolist()
    before = [bisect_left(on_host, end) for end in ends]
    counts = [end - start for start, end in pairwise(before)]
    proposals, classes = proposals[rows], classes[rows]
    images, boxes = len(given) // len(matched), []
    for number, (stage, (predictions, _)) in enumerate(
        zip(adapter.head.stages, matched, strict=True)
    ):
        first, last = number * images, (number + 1) * images
        here = slice(before[first], before[last])
        of_rows = tuple(part[rows[here] - ends[first]] for part in predictions)
        alone = [Instances((0, 0), proposal_boxes=Boxes(proposals[here]))]
        (of_classes,) = stage.predictor.predict_boxes(of_rows, alone)
        of_classes = of_classes.view(len(of_rows[0]), of_classes.shape[1] // 4, 4)
        # One box for each class, or one for all of them.
        row = torch.arange(len(of_classes), device=rows.device)
        boxes.append(of_classes[row, classes[here] if of_classes.shape[1] > 1 else 0])
    labels = Labels.of_matches(classes, torch.cat(boxes), objects[rows]).split(counts)
    by_image = [n for image in range(images) for n in range(image, len(given), images)]
    of_groups = proposals.split(counts)
    return [of_groups[n] for n in by_image], [labels[n] for n in by_image]


def _maps(
    adapter: RCNNAdapter,
    images: ImageList,
    features: list[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Labels],
    training: OdamTraining,
    settings: ExplainSettings,
) -> list[Positives]:
    """
    Of groups of positives, one for each stage of each image.

    Args:
        boxes: (n, 4) that each group was pooled from.
    """
    if not any(map(len, boxes)):
        none = features[0].new_zeros((0, 0, 0))
        return [Positives(none, of_group) for of_group in labels]
    stages = len(adapter.head.stages)
    classes = [of_group.classes for of_group in labels]
    of_images = [torch.cat(classes[n : n + stages]) for n in range(0, len(classes), stages)]
    with torch.autocast(features[0].device.type, enabled=False):
        features = [precise(feature) for feature in features]
        regions = Regions(torch.cat(list(boxes))[:, None])
        trace = adapter.trace_regions(images, features, regions, of_images)
        gradient = _logit_gradients(adapter, trace, of_images, classes, training)
        max_bytes = _KEPT_CHUNKS * settings.max_bytes
        sigma = settings.smoothing_sigma
        gradients = [([0], gradient[:, None])]
        values, origins = pooled_windows(adapter, trace, gradients, 1, sigma, max_bytes)
        windows = (values.relu(), origins)
        return positives(adapter, trace, windows, labels, training.grid_stride)


def _logit_gradients(
    adapter: RCNNAdapter,
    trace: Trace,
    of_images: Sequence[Tensor],
    classes: Sequence[Tensor],
    training: OdamTraining,
) -> Tensor:
    """
    Derivative of each positive's class logit by its pooled feature, (N, C, R, S), with a graph to
    the head's weights where the loss is of second order.

    Positives are pooled and read once more: a gradient through all the proposals of a batch would
    cost four times as much.

    Args:
        of_images: the classes of each image's positives.
        classes: those of each group, one for each stage of each image.
    """
    boxes = trace.places.boxes[:, 0].split([len(of_image) for of_image in of_images])
    pooled = adapter.head.pooler(trace.features, [Boxes(of_image) for of_image in boxes])
    create_graph = training.second_order and training.trains
    with torch.enable_grad():
        if not create_graph:
            pooled = pooled.detach()
        if not pooled.requires_grad:
            pooled.requires_grad_()
        groups, stages = pooled.split([len(of_group) for of_group in classes]), adapter.head.stages
        logits = []
        for number, stage in enumerate(stages):
            of_stage = torch.cat(list(classes[number :: len(stages)]))
            if len(of_stage):
                said = stage.predict(torch.cat(groups[number :: len(stages)]))[0]
                logits.append(said.gather(1, of_stage[:, None]).sum())
        (gradient,) = torch.autograd.grad(logits, pooled, create_graph=create_graph)
    return gradient

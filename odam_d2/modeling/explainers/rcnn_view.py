"""How a two-stage detector runs when it explains what it detects, or reads given boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.modeling.views import Call, view_of, with_replaced

from .base import GENERAL_WAY, UnsupportedModelError
from .checks import check_outputs
from .pooled_heads import PROPOSALS, ROWS, Regions
from .reading import Reading
from .suppression import NO_NMS, lower_scores

if TYPE_CHECKING:
    from .rcnn import RCNNExplainer

__all__ = ["check_heads", "explaining_view", "read_given_boxes"]

# Detections among given boxes by which it is seen that the model decides as we think.
_COMPARED = 8


def explaining_view(explainer: RCNNExplainer) -> nn.Module:
    """See ``Explainer.view``."""
    traced = explainer.head.traced
    if explainer.settings.nms is not None:
        traced = _with_limits(traced, test_nms_thresh=NO_NMS, test_topk_per_image=-1)
    children = {
        "backbone": explainer.watched_backbone(),
        "roi_heads": view_of(traced, _Explaining, odam_explainer=explainer),
    }
    return view_of(explainer.model, children=children)


def read_given_boxes(
    explainer: RCNNExplainer,
    batched_inputs: list[dict],
    boxes: Sequence[Boxes],
    classes: Sequence[Tensor],
) -> Reading:
    """
    Where the model reads boxes, by its own inference with these boxes as its proposals.

    Args:
        boxes, classes: see ``Explainer.explain_boxes``; N > 0.

    Raises:
        UnsupportedModelError: it does something else with them than what is explained.
    """
    model = explainer.model
    sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
    proposals = [
        Instances(size, proposal_boxes=b, objectness_logits=b.tensor.new_zeros(len(b)))
        for size, b in zip(sizes, boxes, strict=True)
    ]
    children = {
        "backbone": explainer.watched_backbone(),
        "roi_heads": _reading_heads(explainer, boxes, classes),
    }
    if model.proposal_generator is None:
        pairs = zip(batched_inputs, proposals, strict=True)
        batched_inputs = [{**x, "proposals": of_image} for x, of_image in pairs]
    else:
        generator = view_of(model.proposal_generator, _Given, odam_proposals=proposals)
        children["proposal_generator"] = generator
    outputs = view_of(model, children=children).forward(batched_inputs)
    readings = children["roi_heads"].odam_readings
    if not readings:
        raise UnsupportedModelError(
            f"{explainer.name} does not run its ROI heads on its proposals; {GENERAL_WAY}"
        )
    check_outputs(explainer.name, outputs, explainer.said)
    explainer.said.clear()
    return readings[0]


def _reading_heads(
    explainer: RCNNExplainer, boxes: Sequence[Boxes], classes: Sequence[Tensor]
) -> nn.Module:
    limits = {"test_score_thresh": -1.0, "test_nms_thresh": NO_NMS}
    limits["test_topk_per_image"] = _COMPARED
    traced = _with_limits(explainer.head.traced, _SingleScores, **limits)
    given = {"odam_explainer": explainer, "odam_given": (boxes, classes), "odam_readings": []}
    return view_of(traced, _ReadingBoxes, **given)


@torch.no_grad()
def check_heads(
    explainer: RCNNExplainer,
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
    explainer.backbone_calls.append(call)
    try:
        _reading_heads(explainer, boxes, classes).forward(images, features, list(proposals))
    finally:
        explainer.forget()


def _with_limits(roi_heads: nn.Module, mixin: type | None = None, /, **limits) -> nn.Module:
    """A view with another threshold, or another number of detections."""
    predictors = (m for m in roi_heads.modules() if isinstance(m, FastRCNNOutputLayers))
    return with_replaced(roi_heads, {m: view_of(m, mixin, **limits) for m in predictors})


class _SingleScores:
    """Mixin for a box predictor: Detectron2's NMS does not take scores in double precision."""

    def predict_probs(self, predictions, proposals):
        probabilities = super().predict_probs(predictions, proposals)
        return [p.float() if p.dtype == torch.float64 else p for p in probabilities]


class _Explaining:
    """Mixin for ROI heads: detections get ``odam_maps`` on the way out."""

    def forward(self, images, features, proposals, targets=None):
        explainer = self.odam_explainer
        object.__setattr__(self, "odam_images", images)
        try:
            instances, losses = super().forward(images, features, proposals, targets)
            reading = explainer.read_traced(images, features, instances)
            explainer.check_reading(reading)
            if explainer.parts:
                explainer.explain_detections(reading, instances)
        finally:
            explainer.release()
        lower_scores(instances)
        explainer.remember(instances)
        for found in instances:
            for name in (PROPOSALS, ROWS):
                if found.has(name):
                    found.remove(name)
        return instances, losses

    def forward_with_given_boxes(self, features, instances):
        # Where all ROI heads of Detectron2 have their boxes, and no masks yet.
        explainer = self.odam_explainer
        if explainer.settings.nms is not None:
            reading = explainer.read_traced(self.odam_images, features, instances)
            predictor = explainer.head.stages[-1].predictor
            limits = (predictor.test_nms_thresh, predictor.test_topk_per_image)
            instances, _ = explainer.suppress(reading, instances, *limits)
        return super().forward_with_given_boxes(features, instances)


class _Given:
    """Mixin for a proposal generator: it proposes what is given."""

    def forward(self, *_args, **_kwargs):
        return self.odam_proposals, {}


class _ReadingBoxes:
    """Mixin for ROI heads: the proposals are the boxes that are to be read."""

    def forward(self, images, features, proposals, targets=None):
        explainer = self.odam_explainer
        boxes, classes = self.odam_given
        instances, losses = super().forward(images, features, proposals, targets)
        explainer.remember(instances)
        detected = explainer.read_traced(images, features, instances)
        trace = explainer.head.trace
        if trace is None:
            refined = explainer.head.refine(detected.features, boxes, images.image_sizes)
            regions = Regions(refined)
        else:
            read = torch.cat(trace.boxes)
            regions = Regions(read, torch.arange(len(read), device=read.device), trace)
        if not torch.equal(regions.boxes[:, 0], Boxes.cat(list(boxes)).tensor):
            raise UnsupportedModelError(
                f"{explainer.name}: proposals are changed before its ROI heads read them, so "
                f"that boxes cannot be given; {GENERAL_WAY}"
            )
        reading = explainer.read_regions(images, detected.features, regions, classes)
        explainer.check_reading(reading)
        if len(detected):
            said = explainer.say_again(detected)
            explainer.check_same(detected, instances, said.scores, said.boxes)
        self.odam_readings.append(reading)
        return instances, losses

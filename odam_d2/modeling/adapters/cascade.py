"""Cascade R-CNN: scores are averaged over stages; each stage pools the boxes of the one before."""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from odam_d2.modeling.conditions import require
from odam_d2.modeling.errors import GENERAL_WAY, UnsupportedModelError
from odam_d2.modeling.views import Viewed, class_name, watched, with_overrides

from .pooled_calls import PooledCalls
from .pooled_heads import (
    PROPOSALS,
    ROWS,
    PooledHead,
    Stage,
    finite_first,
    pooled_head,
)

__all__: list[str] = []


class _TracedCascade(Viewed):
    """Mixin for ``CascadeROIHeads``: its detections remember the boxes of all stages."""

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> tuple[Tensor, ...]:
        predictions = super()._run_stage(features, proposals, stage)
        self.odam_stages.append((stage, predictions, proposals))
        return predictions

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> list[Instances]:
        object.__setattr__(self, "odam_stages", [])
        found = super()._forward_box(features, proposals, targets)
        if [stage for stage, _, _ in self.odam_stages] != list(range(self.num_cascade_stages)):
            raise self._refusal()
        # Detectron2 chooses detections here and drops which ones: choose once more.
        probabilities = [
            self.box_predictor[stage].predict_probs(predictions, given)
            for stage, predictions, given in self.odam_stages
        ]
        scores = [
            sum(of_image) * (1.0 / self.num_cascade_stages)
            for of_image in zip(*probabilities, strict=True)
        ]
        stage, predictions, given = self.odam_stages[-1]
        last = self.box_predictor[stage]
        boxes = last.predict_boxes(predictions, given)
        sizes = [x.image_size for x in given]
        limits = (last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image)
        again, kept = fast_rcnn_inference(boxes, scores, sizes, *limits)
        proposals = [
            [of_image.proposal_boxes.tensor for of_image in given]
            for _, _, given in self.odam_stages
        ]
        read = [torch.stack(of_image, dim=1) for of_image in zip(*proposals, strict=True)]
        start = self.odam_calls.add(class_name(self), proposals)
        for number, detections in enumerate(found):
            self._check_chosen(detections, again[number])
            rows = finite_first(boxes[number], scores[number])[kept[number]]
            detections.set(PROPOSALS, read[number][rows])
            detections.set(ROWS, start + rows)
            start += len(read[number])
        return found

    def _check_chosen(self, found: Instances, again: Instances) -> None:
        pairs = (found.scores, again.scores), (found.pred_boxes.tensor, again.pred_boxes.tensor)
        for a, b in pairs:
            if a.shape != b.shape:
                raise self._refusal()
            require((a == b).all(), self._refusal)

    def _refusal(self) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{class_name(self)} runs its stages or chooses its detections in its own way, so that "
            f"the boxes that they were pooled from are not known; {GENERAL_WAY}"
        )


@pooled_head.register
def _(roi_heads: CascadeROIHeads) -> PooledHead:
    def stage(head: nn.Module, predictor: FastRCNNOutputLayers) -> Stage:
        return Stage(lambda pooled: predictor(head(pooled)), predictor)

    calls = PooledCalls([[] for _ in roi_heads.box_head])
    # Not children(), which leaves out a head that two stages share.
    heads = zip(roi_heads.box_head._modules.items(), calls.calls, strict=True)
    box_heads = with_overrides(
        roi_heads.box_head,
        children={name: watched(head, of_stage) for (name, head), of_stage in heads},
    )
    children = {"box_head": box_heads, "box_pooler": calls.watched_pooler(roi_heads.box_pooler)}
    return PooledHead(
        in_features=roi_heads.box_in_features,
        pooler=roi_heads.box_pooler,
        stages=[
            stage(head, predictor)
            for head, predictor in zip(roi_heads.box_head, roi_heads.box_predictor, strict=True)
        ],
        traced=with_overrides(roi_heads, _TracedCascade, children=children, odam_calls=calls),
        calls=calls,
    )

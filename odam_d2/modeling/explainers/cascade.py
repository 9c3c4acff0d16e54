"""Cascade R-CNN: scores are averaged over stages; each stage pools the boxes of the one before."""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

from odam_d2.modeling.views import view_of

from .base import GENERAL_WAY, UnsupportedModelError
from .pooled_heads import (
    POOLED,
    PROPOSALS,
    PooledHead,
    Stage,
    TracedHead,
    finite_rows,
    pooled_head,
)

__all__: list[str] = []


class _TracedCascade:
    """Mixin for ``CascadeROIHeads``: its detections remember the boxes of all stages."""

    def _run_stage(self, features, proposals, stage):
        predictions = super()._run_stage(features, proposals, stage)
        self.odam_stages.append((self.box_predictor[stage], predictions, proposals))
        return predictions

    def _forward_box(self, features, proposals, targets=None):
        object.__setattr__(self, "odam_stages", [])
        found = super()._forward_box(features, proposals, targets)
        # Detectron2 chooses detections here and drops which ones: choose once more.
        probabilities = [p.predict_probs(x, given) for p, x, given in self.odam_stages]
        scores = [
            sum(of_image) * (1.0 / self.num_cascade_stages)
            for of_image in zip(*probabilities, strict=True)
        ]
        last, predictions, given = self.odam_stages[-1]
        boxes = last.predict_boxes(predictions, given)
        sizes = [x.image_size for x in given]
        limits = (last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image)
        again, kept = fast_rcnn_inference(boxes, scores, sizes, *limits)
        pooled = [x.split([len(b) for b in boxes]) for x in self.odam_read]
        self.odam_read.clear()
        for number, detections in enumerate(found):
            self._check_chosen(detections, again[number])
            rows = finite_rows(boxes[number], scores[number]).nonzero().squeeze(1)[kept[number]]
            read = [given[number].proposal_boxes.tensor[rows] for _, _, given in self.odam_stages]
            detections.set(PROPOSALS, torch.stack(read, dim=1))
            detections.set(POOLED, torch.stack([x[number][rows] for x in pooled], dim=1))
        return found

    def _check_chosen(self, found, again) -> None:
        if not (
            torch.equal(found.scores, again.scores)
            and torch.equal(found.pred_boxes.tensor, again.pred_boxes.tensor)
        ):
            raise UnsupportedModelError(
                f"{type(self).__name__} chooses its detections in its own way, so that the boxes "
                f"that they were pooled from are not known; {GENERAL_WAY}"
            )


@pooled_head.register
def _(roi_heads: CascadeROIHeads) -> PooledHead:
    def stage(head, predictor) -> Stage:
        return Stage(lambda pooled: predictor(head(pooled)), predictor)

    read: list[torch.Tensor] = []
    box_heads = view_of(
        roi_heads.box_head,
        children={
            name: view_of(head, TracedHead, odam_read=read)
            for name, head in roi_heads.box_head.named_children()
        },
    )
    return PooledHead(
        in_features=roi_heads.box_in_features,
        pooler=roi_heads.box_pooler,
        stages=[
            stage(head, predictor)
            for head, predictor in zip(roi_heads.box_head, roi_heads.box_predictor, strict=True)
        ],
        traced=view_of(roi_heads, _TracedCascade, children={"box_head": box_heads}, odam_read=read),
    )

"""Cascade R-CNN: scores are averaged over stages; each stage pools the boxes of the one before."""

from __future__ import annotations

from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from odam_d2.modeling.errors import UnsupportedModelError, unexplained
from odam_d2.modeling.views import Viewed, class_name, recorded, with_overrides

from .pooled_calls import PooledCalls
from .pooled_heads import (
    PROPOSALS,
    ROWS,
    DecodedOnce,
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
        proposals = [
            [of_image.proposal_boxes.tensor for of_image in given]
            for _, _, given in self.odam_stages
        ]
        start = self.odam_calls.add(class_name(self), proposals)
        first, read = start, self.odam_calls.boxes[-1]
        decoded = [
            self.box_predictor[stage].odam_decode(predictions, given)
            for stage, predictions, given in self.odam_stages
        ]
        # Of each image the boxes of the last stage, and the scores of all.
        of_images = zip(decoded[-1][0], *(scores for _, scores in decoded), strict=True)
        for detections, parts in zip(found, of_images, strict=True):
            rows = start + finite_first(*parts)[self._chosen(detections)]
            detections.set(PROPOSALS, read[rows - first])
            detections.set(ROWS, rows)
            start += len(parts[0])
        return found

    def _chosen(self, detections: Instances) -> Tensor:
        """
        The rows (n,) of detections among those with finite numbers. Detectron2 drops them here, but
        classes are a column of a tensor, (n, 2), whose other column they are.
        """
        base = detections.pred_classes._base
        if base is None or base.shape != (len(detections), 2):
            raise self._refusal()
        return base[:, 0]

    def _refusal(self) -> UnsupportedModelError:
        return unexplained(
            f"{class_name(self)} runs its stages or chooses its detections in its own way, so that "
            "the boxes that they were pooled from are not known"
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
        children={name: recorded(head, of_stage) for (name, head), of_stage in heads},
    )
    predictors = {
        name: with_overrides(predictor, DecodedOnce, odam_decoded={})
        for name, predictor in roi_heads.box_predictor._modules.items()
    }
    children = {
        "box_head": box_heads,
        "box_pooler": calls.recorded_pooler(roi_heads.box_pooler),
        "box_predictor": with_overrides(roi_heads.box_predictor, children=predictors),
    }
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

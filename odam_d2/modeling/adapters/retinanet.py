"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor

from odam_d2.core.probabilities import Probability, sigmoid

from .base import register_adapter
from .dense import DenseAdapter

__all__ = ["RetinaNetAdapter"]


@register_adapter(RetinaNet)
class RetinaNetAdapter(DenseAdapter):
    """RetinaNet."""

    head_type = RetinaNetHead
    towers = {"cls_score": "cls_subnet", "bbox_pred": "bbox_subnet"}  # noqa: RUF012

    @property
    def output_sizes(self) -> list[int]:
        return [self.num_classes, 4]

    def scores(self, outputs: list[Tensor], kind: str) -> Tensor:
        return outputs[0] if kind == "logit" else outputs[0].sigmoid()

    def closed_form(
        self, outputs: list[Tensor], labels: Tensor
    ) -> tuple[Probability, Sequence[Tensor]]:
        return sigmoid(outputs[0], labels), outputs[:1]

"""FCOS (Tian et al., "FCOS: A simple and strong anchor-free object detector", TPAMI 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.meta_arch import FCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes
from torch import Tensor

from odam_d2.core.probabilities import Probability, geometric_mean, sigmoid

from .base import register_adapter
from .dense import DenseAdapter

__all__ = ["FCOSAdapter"]


@register_adapter(FCOS)
class FCOSAdapter(DenseAdapter):
    """
    FCOS. A probability is the square root of class times centerness, so its map is a sum
    over both towers; a logit is that of the class, without centerness.
    """

    head_type = FCOSHead
    towers = {  # noqa: RUF012
        "cls_score": "cls_subnet", "bbox_pred": "bbox_subnet", "ctrness": "bbox_subnet",
    }  # fmt: skip

    @property
    def output_sizes(self) -> list[int]:
        return [self.num_classes, 4, 1]

    def scores(self, outputs: list[Tensor], kind: str) -> Tensor:
        logits, _, centerness = outputs
        return logits if kind == "logit" else (logits.sigmoid() * centerness.sigmoid()).sqrt()

    def closed_form(
        self, outputs: list[Tensor], labels: Tensor
    ) -> tuple[Probability, Sequence[Tensor]]:
        logits, _, centerness = outputs
        parts = sigmoid(logits, labels), sigmoid(centerness, torch.zeros_like(labels))
        return geometric_mean(parts), (logits, centerness)

    def nearest(self, boxes: Boxes, anchors: list[Boxes]) -> Tensor:
        """
        The point nearest to the centre of the box, on the level that is trained on boxes of its
        size: those that reach 4 to 8 strides from there.
        """
        strides = torch.stack(
            [of_level.tensor[0, 2] - of_level.tensor[0, 0] for of_level in anchors]
        )
        reach = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]).amax(dim=1) / 2
        level = (reach[:, None] >= 8 * strides[:-1]).sum(dim=1)
        index = torch.zeros_like(level)
        for number, of_level in enumerate(anchors):
            here = (level == number).nonzero().squeeze(1)
            if len(here):
                far = torch.cdist(boxes.get_centers()[here], of_level.get_centers())
                index[here] = far.argmin(dim=1)
        return torch.stack([level, index], dim=1)

"""Detectors with random weights that behave like trained ones, for benchmarks and tests."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.engine.weights import load_weights
from odam_d2.modeling.views import Viewed, with_overrides

__all__ = ["build_for_timing", "initialise", "scale_random_weights", "spread_proposals"]


class _SpreadProposals(Viewed):
    """
    Mixin for a proposal generator: it does its work, and then gives boxes of all sizes, because an
    untrained one gives nearly equal ones: 1,000 boxes, sides log-uniform in 24 to 600 pixels and
    aspect ratios in 1/2 to 2, anywhere in the image.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        proposals, losses = super().forward(images, features, gt_instances)
        generator = torch.Generator().manual_seed(0)
        size, aspect, x, y = torch.rand(4, 1000, generator=generator)
        size, aspect = 24 * (600 / 24) ** size, 2 ** (aspect - 0.5)
        for given in proposals:
            height, width = given.image_size
            centre = torch.stack([x * width, y * height], dim=1)
            half = torch.stack([size * aspect, size / aspect], dim=1) / 2
            boxes = Boxes(torch.cat([centre - half, centre + half], dim=1))
            boxes.clip(given.image_size)
            device = given.proposal_boxes.device
            given._fields.clear()  # another number of boxes
            given.proposal_boxes = boxes.to(device)
            given.objectness_logits = torch.zeros(len(boxes), device=device)
        return proposals, losses


def build_for_timing(cfg: CfgNode) -> nn.Module:
    """The detector of a config in evaluation mode; without weights, a likeness of a trained one."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    initialise(model, cfg)
    return model if cfg.MODEL.WEIGHTS else spread_proposals(model)


def initialise(model: nn.Module, cfg: CfgNode) -> None:
    """Weights as the config says, or random ones."""
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS)
    else:
        scale_random_weights(model)


def spread_proposals(model: nn.Module) -> nn.Module:
    """A view of an untrained model, with proposals of all sizes where it has proposals."""
    generator = getattr(model, "proposal_generator", None)
    if generator is None:
        return model
    return with_overrides(
        model, children={"proposal_generator": with_overrides(generator, _SpreadProposals)}
    )


@torch.no_grad()
def scale_random_weights(model: nn.Module) -> None:
    """
    Bring the features of an untrained detector to order one, in place.

    Features of untrained weights with batch norm in eval mode grow by orders of magnitude, and
    boxes explode with them. Without biases, such a backbone is homogeneous in its first layer:
    scaling that one layer is enough. Backbones that normalise are of order one already. Where boxes
    are distances, as FCOS's are, untrained ones have no size and would be dropped: they get some.
    """
    if isinstance(getattr(model, "box2box_transform", None), Box2BoxTransformLinear):
        nn.init.constant_(model.get_parameter("head.bbox_pred.bias"), 2.0)
    parameter = next(model.parameters())
    backbone: Backbone = model.backbone
    unit = max(backbone.size_divisibility, 64)
    image = torch.randn(1, 3, 2 * unit, 3 * unit, dtype=parameter.dtype, device=parameter.device)
    size = max(feature.std() for feature in backbone(image * 60).values())
    bottom_up = getattr(backbone, "bottom_up", backbone)
    first = next(module for module in bottom_up.modules() if isinstance(module, nn.Conv2d))
    first.weight /= size

"""Losses that teach features what a detector's own losses do not: where the deciding part is.

A detector that has only seen badges in the middle knows their glyphs, but looks for them there
alone, and its own losses say little about where else to look. Probes read the class at each place
of the feature maps; they are thrown away after the training.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BADGE_WEIGHT = 8.0
"""Of a cell with a badge beside one without: one in 30 has one."""


class Probe(nn.Module):
    """
    A convolution of one pixel that tells from the features at each place which label is there.

    Args:
        channels: of the features.
        labels: how many there are, with that of no object, 0.
        weight: of a cell that has an object.
    """

    weight: torch.Tensor

    def __init__(self, channels: int, labels: int, weight: float):
        super().__init__()
        self.layer = nn.Conv2d(channels, labels, 1)
        nn.init.normal_(self.layer.weight, std=0.05)
        self.register_buffer("weight", torch.tensor([1.0] + [weight] * (labels - 1)))

    def forward(self, features: torch.Tensor, truth: torch.Tensor, stride: int) -> torch.Tensor:
        """
        Cross entropy, a scalar.

        Args:
            features: (B, C, h, w), which may have more cells than the picture, for padding.
            truth: (B, H, W) labels.
            stride: pixels of a cell, of which the middle one is compared.
        """
        middle = truth[:, stride // 2 :: stride, stride // 2 :: stride]
        said = self.layer(features.float())[..., : middle.shape[1], : middle.shape[2]]
        return F.cross_entropy(said, middle, self.weight)


def add_probes(model: Any, classes: int) -> None:
    """
    Let a detector return the losses of probes beside its own, while it is in training mode.

    Badges are told apart on the finest levels that heads read, up to a stride of 8. The head of a
    dense detector decides within one cell, to which the backbone must have carried the evidence:
    its probes also tell robots apart, at a stride of 8 and 16.

    Args:
        model: a detector of Detectron2 whose inputs are those of :class:`.mapper.LabelMapper`.
        classes: of objects.
    """
    shapes = model.backbone.output_shape()
    used = set(getattr(model, "head_in_features", None) or model.roi_heads.box_in_features)
    strides = {name: shape.stride for name, shape in shapes.items() if name in used}
    wanted = [("badges", name) for name, stride in strides.items() if stride <= 8]
    if not hasattr(model, "roi_heads"):
        wanted += [("robots", name) for name, stride in strides.items() if stride in (8, 16)]
    probes = nn.ModuleDict()
    for what, level in wanted:
        weight = BADGE_WEIGHT if what == "badges" else 1.0
        probes[f"{what}_{level}"] = Probe(shapes[level].channels, 1 + classes, weight)
    model.probes = probes
    kept: dict[str, torch.Tensor] = {}
    model.backbone.register_forward_hook(lambda _module, _images, features: kept.update(features))
    model.register_forward_hook(partial(_with_losses, kept, strides))


def _with_losses(
    kept: Mapping[str, torch.Tensor], strides: Mapping[str, int],
    model: Any, inputs: tuple[Sequence[dict]], output: Any,
) -> Any:  # fmt: skip
    if not model.training:
        return output
    losses = dict(output)
    for name, probe in model.probes.items():
        what, _, level = name.partition("_")
        truth = torch.stack([sample[what] for sample in inputs[0]]).to(model.device)
        losses[f"loss_{name}"] = probe(kept[level], truth, strides[level])
    return losses

"""
Maps that are no windows: on a layer of the backbone, or on the image itself. The network above runs
once more, with a graph, and each map costs a backward pass of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odam_d2.core.gradients import gradient_heat_maps
from odam_d2.modeling.layers import captured
from odam_d2.structures import OdamMaps

from .output_maps import check_reached
from .reading import Evaluation, Reading

if TYPE_CHECKING:
    from .head import HeadExplainer

__all__ = ["input_gradient_maps", "layer_maps"]


@torch.enable_grad()
def layer_maps(explainer: HeadExplainer, reading: Reading) -> tuple[OdamMaps, Evaluation]:
    """Maps on ``settings.layer`` of the backbone."""
    size = tuple(reading.images.shape[-2:])
    with captured(explainer.model.backbone, explainer.settings.layer, size) as layer:
        features = explainer.features(reading.images)
        evaluation = explainer.evaluate(features, reading)
    values = explainer.gradient_maps(evaluation, layer.feature, reading.image, slice(None))
    _check_read(values, features, layer.feature, reading, f"layer {explainer.settings.layer!r}")
    return _pack(explainer, reading, values.relu_(), layer.stride, evaluation)


@torch.enable_grad()
def input_gradient_maps(explainer: HeadExplainer, reading: Reading) -> tuple[OdamMaps, Evaluation]:
    """
    At each pixel of the network's input, the largest absolute derivative of an output by one of the
    channels (Simonyan et al., "Deep Inside Convolutional Networks", 2014).
    """
    images = reading.images.detach().requires_grad_()
    features = explainer.features(images)
    evaluation = explainer.evaluate(features, reading)
    values = [
        gradient_heat_maps(
            value,
            images,
            reading.image,
            explainer.settings.smoothing_sigma,
            max_bytes=explainer.settings.max_bytes,
            weigh=lambda gradients, _: gradients.abs().amax(dim=1),
        )
        for value in evaluation.columns
    ]
    values = torch.stack(values, dim=1)
    _check_read(values, features, images, reading, "the images")
    return _pack(explainer, reading, values, 1.0, evaluation)


def _check_read(
    values: Tensor, features: list[Tensor], leaf: Tensor, reading: Reading, where: str
) -> None:
    """
    Tell where maps (N, T, h, w) are zero because what a detection was read from does not come from
    the leaf: another level of a pyramid, or a backbone that runs without gradients.
    """
    reached = values.flatten(2).any(dim=2)
    empty = ~reached.any(dim=1)
    for level in reading.levels[empty].unique().tolist():
        feature = features[level]
        if feature.requires_grad:
            (gradient,) = torch.autograd.grad(
                feature.sum(), leaf, retain_graph=True, allow_unused=True
            )
            if gradient is not None:  # a map that is zero for another reason
                reached |= (reading.levels == level).any(dim=1, keepdim=True)
    check_reached(reached, reading.image.tolist(), where)


def _pack(
    explainer: HeadExplainer,
    reading: Reading,
    values: Tensor,
    stride: float,
    evaluation: Evaluation,
) -> tuple[OdamMaps, Evaluation]:
    image_sizes = reading.image.new_tensor(reading.image_sizes)[reading.image]
    pair = torch.ones_like(image_sizes)
    maps = explainer.pack(
        values,
        evaluation.exponents,
        evaluation.saturated,
        origins=torch.zeros_like(pair),
        strides=values.new_full((len(values),), stride),
        grid_sizes=pair * pair.new_tensor(values.shape[-2:]),
        image_sizes=image_sizes,
        levels=torch.zeros_like(reading.image),
    )
    return maps, evaluation.detach()

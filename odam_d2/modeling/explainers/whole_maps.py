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

from .reading import Evaluation, Reading

if TYPE_CHECKING:
    from .head import HeadExplainer

__all__ = ["input_gradient_maps", "layer_maps"]


@torch.enable_grad()
def layer_maps(explainer: HeadExplainer, reading: Reading) -> tuple[OdamMaps, Evaluation]:
    """Maps on ``settings.layer`` of the backbone."""
    size = tuple(reading.images.shape[-2:])
    with captured(explainer.model.backbone, explainer.settings.layer, size) as layer:
        evaluation = _evaluate(explainer, reading.images, reading)
    values = explainer.gradient_maps(evaluation, layer.feature, reading.image, slice(None))
    return _pack(explainer, reading, values.relu_(), layer.stride, evaluation)


@torch.enable_grad()
def input_gradient_maps(explainer: HeadExplainer, reading: Reading) -> tuple[OdamMaps, Evaluation]:
    """
    At each pixel of the network's input, the largest absolute derivative of an output by one of the
    channels (Simonyan et al., "Deep Inside Convolutional Networks", 2014).
    """
    images = reading.images.detach().requires_grad_()
    evaluation = _evaluate(explainer, images, reading)
    values = [
        gradient_heat_maps(
            value,
            images,
            reading.image,
            explainer.settings.smoothing_sigma,
            max_bytes=explainer.settings.max_bytes,
            weigh=lambda gradients, _: gradients.abs().amax(dim=1),
        )
        for value in evaluation.values.T
    ]
    return _pack(explainer, reading, torch.stack(values, dim=1), 1.0, evaluation)


def _evaluate(explainer: HeadExplainer, images: Tensor, reading: Reading) -> Evaluation:
    return explainer.evaluate(explainer.features(images), reading)


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

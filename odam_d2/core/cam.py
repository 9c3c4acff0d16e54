"""
From a gradient and a feature map to a heat map: ODAM, and what came before it.

Each function takes ``gradient`` (..., C, H, W), the derivative of one output by the feature map,
and ``feature`` (..., C, H, W), and returns (..., H, W) with its sign: the ReLU comes last. Where a
derivative would leave the range of its dtype, ``gradient`` is the derivative divided by ``scale``
(..., 1, 1, 1), and so is what is returned.
"""

import torch
from torch import Tensor

__all__ = [
    "centre",
    "centred",
    "grad_cam",
    "grad_cam_pp",
    "gradient_norm",
    "largest_gradient",
    "odam",
]


def odam(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """``sum_c g_c A_c`` at each place (Zhao and Chan, "ODAM", ICLR 2023)."""
    return (gradient * feature).sum(dim=-3)


def centre(feature: Tensor) -> Tensor:
    """Features less the mean of their channel over all places."""
    return feature - feature.mean(dim=(-2, -1), keepdim=True)


def centred(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """
    ``sum_c g_c (A_c - mean A_c)``: as ODAM, of what a place has more than the mean place. A norm
    that removes the mean hides from the head what all places have, and gradient times feature sums
    to nothing there.
    """
    return (gradient * centre(feature)).sum(dim=-3)


def gradient_norm(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """``|g|`` over the channels: how much a place matters, whatever is there. Never negative."""
    return gradient.norm(dim=-3)


def largest_gradient(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """
    ``max_c |g_c|``, of images: the largest absolute derivative by one of the channels (Simonyan et
    al., "Deep Inside Convolutional Networks", 2014). It is never negative.
    """
    return gradient.abs().amax(dim=-3)


def grad_cam(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """
    ``sum_c w_c A_c``, w_c the mean of the gradient over all places (Selvaraju et al., "Grad-CAM",
    ICCV 2017). A channel counts everywhere for what it is worth somewhere.
    """
    weights = gradient.mean(dim=(-2, -1), keepdim=True)
    return (weights * feature).sum(dim=-3)


def grad_cam_pp(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """
    As Grad-CAM with ``w_c = sum a_c ReLU(g_c)`` and ``a_c = g_c^2 / (2 g_c^2 + g_c^3 sum A_c)``,
    the sums over all places, a_c = 0 where that is 0 / 0 (Chattopadhay et al., "Grad-CAM++", WACV
    2018). The factor exp(Y) of their equation is the same for all channels and left out, and g_c^2
    is cancelled: it would underflow.
    """
    below = 2 + scale * gradient * feature.sum(dim=(-2, -1), keepdim=True)
    alpha = torch.where(below != 0, 1 / torch.where(below != 0, below, 1.0), 0.0)
    weights = (alpha * gradient.relu()).sum(dim=(-2, -1), keepdim=True)
    return (weights * feature).sum(dim=-3)

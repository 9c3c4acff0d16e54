"""
From a gradient and a feature map to a heat map: ODAM, and what came before it.

Each function takes ``gradient`` (..., C, H, W), the derivative of one output by the feature map,
and ``feature`` (..., C, H, W), and returns (..., H, W) with its sign: the ReLU comes last. Where a
derivative would leave the range of its dtype, ``gradient`` is the derivative divided by ``scale``
(..., 1, 1, 1), and so is what is returned.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "centre",
    "centred",
    "g_came",
    "grad_cam",
    "grad_cam_pp",
    "gradient_norm",
    "largest_gradient",
    "layer_cam",
    "odam",
    "ss_grad_cam_pp",
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


def ss_grad_cam_pp(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """
    ``sum_c w_c A_c |g_c| / max |g_c|``, w_c as in :func:`grad_cam_pp` but with the sum of A_c over
    those places that the detection reads, where g_c is not zero (Yamauchi, "Spatial Sensitive
    Grad-CAM++", CVPR workshops 2024). A channel counts where it is read, as much as it is.
    """
    read = gradient != 0
    below = 2 + scale * gradient * (feature * read).sum(dim=(-2, -1), keepdim=True)
    alpha = torch.where(below != 0, 1 / torch.where(below != 0, below, 1.0), 0.0)
    weights = (alpha * gradient.relu()).sum(dim=(-2, -1), keepdim=True)
    size = gradient.abs()
    peak = size.amax(dim=(-2, -1), keepdim=True)
    space = size / torch.where(peak > 0, peak, 1.0)
    return (weights * feature * space).sum(dim=-3)


def layer_cam(gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """``sum_c ReLU(g_c) A_c`` at each place (Jiang et al., "LayerCAM", TIP 2021)."""
    return (gradient.relu() * feature).sum(dim=-3)


def g_came(
    gradient: Tensor,
    feature: Tensor,
    scale: Tensor | float = 1.0,
    *,
    stride: float,
    min_sigma: float = 1.0,
) -> Tensor:
    """
    ``sum_c A_c (w+_c G+_c - w-_c G-_c)``: w+ and w- are the means over all places of what is
    positive in g_c, and of the size of what is negative, G+ and G- Gaussians around the place where
    either is largest, scaled to [0, 1], of ``sigma = |log w| log(stride) 3 / floor((sqrt(H W) - 1)
    / 2)`` cells (Nguyen et al., "G-CAME", 2023).

    Args:
        stride: pixels of the image per cell.
        min_sigma: the least standard deviation, in cells.
    """
    height, width = gradient.shape[-2:]
    radius = max(1, int((math.sqrt(height * width) - 1) / 2)) / 3
    scale = torch.as_tensor(scale, dtype=gradient.dtype, device=gradient.device)
    unit = scale.clamp(min=torch.finfo(gradient.dtype).tiny).log()
    found = torch.zeros_like(gradient[..., 0, :, :])
    for sign in (1, -1):
        part = (sign * gradient).relu()
        weight = part.mean(dim=(-2, -1), keepdim=True)
        log = torch.where(weight > 0, weight, 1.0).log() + unit
        sigma = log.abs() * math.log(stride) / radius
        around = _gaussian(_first_peak(part), sigma.clamp(min=min_sigma), (height, width))
        found += sign * (weight * around * feature).sum(dim=-3)
    return found


def _first_peak(x: Tensor) -> Tensor:
    """(...), number of the largest cell of (..., H, W), the first of equals but for rounding."""
    flat = x.flatten(-2)
    least = 1 - math.sqrt(torch.finfo(x.dtype).eps)
    return (flat >= least * flat.amax(dim=-1, keepdim=True)).byte().argmax(dim=-1)


def _gaussian(centre: Tensor, sigma: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Scaled so that its largest value on the map is 1 and its least 0.

    Args:
        centre: (...), the number of a cell, row by row.
        sigma: (..., 1, 1), in cells.
        size: (H, W) of the map.

    Returns:
        (..., H, W).
    """
    rows, columns = (torch.arange(n, device=centre.device) for n in size)
    centre = centre[..., None, None]
    far = (rows[:, None] - centre // size[1]) ** 2 + (columns - centre % size[1]) ** 2
    # A wide Gaussian is nearly 1 everywhere: what it is less than 1 keeps its digits.
    less = -torch.expm1(-far / (2 * sigma**2))
    most = less.amax(dim=(-2, -1), keepdim=True)
    return 1 - less / torch.where(most > 0, most, 1.0)

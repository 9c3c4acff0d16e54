"""
Heat maps from gradients and features (Zhao and Chan, "ODAM", ICLR 2023, section 3).

Shape shorthand in this package:

    N: instances; T: targets of each; C: channels; h, w: a window of cells; H, W: the whole grid.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["combine", "gaussian_kernel", "normalize", "smooth", "smoothing_radius"]

# The Gaussian is cut where its weight has fallen to exp(-4.5), about a hundredth of the peak.
_CUT_SIGMAS = 3.0


def smoothing_radius(sigma: float) -> int:
    """Cells by which smoothing with ``sigma`` (in cells) widens the support of a map."""
    return math.ceil(_CUT_SIGMAS * sigma)


def gaussian_kernel(sigma: float, like: Tensor) -> Tensor:
    """(2r + 1,) sampled Gaussian of sum one, r = :func:`smoothing_radius`, typed as ``like``."""
    radius = smoothing_radius(sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=like.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return (kernel / kernel.sum()).to(like.dtype)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """
    Convolve the last two axes of ``x`` with a Gaussian, zero outside, same size.

    Args:
        x: (..., h, w).
        sigma: standard deviation in cells; 0, as in the authors' code, returns ``x`` itself. A
            window needs :func:`smoothing_radius` cells of zeros around what is not zero.
    """
    if sigma == 0:
        return x
    kernel = gaussian_kernel(sigma, x)
    radius = len(kernel) // 2
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    flat = F.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return flat.view(x.shape)


def normalize(maps: Tensor) -> Tensor:
    """
    Scale each map to a largest size of one, for looking at; an all-zero map stays zero.

    Zero stays zero, because it means "no evidence here", which is why the minimum is not moved.

    Args:
        maps: (..., h, w), with their sign if they have one.
    """
    peak = maps.abs().amax(dim=(-2, -1), keepdim=True) if maps.numel() else maps
    return maps / torch.where(peak > 0, peak, torch.ones_like(peak))


def combine(maps: Tensor) -> Tensor:
    """
    The ``combined`` explanation: maximum over the targets, each normalised first.

    Args:
        maps: (N, T, h, w), the T maps of an instance on one and the same window, not negative.

    Returns:
        (N, 1, h, w) in [0, 1].
    """
    return normalize(maps).amax(dim=1, keepdim=True)

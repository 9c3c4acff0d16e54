"""
How good is a heat map, given the object that it is of? In [0, 1] unless said otherwise.

None changes when a map is scaled, and none when map and object are flipped together. Equal peaks
count as the share of them that is right, so that a flat map is worth no more than chance.

Shape shorthand: N maps; H, W: pixels of the image. Maps are not negative.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "compactness",
    "energy_pointing_game",
    "gini",
    "mask_iou",
    "object_discrimination_index",
    "pointing_game",
    "ssim",
    "unit_range",
]


def pointing_game(heat: Tensor, regions: Tensor) -> Tensor:
    """
    Does the peak lie in the region? (Zhang et al., "Top-down Neural Attention by Excitation
    Backprop", ECCV 2016, without their tolerance of 15 pixels.)

    Args:
        heat: (N, H, W).
        regions: (N, H, W) of bool, boxes or masks.

    Returns:
        (N,): 1 or 0, or the share of equal peaks that do; 0 for a map that is zero everywhere.
    """
    peaks = _peaks(heat)
    share = (peaks & regions).flatten(1).sum(dim=1) / peaks.flatten(1).sum(dim=1)
    return torch.where(heat.flatten(1).amax(dim=1) > 0, share, 0.0)


def energy_pointing_game(heat: Tensor, regions: Tensor) -> Tensor:
    """
    Share of a map's energy that lies in the region (Wang et al., "Score-CAM", CVPRW 2020).

    Args:
        heat, regions: as for :func:`pointing_game`.

    Returns:
        (N,): 0 for a map that is zero everywhere.
    """
    total = _energy(heat)
    return torch.where(total > 0, _energy(heat * regions) / total, 0.0)


def object_discrimination_index(heat: Tensor, others: Tensor, objects: Tensor) -> Tensor:
    """
    Share of the energy on objects that lies on other objects than the explained one: less is better
    (Zhao and Chan, "ODAM", ICLR 2023, section 4.3).

    Args:
        heat: (N, H, W).
        others: (N, H, W) of bool, union of the boxes or masks of all other objects. Where they
            overlap the explained one's, that counts as theirs, as in the authors' code.
        objects: (N, H, W) of bool, union of those of all objects.

    Returns:
        (N,): nan where no energy lies on any object.
    """
    return _energy(heat * others) / _energy(heat * objects)


def compactness(heat: Tensor, boxes: Tensor) -> Tensor:
    """
    How far from its peak a map's energy lies: the root of the mean squared distance, in units of
    half the diagonal of the object's box; less is better, from 0 up (ODAM, section 4.3).

    Args:
        heat: (N, H, W).
        boxes: (N, 4), XYXY in pixels.

    Returns:
        (N,): over equal peaks, of the mean over them of the squared distance; nan for a map that is
        zero everywhere, or a box without extent.
    """
    height, width = heat.shape[-2:]
    energy, peaks = heat.double(), _peaks(heat).double()
    squared = torch.zeros(len(heat), dtype=torch.float64, device=heat.device)
    for axis, length in ((1, height), (2, width)):
        place = torch.arange(length, dtype=torch.float64, device=heat.device)
        other = 3 - axis
        mass, of_peak = energy.sum(dim=other), peaks.sum(dim=other)
        mass = mass / mass.sum(dim=1, keepdim=True)
        of_peak = of_peak / of_peak.sum(dim=1, keepdim=True)
        # Mean over energy and peaks of (a - b)^2, by the means of a^2, of b^2 and of a and b.
        squared += mass @ place**2 + of_peak @ place**2 - 2 * (mass @ place) * (of_peak @ place)
    size = (boxes[:, 2:] - boxes[:, :2]).double()
    return (4 * squared.clamp(min=0) / (size**2).sum(dim=1)).sqrt()


def mask_iou(heat: Tensor, masks: Tensor, thresholds: Sequence[float]) -> Tensor:
    """
    Intersection over union of the object's mask and the part of a map above a threshold, the map
    scaled to [0, 1] by :func:`unit_range`: the authors' visual explanation accuracy (Oh et al.,
    2021; ODAM, section 4.3).

    Args:
        heat: (N, H, W).
        masks: (N, H, W) of bool.
        thresholds: K in [0, 1).

    Returns:
        (N, K): 0 where both are empty.
    """
    scaled, columns = unit_range(heat), []
    for threshold in thresholds:
        above = scaled > threshold
        shared = (above & masks).flatten(1).sum(dim=1)
        union = (above | masks).flatten(1).sum(dim=1)
        columns.append(shared / union.clamp(min=1))
    return torch.stack(columns, dim=1)


def gini(heat: Tensor) -> Tensor:
    """
    Sparsity: the Gini index of the pixels (Hurley and Rickard, "Comparing Measures of Sparsity",
    2009). 0 for a flat map, near 1 where few pixels have all the energy.

    Args:
        heat: (N, H, W).

    Returns:
        (N,): 0 for a map that is zero everywhere.
    """
    values = heat.double().flatten(1).sort(dim=1).values
    count = values.shape[1]
    rank = torch.arange(count, 0, -1, dtype=torch.float64, device=heat.device) - 0.5
    total = values.sum(dim=1)
    index = 1 - 2 / count * (values @ rank) / total
    return torch.where(total > 0, index.clamp(min=0), 0.0)


# Of Wang et al.: the window's radius and standard deviation, in pixels, and what keeps flat windows
# from dividing by zero, for values of [0, 1].
_RADIUS, _SIGMA = 5, 1.5
_FLAT = (0.01**2, 0.03**2)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """
    Structural similarity of two maps (Wang et al., "Image Quality Assessment: From Error Visibility
    to Structural Similarity", 2004): means, spreads and correlation in Gaussian windows.

    Args:
        first, second: (N, H, W), in [0, 1].

    Returns:
        (N,): 1 for equal maps; the mean over all windows, of which those over the border have the
        pixels inside only.
    """
    a, b = first.double(), second.double()
    kernel = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64, device=a.device)
    kernel = torch.exp(-0.5 * (kernel / _SIGMA) ** 2)
    sums = torch.stack([a, b, a * a, b * b, a * b, torch.ones_like(a)], dim=1)
    for shape in ((-1, 1), (1, -1)):
        weight = kernel.view(1, 1, *shape).repeat(6, 1, 1, 1)
        padding = [(side - 1) // 2 for side in weight.shape[-2:]]
        sums = F.conv2d(sums, weight, padding=padding, groups=6)
    a, b, aa, bb, ab = (sums[:, :5] / sums[:, 5:]).unbind(dim=1)
    of_means = (2 * a * b + _FLAT[0]) / (a**2 + b**2 + _FLAT[0])
    spread = (aa - a**2) + (bb - b**2)
    of_structure = (2 * (ab - a * b) + _FLAT[1]) / (spread + _FLAT[1])
    return (of_means * of_structure).mean(dim=(1, 2))


def unit_range(heat: Tensor) -> Tensor:
    """(N, H, W) scaled to a minimum of 0 and a maximum of 1; a flat map becomes zero."""
    low, high = (bound(heat, dim=(-2, -1), keepdim=True) for bound in (torch.amin, torch.amax))
    span = high - low
    return (heat - low) / torch.where(span > 0, span, torch.ones_like(span))


def _peaks(heat: Tensor) -> Tensor:
    return heat == heat.amax(dim=(-2, -1), keepdim=True)


def _energy(heat: Tensor) -> Tensor:
    """(N,) in float64: sums over 10^6 pixels."""
    return heat.double().flatten(1).sum(dim=1)

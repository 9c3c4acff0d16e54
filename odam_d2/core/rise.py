"""
D-RISE: which random parts of an image must be seen for a detection to come back? (Petsiuk et al.,
"Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["reliability", "rise_mask", "similarities", "similarity"]


def rise_mask(
    size: tuple[int, int], grid: tuple[int, int], keep_prob: float, generator: torch.Generator
) -> Tensor:
    """
    A random soft mask: a coarse grid of zeros and ones, enlarged linearly by whole cells to one
    cell more than the image in each direction, and cut out at a random place.

    Args:
        size: (height, width) of the image in pixels.
        grid: rows and columns of the coarse grid.
        keep_prob: of a one.
        generator: on the CPU.

    Returns:
        (height, width) in [0, 1].
    """
    cell = [-(-length // count) for length, count in zip(size, grid, strict=True)]
    chances = torch.rand(*grid, generator=generator, dtype=torch.float32)
    coarse = (chances < keep_prob).float()
    enlarged = [(count + 1) * step for count, step in zip(grid, cell, strict=True)]
    fine = F.interpolate(coarse[None, None], enlarged, mode="bilinear", align_corners=False)[0, 0]
    top, left = (int(torch.randint(0, step, (), generator=generator)) for step in cell)
    return fine[top : top + size[0], left : left + size[1]]


def similarities(iou: Tensor, target_probabilities: Tensor, probabilities: Tensor) -> Tensor:
    """
    (N, M): IoU times cosine of class probabilities (their equation 5, without objectness, as they
    do for detectors that give none).

    Args:
        iou: (N, M), of N detections with the M that are found now.
        target_probabilities: (N, K) of the detections' classes.
        probabilities: (M, K).
    """
    cosine = F.normalize(target_probabilities, dim=1) @ F.normalize(probabilities, dim=1).t()
    return iou * cosine


def similarity(iou: Tensor, target_probabilities: Tensor, probabilities: Tensor) -> Tensor:
    """
    How much of each detection is still found: the largest of :func:`similarities`, (N,); zero where
    nothing is found.
    """
    if not iou.shape[1]:
        return iou.new_zeros(len(iou))
    return similarities(iou, target_probabilities, probabilities).amax(dim=1)


def reliability(first: Tensor, second: Tensor) -> Tensor:
    """
    How far a map from so many masks is the map from other ones, by those from either half of them:
    their correlation r, stepped up to the whole by the Spearman-Brown formula 2 r / (1 + r).

    Args:
        first, second: (N, H, W).

    Returns:
        (N,), at most 1; 0 where there is no correlation, or a map is flat.
    """
    parts = [half.double().flatten(1) for half in (first, second)]
    first, second = (part - part.mean(dim=1, keepdim=True) for part in parts)
    r = F.cosine_similarity(first, second, dim=1).clamp(min=0)
    return 2 * r / (1 + r)

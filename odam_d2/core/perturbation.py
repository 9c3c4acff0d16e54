"""
Deletion and insertion: does what a map calls important change what a detector says? (Petsiuk et
al., "RISE", BMVC 2018; for detectors, ODAM, section 4.2.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError
from .heatmap import smooth

__all__ = ["FILLS", "auc", "filling", "perturb", "ranking"]

FILLS = ("random", "mean", "blur")
"""What takes the place of deleted pixels."""

# RISE blurs by a Gaussian of 5 pixels for images of 224.
_BLUR = 5 / 224


def ranking(heat: Tensor, generator: torch.Generator) -> Tensor:
    """
    Pixels by decreasing importance. Equal ones come in random order: in that of the image, a flat
    map would delete from the top, which is no worse a map than the detector's own at times.

    Args:
        heat: (H, W).
        generator: on the CPU.

    Returns:
        (H W,) indices into the flattened map.
    """
    shuffled = torch.randperm(heat.numel(), generator=generator).to(heat.device)
    order = heat.flatten()[shuffled].argsort(descending=True, stable=True)
    return shuffled[order]


def filling(image: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """
    What an image is without any information.

    Args:
        image: (C, H, W), in [0, 255].
        kind: one of :data:`FILLS`: ``"random"``, each value drawn uniformly from [0, 255);
            ``"mean"``, the mean of each channel; ``"blur"``, the image blurred by 5 pixels for each
            224 of its longer side.
        generator: on the CPU.

    Returns:
        (C, H, W), floats.

    Raises:
        InputError: the kind is unknown.
    """
    image = image if image.is_floating_point() else image.float()
    if kind == "random":
        noise = torch.rand(image.shape, generator=generator, dtype=image.dtype)
        return 255 * noise.to(image.device)
    if kind == "mean":
        return image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    if kind == "blur":
        sigma = _BLUR * max(image.shape[-2:])
        # Divided by what lies inside, so that the border does not get dark.
        return smooth(image, sigma) / smooth(torch.ones_like(image[:1]), sigma)
    raise InputError(f"fill is {kind!r}; it must be one of {', '.join(FILLS)}")


def perturb(
    image: Tensor, fill: Tensor, order: Tensor, counts: Sequence[int], insertion: bool
) -> Tensor:
    """
    Args:
        image, fill: (C, H, W).
        order: (H W,), see :func:`ranking`.
        counts: of pixels, for each step.
        insertion: put so many pixels of the image into the fill; else of the fill into the image.

    Returns:
        (steps, C, H, W).
    """
    height, width = image.shape[-2:]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    limits = torch.as_tensor(list(counts), device=order.device)
    chosen = (rank < limits[:, None]).view(len(limits), 1, height, width)
    inside, outside = (image, fill) if insertion else (fill, image)
    return torch.where(chosen, inside.to(fill), outside.to(fill))


def auc(curve: Tensor) -> Tensor:
    """
    Area under curves over [0, 1], by the trapezoidal rule.

    Args:
        curve: (..., S), at S > 1 places of equal distance, the first at 0, the last at 1.

    Returns:
        (...).
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), dim=-1)

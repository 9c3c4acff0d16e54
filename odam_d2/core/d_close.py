"""
D-CLOSE: random segments of several levels of coarseness, and what is seen on all of them (Truong et
al., "Towards Better Explanations for Object Detection", 2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cascade", "segment_mask"]

# A level whose values differ by less, in shares of the largest one, is flat but for rounding.
_FLAT = 1e-6


def segment_mask(
    labels: Tensor, keep_prob: float, enlarge: float, generator: torch.Generator
) -> Tensor:
    """
    A random soft mask: each segment is seen or not, and what is enlarged linearly of that is cut
    out at a random place.

    Args:
        labels: (h, w) int64, segments numbered from 0.
        keep_prob: that a segment is seen.
        enlarge: by so much more than their size height and width are enlarged.
        generator: on the CPU.

    Returns:
        (h, w) float32 in [0, 1].
    """
    seen = torch.rand(int(labels.max()) + 1, generator=generator) < keep_prob
    coarse, axes = seen[labels].float(), []
    for size in labels.shape:
        more = int(enlarge * size)
        start = int(torch.randint(more + 1, (), generator=generator))
        # Between -1 and 1, as grid_sample has it: centres of pixels of what was enlarged.
        axes.append((start + torch.arange(size) + 0.5) / (size + more) * 2 - 1)
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    at = torch.stack([columns, rows], dim=-1)[None]
    return F.grid_sample(coarse[None, None], at, padding_mode="border", align_corners=False)[0, 0]


def cascade(sums: Tensor, densities: Tensor) -> Tensor:
    """
    Means of masks by level, each scaled to [0, 1] (a flat one to 0), put together from the finest
    level on: what is there, and what comes, times what comes.

    Args:
        sums: (L, ..., h, w), of masks times values, the coarsest level first.
        densities: (L, h, w), of masks.

    Returns:
        (..., h, w).
    """
    found = None
    for total, density in zip(sums.flip(0), densities.flip(0), strict=True):
        mean = total / torch.where(density > 0, density, 1.0)
        low, high = (x(mean.flatten(-2), dim=-1)[..., None, None] for x in (torch.amin, torch.amax))
        flat = high - low <= _FLAT * torch.maximum(high.abs(), low.abs())
        scaled = torch.where(flat, 0.0, mean - low) / torch.where(flat, 1.0, high - low)
        found = scaled if found is None else (found + scaled) * scaled
    assert found is not None
    return found

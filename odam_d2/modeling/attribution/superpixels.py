"""Superpixels of images, by scikit-image, which is asked for only here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from odam_d2.core.errors import InputError

__all__ = ["superpixels"]


def superpixels(
    image: Tensor, count: int, *, compactness: float = 10, sigma: float = 0, adaptive: bool = False
) -> Tensor:
    """
    SLIC (Achanta et al., TPAMI 2012).

    Args:
        image: (C, h, w), of any range.
        count: about how many there shall be.
        compactness: weight of place against colour.
        sigma: standard deviation, in pixels, of the Gaussian by which the image is smoothed first.
        adaptive: choose the compactness of each by itself (SLICO).

    Returns:
        (h, w) int64 on the CPU, each number from 0 up to the largest.

    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise InputError(
            "superpixels are made by scikit-image, which is not installed: "
            'pip install "scikit-image>=0.19", or odam_d2 with its extra "superpixels"'
        ) from None
    pixels = image.detach().cpu().double().permute(1, 2, 0).numpy()
    labels = slic(pixels, count, compactness, sigma=sigma, slic_zero=adaptive, start_label=0)
    numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    return torch.from_numpy(numbers)

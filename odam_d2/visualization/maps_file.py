"""Heat maps in the files of the demo, also of version 0.1."""

import os

import numpy as np
import torch

from odam_d2.structures import OdamMaps
from odam_d2.structures.arrays_file import TENSORS

__all__ = ["load_maps"]


def load_maps(path: str | os.PathLike) -> OdamMaps:
    """
    Read heat maps.

    Args:
        path: of a file that :func:`odam_d2.save_instances` wrote, or the demo of version 0.1.

    Returns:
        The maps, which render at any size by ``dense``.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if "format" in arrays:
            return OdamMaps.load(path)
        # Of the demo of 0.1, whose first files do not say what is saturated.
        known = [name for name in TENSORS if name in arrays]
        tensors = {name: torch.from_numpy(arrays[name]) for name in known}
        signed = "signed" in arrays and bool(arrays["signed"])
        return OdamMaps(arrays["targets"].tolist(), signed=signed, **tensors)

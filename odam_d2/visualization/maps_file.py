"""Raw heat maps in a file."""

import numpy as np
import torch
from detectron2.structures import Instances

from odam_d2.core.gradients import precise
from odam_d2.files import whole_file
from odam_d2.structures import OdamMaps

__all__ = ["load_maps", "save_maps"]

_TENSORS = ("values", "origins", "strides", "grid_sizes", "image_sizes", "levels", "saturated")


def save_maps(path: str, instances: Instances) -> None:
    """
    Write the heat maps of N instances as a compressed ``.npz``.

    It holds what :class:`OdamMaps` holds, under the same names, and ``boxes`` (N, 4) XYXY in the
    frame of ``instances``, ``scores`` (N,) and ``classes`` (N,).

    Args:
        path: ends with ``.npz``.
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and ``odam_maps``.
    """
    maps = instances.odam_maps.to(torch.float32)
    arrays = {name: getattr(maps, name) for name in _TENSORS} | {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }
    # NumPy knows no bfloat16.
    arrays = {name: precise(tensor.detach()).cpu().numpy() for name, tensor in arrays.items()}
    arrays |= {"targets": np.array(maps.targets, dtype=np.str_), "signed": np.array(maps.signed)}
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def load_maps(path: str) -> OdamMaps:
    """Read the heat maps that :func:`save_maps` wrote; they render at any size by ``dense``."""
    with np.load(path, allow_pickle=False) as arrays:
        # Older files do not say what is saturated, and have no signed maps.
        known = [name for name in _TENSORS if name in arrays]
        tensors = {name: torch.from_numpy(arrays[name]) for name in known}
        signed = "signed" in arrays and bool(arrays["signed"])
        return OdamMaps(arrays["targets"].tolist(), signed=signed, **tensors)

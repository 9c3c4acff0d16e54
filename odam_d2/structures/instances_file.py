"""Detections with their heat maps in a file; its format is that of ``arrays_file``."""

from __future__ import annotations

import os

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from odam_d2.core.errors import InputError

from .arrays_file import plain_array, read_arrays, write_arrays
from .odam_maps import OdamMaps

__all__ = ["load_instances", "save_instances"]

_MAPS = "odam_maps"


def save_instances(path: str | os.PathLike, instances: Instances) -> None:
    """
    Write N detections, with their heat maps if they have them.

    Args:
        path: ends with ``.npz``; an existing file is replaced when the new one is complete.
        instances: fields are tensors, ``Boxes`` and ``odam_maps``, on any device. Half precision is
            written as float32.

    Raises:
        InputError: the path has another ending, or a field is of another kind.
    """
    fields = dict(instances.get_fields())
    maps = fields.pop(_MAPS, None)
    boxes = [name for name, value in fields.items() if isinstance(value, Boxes)]
    arrays = {
        "image_size": np.array(instances.image_size),
        "fields": np.array(list(fields), dtype=np.str_),
        "boxes": np.array(boxes, dtype=np.str_),
    }
    arrays |= {f"field:{name}": _array(name, value) for name, value in fields.items()}
    write_arrays(path, arrays | (maps.arrays() if maps is not None else {}))


def load_instances(path: str | os.PathLike) -> Instances:
    """
    Read what :func:`save_instances` wrote.

    Args:
        path: of the ``.npz`` file.

    Returns:
        Instances on the CPU.

    Raises:
        InputError: it is no such file, or of a later version.
        OSError: it cannot be read.
    """
    arrays = read_arrays(path)
    try:
        height, width = map(int, arrays["image_size"])
        boxes = arrays["boxes"].tolist()
        instances = Instances((height, width))
        for name in arrays["fields"].tolist():
            tensor = torch.from_numpy(arrays[f"field:{name}"])
            instances.set(name, Boxes(tensor) if name in boxes else tensor)
        maps = OdamMaps.of_arrays(path, arrays)
        if maps is not None:
            instances.set(_MAPS, maps)
    except (KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{os.fspath(path)!r} holds no complete detections: {error}; OdamMaps.load reads maps"
        ) from error
    return instances


def _array(name: str, value: object) -> np.ndarray:
    tensor = value.tensor if isinstance(value, Boxes) else value
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"the field {name!r} is a {type(value).__name__}; only tensors and Boxes are written: "
            f"leave it out by instances.remove({name!r})"
        )
    return plain_array(tensor)

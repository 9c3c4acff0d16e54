"""
Maps and detections in a file: NumPy's ``.npz``, which holds arrays only and runs no code when it is
read.

=================  ================================================================================
``format``         ``"odam_d2"``, and the version of the format, 1
``maps:NAME``      what :class:`odam_d2.OdamMaps` holds under that name
``image_size``     (height, width) of the frame of the detections, if there are detections
``fields``         names of their fields, in their order, ``odam_maps`` not among them
``boxes``          those of the fields that are ``Boxes``
``field:NAME``     an array, of N detections; boxes are XYXY
=================  ================================================================================

Half precision is written as float32, and windows of maps without the zeros that pad them all.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from odam_d2.core.errors import InputError
from odam_d2.core.gradients import precise
from odam_d2.files import whole_file

__all__ = ["TENSORS", "Saved", "plain_array", "read_arrays", "write_arrays"]

TENSORS = ("values", "origins", "strides", "grid_sizes", "image_sizes", "levels", "saturated")
"""Those that maps consist of, by name."""

_S = TypeVar("_S", bound="Saved")

_FORMAT, _VERSION = "odam_d2", 1
_MAPS = "maps:"


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """
    Write a file; an existing one is replaced when the new one is complete.

    Raises:
        InputError: the path does not end with ``.npz``.
    """
    name = os.fspath(path)
    if not name.endswith(".npz"):
        raise InputError(f"{name!r} must end with .npz")
    content: dict[str, Any] = {"format": np.array([_FORMAT, str(_VERSION)]), **arrays}
    with whole_file(name) as file:
        np.savez_compressed(file, **content)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Read a file.

    Raises:
        InputError: it is no such file, or of a later version.
        OSError: it cannot be read.
    """
    name = os.fspath(path)
    try:
        with np.load(name, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{name!r} is no .npz file of odam_d2: {error}") from error
    found = arrays.get("format", np.array(["", "0"])).tolist()
    if found[0] != _FORMAT:
        raise InputError(f"{name!r} is no file that odam_d2 {_VERSION} wrote")
    if int(found[1]) > _VERSION:
        raise InputError(
            f"{name!r} is of version {found[1]} of the format, and this odam_d2 reads versions up "
            f"to {_VERSION}"
        )
    return arrays


def plain_array(tensor: Tensor) -> np.ndarray:
    """A tensor of any device, outside the autograd graph."""
    return precise(tensor.detach()).cpu().numpy()


class Saved:
    """What :class:`odam_d2.OdamMaps` has for files."""

    targets: tuple[str, ...]
    signed: bool

    if TYPE_CHECKING:

        def __init__(self, targets: Sequence[str], **fields: Any) -> None: ...

    def save(self, path: str | os.PathLike) -> None:
        """
        Write the maps as ``.npz``; :func:`odam_d2.save_instances` writes their detections as well.
        An existing file is replaced when the new one is complete.

        Args:
            path: ends with ``.npz``.

        Raises:
            InputError: the path does not end with ``.npz``.
        """
        write_arrays(path, self.arrays())

    @classmethod
    def load(cls: type[_S], path: str | os.PathLike) -> _S:
        """
        Read the maps that :meth:`save` or :func:`odam_d2.save_instances` wrote.

        Args:
            path: of the ``.npz`` file.

        Returns:
            The maps, on the CPU.

        Raises:
            InputError: the file is of another kind, of a later version, or has no maps.
            OSError: it cannot be read.
        """
        maps = cls.of_arrays(path, read_arrays(path))
        if maps is None:
            raise InputError(f"{os.fspath(path)!r} holds detections without maps")
        return maps

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file holds of maps."""
        arrays = {_MAPS + name: plain_array(getattr(self, name)) for name in TENSORS}
        # Windows of a slice are still padded to the largest of all detections.
        values = arrays[_MAPS + "values"]
        height, width = (
            int(np.flatnonzero(values.any(axis=axes)).max(initial=-1)) + 1
            for axes in ((0, 1, 3), (0, 1, 2))
        )
        return arrays | {
            _MAPS + "values": values[:, :, :height, :width],
            _MAPS + "targets": np.array(self.targets, dtype=np.str_),
            _MAPS + "signed": np.array(self.signed),
        }

    @classmethod
    def of_arrays(
        cls: type[_S], path: str | os.PathLike, arrays: Mapping[str, np.ndarray]
    ) -> _S | None:
        """
        The maps of a file that was read.

        Args:
            path: of the file, for messages.
            arrays: what it holds, by name.

        Returns:
            The maps, on the CPU; None where it has none.

        Raises:
            InputError: they are not complete.
        """
        held = {name.removeprefix(_MAPS): a for name, a in arrays.items() if name.startswith(_MAPS)}
        if not held:
            return None
        try:
            tensors = {name: torch.from_numpy(held[name]) for name in TENSORS}
            return cls(held["targets"].tolist(), signed=bool(held["signed"]), **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{os.fspath(path)!r} holds no usable maps: {error}") from error

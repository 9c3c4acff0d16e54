"""Detectron2's checkpointer, which reads checkpoints as data: nothing in a file is run."""

from __future__ import annotations

from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer

from .safe_pickle import load_arrays, load_tensors
from .whole_checkpoints import WholeCheckpointer

__all__ = ["SafeCheckpointer"]


class _WeightsOnly(Checkpointer):
    """
    What Detectron2's checkpointer has above itself in a :class:`SafeCheckpointer`, in the place of
    ``torch.load`` as fvcore calls it.
    """

    def _load_file(self, f: str) -> dict:
        return load_tensors(f)


class SafeCheckpointer(WholeCheckpointer, _WeightsOnly):
    """
    Loads what Detectron2's checkpointer loads, of files that hold arrays, tensors and containers:
    ``.pth``, and ``.pkl`` and ``.pyth`` of Detectron2's, Caffe2's and pycls's model zoos.

    Raises (by ``load``):
        pickle.UnpicklingError: the file holds anything else.
    """

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as file:
                return _from_zoo(load_arrays(file))
        if filename.endswith(".pyth"):
            state = load_tensors(filename)["model_state"]
            return _foreign(state, "num_batches_tracked", "pycls")
        return super()._load_file(filename)


def _from_zoo(data: dict) -> dict:
    """A checkpoint of what a ``.pkl`` file holds: Detectron2's, else Caffe2's."""
    if "model" in data and "__author__" in data:
        return data
    # Only detectors of Detectron1 have "blobs".
    return _foreign(data.get("blobs", data), "_momentum", "Caffe2")


def _foreign(weights: dict, left_out: str, author: str) -> dict:
    """A checkpoint whose names Detectron2 has to match, without those that end in ``left_out``."""
    kept = {name: value for name, value in weights.items() if not name.endswith(left_out)}
    return {"model": kept, "__author__": author, "matching_heuristics": True}

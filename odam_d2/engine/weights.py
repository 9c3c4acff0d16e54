"""Loading a checkpoint into a model, with an error where they do not fit."""

import pickle

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

import odam_d2.model_zoo  # noqa: F401 (makes odam:// addresses known)
from odam_d2.errors import UserError

__all__ = ["check_weights_exist", "load_weights"]


def check_weights_exist(weights: str) -> None:
    """
    Raise a :class:`UserError` when a checkpoint named by a plain path is not there. Addresses
    (``detectron2://``, ``odam://``, ``https://``) are left to their handlers.
    """
    path = weights.split("?")[0]
    if path and "://" not in path and not PathManager.isfile(path):
        raise UserError(f"weights file {path!r} does not exist")


def load_weights(model: nn.Module, weights: str, *, strict: bool = True) -> None:
    """
    Load a checkpoint into ``model``, in place, by Detectron2's own checkpointer.

    Args:
        model: any Detectron2 model.
        weights: path or address of the checkpoint.
        strict: refuse a checkpoint that leaves a parameter of the model as it was initialised, or
            has one of another shape. Without it such parameters are only logged, as Detectron2
            does: right for fine-tuning, wrong for inference.

    Raises:
        UserError: no such file, not a checkpoint, or (strict) it does not fit the model.
    """
    if not weights:
        raise UserError("MODEL.WEIGHTS is empty: name the checkpoint to use")
    check_weights_exist(weights)
    checkpointer = _RecordingCheckpointer(model)
    try:
        checkpointer.load(weights)
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{weights!r} is not a checkpoint that can be read ({error!r})") from error
    except OSError as error:
        raise UserError(f"weights {weights!r} cannot be read: {error}") from error
    if strict:
        _refuse_misfit(weights, checkpointer.incompatible)


class _RecordingCheckpointer(DetectionCheckpointer):
    """Keeps what did not fit, which :class:`DetectionCheckpointer` only logs."""

    incompatible = None

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def _refuse_misfit(weights: str, incompatible) -> None:
    if incompatible.incorrect_shapes:
        key, in_file, in_model = incompatible.incorrect_shapes[0]
        count = len(incompatible.incorrect_shapes)
        raise UserError(
            f"weights {weights!r} do not fit the model: {count} of its parameters have another "
            f"shape, e.g. {key} is {tuple(in_file)} in the file and {tuple(in_model)} in the model"
        )
    if incompatible.missing_keys:
        missing = sorted(incompatible.missing_keys)
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"weights {weights!r} do not fit the model: {len(missing)} parameters are not in the "
            f"file ({names})"
        )

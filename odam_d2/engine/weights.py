"""Loading a checkpoint into a model, with an error where they do not fit."""

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from odam_d2.errors import UserError, one_line
from odam_d2.model_zoo.handler import OdamHandler

from .checkpointer import SafeCheckpointer

__all__ = [
    "check_finite",
    "check_weights_exist",
    "checkpoint_errors",
    "load_weights",
    "starting_weights",
]


def starting_weights(weights: str, output_dir: str, resume: bool) -> str:
    """``weights``, or when resuming the last checkpoint in ``output_dir`` if there is one."""
    return (resume and SafeCheckpointer(None, output_dir).get_checkpoint_file()) or weights


def check_weights_exist(weights: str) -> None:
    """
    Raise a :class:`UserError` when a checkpoint named by a path or ``odam://`` is not there. What
    has to be downloaded (``detectron2://``, ``https://``) is left for later.
    """
    path = weights.split("?")[0]
    if path.startswith(OdamHandler.PREFIX):
        PathManager.get_local_path(path)
    elif path and "://" not in path and not PathManager.isfile(path):
        raise UserError(f"weights file {path!r} does not exist")


@contextlib.contextmanager
def checkpoint_errors(weights: str) -> Iterator[None]:
    """Turn what loading a bad checkpoint may raise into a :class:`UserError` that names it."""
    try:
        yield
    except (UserError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except OSError as error:
        raise UserError(f"weights {weights!r} cannot be read: {one_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{weights!r} is not a checkpoint that can be read: {one_line(error)}"
        ) from error
    except Exception as error:  # what Detectron2 makes of content that is no checkpoint
        raise UserError(f"{weights!r} is not a checkpoint that can be read ({error!r})") from error


def load_weights(model: nn.Module, weights: str, key: str = "MODEL.WEIGHTS") -> None:
    """
    Load a trained detector into ``model``, in place, by Detectron2's own checkpointer.

    Unlike it, refuse a checkpoint that leaves a parameter of the model as it was initialised: fine
    for training, meaningless detections otherwise. Refuse one with values that are not finite, too:
    a detector with NaN finds nothing, and says nothing of it.

    Args:
        model: any Detectron2 model.
        weights: path or address of the checkpoint.
        key: where the config names it, for the message.

    Raises:
        UserError: no such file, not a checkpoint, or it does not fit the model or is not finite.
    """
    if not weights:
        raise UserError(f"{key} is empty: name the checkpoint to use")
    check_weights_exist(weights)
    checkpointer = _RecordingCheckpointer(model)
    with checkpoint_errors(weights):
        checkpointer.load(weights)
    _refuse_misfit(weights, checkpointer.incompatible)
    check_finite(model, weights)


def check_finite(model: nn.Module, weights: str) -> None:
    """
    Raise a :class:`UserError` when a parameter or buffer of a model is not finite.

    Args:
        weights: where it was loaded from, for the message.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            count = value.numel() - int(finite.sum())
            raise UserError(
                f"weights {weights!r} are not finite: {count} of the {value.numel()} values of "
                f"{name} are NaN or infinite; use a checkpoint from before the training diverged"
            )


class _RecordingCheckpointer(SafeCheckpointer):
    """Keeps what did not fit, which Detectron2's only logs."""

    incompatible: Any = None

    def _load_model(self, checkpoint: dict) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def _refuse_misfit(weights: str, incompatible: Any) -> None:
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

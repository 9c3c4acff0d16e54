"""Files of proposals, which Detectron2 unpickles."""

import pickle
from collections.abc import Iterable

from detectron2.utils.file_io import PathManager

from odam_d2.errors import UserError, one_line

from .safe_pickle import load_arrays

__all__ = ["check_proposals"]


def check_proposals(files: Iterable[str]) -> None:
    """
    Read files of proposals before Detectron2 does, which would run what is in them.

    Raises:
        UserError: one cannot be read, or holds anything but arrays and containers.
    """
    for path in files:
        try:
            with PathManager.open(path, "rb") as file:
                load_arrays(file)
        except OSError as error:
            raise UserError(f"proposals {path!r} cannot be read: {one_line(error)}") from error
        except pickle.UnpicklingError as error:
            raise UserError(f"{path!r} is no file of proposals: {one_line(error)}") from error

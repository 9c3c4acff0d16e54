"""Checkpoints of a training that a kill, or a full disk, does not cut off."""

from __future__ import annotations

import functools
import logging
import os
import re
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import PathManager

from odam_d2.errors import UserError
from odam_d2.files import remove_leftovers, whole_file

__all__ = ["WholeCheckpointer", "is_whole", "last_whole", "named_checkpoint", "remove_checkpoints"]

_LAST = "last_checkpoint"
_NAME = re.compile(r"model_(\d{7,}|final)\.pth")
"""As Detectron2's ``PeriodicCheckpointer`` names them."""


class WholeCheckpointer(DetectionCheckpointer):
    """
    Detectron2's, whose files appear whole or not at all, and which resumes from a whole one: the
    one that ``last_checkpoint`` names, or where that is damaged the newest other one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path_manager: Any = _WholeFiles(self.path_manager)
        if self.save_dir and "://" not in self.save_dir:
            # Of a training that was killed: one that has nothing left to save would not see to it.
            remove_leftovers(self.save_dir)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """
        The checkpoint to resume from; empty where the folder has none.

        Raises:
            UserError: the folder has checkpoints, and all of them are damaged.
        """
        if not super().has_checkpoint():
            return ""
        if "://" in self.save_dir:
            return super().get_checkpoint_file()
        found = last_whole(self.save_dir)
        if not found:
            raise UserError(
                f"{os.path.join(self.save_dir, _LAST)!r} says that there is a checkpoint, and none "
                f"in that folder is whole: remove {_LAST} to train from the start"
            )
        return found


class _WholeFiles:
    """A path manager that writes local files whole; all else is the given one's."""

    def __init__(self, paths: PathManager):
        self._paths = paths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._paths, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> AbstractContextManager[IO]:
        if "w" in mode and "://" not in path:
            return whole_file(path, mode, **kwargs)
        return self._paths.open(path, mode, **kwargs)


def last_whole(folder: str | os.PathLike) -> str:
    """
    The checkpoint that ``last_checkpoint`` names, or the newest one where that one is damaged or
    missing, which is logged; empty where no checkpoint is whole.
    """
    folder = Path(folder)
    named = named_checkpoint(folder)
    if named and is_whole(folder / named):
        return str(folder / named)
    newest_first = sorted(_checkpoints(folder), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    found = next((str(path) for path in newest_first if is_whole(path)), "")
    if found:
        what = f"names {named!r}, which is missing or damaged" if named else "is empty or missing"
        message = f"{folder / _LAST} {what}: going on with {found}, the newest that is whole"
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    return found


def named_checkpoint(folder: str | os.PathLike) -> str:
    """What ``last_checkpoint`` says; empty where it is missing, or no file."""
    try:
        return (Path(folder) / _LAST).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("model_*.pth") if _NAME.fullmatch(path.name)]


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a file is a checkpoint as ``torch.save`` writes it, with all of its content."""
    if not os.path.isfile(path):
        return False
    state = os.stat(path)
    return _is_whole(os.fspath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _is_whole(path: str, size: int, changed: int) -> bool:
    """Read once for each state of the file."""
    try:
        with zipfile.ZipFile(path) as archive:  # with checksums of its parts
            names = archive.namelist()
            return any(n.endswith("data.pkl") for n in names) and archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        return False


def remove_checkpoints(folder: str | os.PathLike) -> None:
    """Remove the checkpoints of a training, ``last_checkpoint`` first."""
    folder = Path(folder)
    (folder / _LAST).unlink(missing_ok=True)
    for path in _checkpoints(folder):
        path.unlink()

"""
The one way to write a file, and to read back what was written.

A file or folder appears whole or not at all, also when the process is killed or the disk is full:
it is made under another name in the same folder, brought to disk, and renamed. What a killed
process leaves behind has a name of its own, is never read, and is removed by the next one that
writes there. What is read back is checked, and made again where it is not as it was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch

from odam_d2.errors import one_line

__all__ = [
    "drop_unfinished_line",
    "encode_png",
    "read_json",
    "read_torch",
    "remove_leftovers",
    "whole_file",
    "whole_folder",
    "write_bytes",
    "write_json",
    "write_png",
    "write_text",
    "write_torch",
]

logger = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\.odam-[0-9a-f]{32}\.partial")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, mode: str = "wb", **options: Any) -> Iterator[IO]:
    """
    A file to write to, which takes its name, and the place of an earlier one, when all is written.

    Args:
        path: in a folder that exists. What is there and no regular file, such as ``/dev/stdout``,
            is written to directly.
        mode: ``"wb"`` or ``"w"``.
        **options: of ``open``; text is UTF-8 by default.

    Raises:
        OSError: it cannot be written as a whole; what was there before is still there.
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    path = os.path.realpath(path)  # a link stays a link
    if os.path.lexists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, mode, **options) as file:
            yield file
        return
    folder = os.path.dirname(path)
    remove_leftovers(folder)
    temporary, handle = _create(folder, lambda name: os.open(name, _NEW, 0o666))
    try:
        with open(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(handle)
            os.replace(temporary, path)  # before the lock is gone
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        # torch.save fails once more when it closes what it could not write.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.filename is None and cause.errno is not None:
            raise OSError(cause.errno, cause.strerror, path) from error  # which disk is full
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to fill, which takes its name, and the place of an earlier one, when all is in it.

    Args:
        path: in a folder that exists.
    """
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    remove_leftovers(parent)
    temporary, handle = _create(parent, _make_folder)
    try:
        yield Path(temporary)
        os.fsync(handle)
        if os.path.lexists(path):
            old, lock = _create(parent, _make_folder)
            try:
                # One rename each: nothing half-removed is ever seen under the folder's own name.
                os.rename(path, os.path.join(old, "old"))
                os.rename(temporary, path)
            finally:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
        else:
            os.rename(temporary, path)
        _sync_folder(parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


def _make_folder(name: str) -> int:
    os.mkdir(name)
    return os.open(name, os.O_RDONLY)


def _create(folder: str, make: Callable[[str], int]) -> tuple[str, int]:
    """
    Something new under a name of its own, and its handle, with a lock by which others see that a
    process is at work on it: the system takes it off when that process ends, however it ends.
    """
    while True:
        name = os.path.join(folder, f".odam-{uuid.uuid4().hex}.partial")
        handle = make(name)
        with contextlib.suppress(OSError):  # file systems without locks: nothing is cleaned there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):
            return name, handle
        os.close(handle)  # another process was faster to clean than we to lock


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what processes left in a folder that were killed while they wrote there."""
    try:
        found = [name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name)]
    except OSError:  # missing, or not ours to read: whoever writes there is told
        return
    for path in (os.path.join(folder, name) for name in found):
        with contextlib.suppress(OSError):  # in use, or gone already
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.isdir(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            finally:
                os.close(handle)


def _sync_folder(folder: str) -> None:
    """Bring the new name itself to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(handle)
    finally:
        os.close(handle)


def drop_unfinished_line(path: str | os.PathLike) -> None:
    """Cut a file that lines are appended to after its last whole one; a kill may leave half one."""
    if not os.path.isfile(path):
        return
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def write_text(path: str | os.PathLike, text: str, errors: str = "strict") -> None:
    """Write a text, in UTF-8, with what ``open`` does about ``errors``."""
    with whole_file(path, "w", errors=errors) as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: object, indent: int | None = 2) -> None:
    """Write JSON and a line break."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def encode_png(image: np.ndarray, options: Sequence[int] = ()) -> bytes:
    """
    Args:
        image: (H, W, 3) uint8 RGB.
        options: of ``cv2.imencode``.
    """
    done, content = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]), options)
    if not done:
        raise OSError(f"OpenCV cannot make a PNG of an image of shape {image.shape}")
    return content.tobytes()


def write_png(path: str | os.PathLike, image: np.ndarray, options: Sequence[int] = ()) -> None:
    """As :func:`encode_png`, into a file."""
    write_bytes(path, encode_png(image, options))


def write_torch(path: str | os.PathLike, content: object) -> None:
    """Write what :func:`torch.save` can."""
    with whole_file(path) as file:
        torch.save(content, file)


def read_json(path: str | os.PathLike, check: Callable[[Any], bool]) -> Any:
    """
    Read JSON that a tool of ours wrote.

    Args:
        check: whether the content is of the right form; may raise where it is of another one.

    Returns:
        None where there is no such file, and, with a line in the log, where it is damaged.
    """
    return _read(path, lambda: json.loads(Path(path).read_bytes()), check)


def read_torch(path: str | os.PathLike, check: Callable[[Any], bool]) -> Any:
    """As :func:`read_json`, for what :func:`write_torch` wrote: tensors and plain containers."""
    return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True), check)


def _read(path: str | os.PathLike, load: Callable[[], Any], check: Callable[[Any], bool]) -> Any:
    if not os.path.isfile(path):
        return None
    try:
        content = load()
        if check(content):
            return content
        reason = "it is not of the form that this version writes"
    except Exception as error:  # whatever a damaged file makes a reader, or the check, raise
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
    logger.warning("%s is damaged and is made again (%s).", path, reason)
    return None

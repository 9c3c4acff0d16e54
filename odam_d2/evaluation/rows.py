"""Figures of images on disk as soon as they are known, so that a long evaluation can be resumed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from detectron2.utils import comm

from odam_d2.digests import describe, digest
from odam_d2.errors import UserError
from odam_d2.files import remove_leftovers, whole_file
from odam_d2.fingerprint import differences

__all__ = ["RowFiles"]

logger = logging.getLogger(__name__)


class RowFiles:
    """
    What was found in each image: in memory, and a line of JSON in ``rows_RANK.jsonl``. The first
    line of a file is the fingerprint of all of its rows, and each row has that of its image; both
    have a checksum, so that nothing half-written is taken for a row.

    With several processes, the first one reads what there is and tells the others, so that all
    agree on what is done, however many processes there were before. Make it in all of them.

    Args:
        folder: of the files; None for memory only.
        fingerprint: what every row depends on.
        image_keys: by image id, what else the row of an image depends on: those that may come.
        resume: start with the images that the files of earlier processes have, where fingerprints
            and keys are these.
        distributed: whether all processes take part; otherwise this one does by itself.

    Attributes:
        by_image (dict): of image id, what was added.
    """

    def __init__(
        self,
        folder: str | None,
        fingerprint: Mapping,
        image_keys: Mapping[object, str],
        *,
        resume: bool = False,
        distributed: bool = True,
    ):
        self.folder = None if folder is None else Path(folder)
        self.fingerprint = json.loads(json.dumps(describe(fingerprint)))
        self._image_keys = image_keys
        self._distributed = distributed
        self._file: TextIO | None = None
        self._resumed: dict = {}
        if self.folder is not None and resume:
            if self._rank == 0:
                self._resumed = self._read(self.folder)
            if distributed:
                self._resumed = comm.all_gather(self._resumed)[0]
        self.by_image = dict(self._resumed)

    @property
    def _rank(self) -> int:
        return comm.get_rank() if self._distributed else 0

    def open(self) -> None:
        """
        Begin with what was resumed, and write from now on to the file of this process. What else
        was there is gone.
        """
        self.by_image = dict(self._resumed)
        if self.folder is None:
            return
        self.close()
        if self._rank == 0:
            self._collect(self.folder)
        if self._distributed:
            comm.synchronize()  # before it writes, no process may take a row for one of the others
        path = _rows_file(self.folder, self._rank)
        if self._rank > 0:
            self._write_whole(path, {})
        self._file = path.open("a", encoding="utf-8")

    def add(self, image_id: object, record: object) -> None:
        record = _without_nan(record)
        self.by_image[image_id] = record
        if self._file is None:
            return
        try:
            self._file.write(self._row(image_id, record))
            self._file.flush()
        except OSError as error:  # say where the disk is full
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def gather(self, expected: Sequence[object] | None = None) -> dict | None:
        """
        The rows of all processes.

        Args:
            expected: ids of the images whose rows are asked for; None for those that there are.

        Returns:
            By image id, in the order of ``expected`` or else of ``image_keys``; None on other than
            the main process.

        Raises:
            UserError: an image came to no process, or to several.
        """
        new = {k: row for k, row in self.by_image.items() if k not in self._resumed}
        parts = [new]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(new, dst=0)
            if not comm.is_main_process():
                return None
        found = dict(self._resumed)
        for part in parts:
            if twice := found.keys() & part.keys():
                raise UserError(
                    f"{len(twice)} images were evaluated by two processes, such as "
                    f"{min(twice, key=repr)!r}: each must come to one of them"
                )
            found |= part
        requested = self._image_keys if expected is None else expected
        lost = [image_id for image_id in requested if image_id not in found]
        if expected is not None and lost:
            raise UserError(
                f"{len(lost)} of {len(expected)} images were evaluated by no process, such as "
                f"{lost[0]!r}; the same command goes on with them"
            )
        return {image_id: found[image_id] for image_id in requested if image_id in found}

    def _collect(self, folder: Path) -> None:
        """All that was resumed in one file, and then no other."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        self._write_whole(_rows_file(folder, 0), self._resumed)
        for path in folder.glob("rows_*.jsonl"):
            if path != _rows_file(folder, 0):
                path.unlink()

    def _write_whole(self, path: Path, rows: Mapping) -> None:
        with whole_file(path, "w") as file:
            file.write(_line(self.fingerprint))
            for image_id, record in rows.items():
                file.write(self._row(image_id, record))

    def _row(self, image_id: object, record: object) -> str:
        if isinstance(image_id, np.generic):
            image_id = image_id.item()
        return _line([image_id, record, self._image_keys[image_id]])

    def _read(self, folder: Path) -> dict:
        """The rows of all files that can be taken again."""
        found: dict = {}
        others = 0
        for path in sorted(folder.glob("rows_*.jsonl")):
            first, *lines = path.read_bytes().splitlines() or [b""]
            written = _content(first)
            if written is None:
                logger.info("%s is damaged, and its images are evaluated again.", path)
                continue
            if why := differences(written, self.fingerprint):
                logger.info("%s is of an earlier run, and its images are evaluated again: %s.",
                            path, why)  # fmt: skip
                continue
            rows = [_content(line) for line in lines]
            if None in rows:
                logger.info("%s: %d damaged lines are left out.", path, rows.count(None))
            for image_id, record, key in filter(None, rows):
                image_id = tuple(image_id) if isinstance(image_id, list) else image_id
                if image_id in self._image_keys and self._image_keys[image_id] != key:
                    others += 1
                elif image_id in self._image_keys:
                    found[image_id] = record
        if others:
            logger.info("%s: %d images, or their annotations, have changed and are evaluated "
                        "again.", folder, others)  # fmt: skip
        return found


def _rows_file(folder: Path, rank: int) -> Path:
    return folder / f"rows_{rank}.jsonl"


def _line(value: object) -> str:
    return json.dumps({"content": value, "checksum": digest(value)}) + "\n"


def _content(line: bytes) -> Any:
    """What :func:`_line` was given; None where it did not write this."""
    try:
        found = json.loads(line)
        content = found["content"]
        return content if found["checksum"] == digest(content) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _without_nan(value: object) -> object:
    """JSON has no nan: what is not defined is None."""
    if isinstance(value, dict):
        return {key: _without_nan(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

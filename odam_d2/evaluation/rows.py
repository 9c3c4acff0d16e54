"""Figures of images on disk as soon as they are known, so that a long evaluation can be resumed."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TextIO

__all__ = ["RowFiles"]

logger = logging.getLogger(__name__)


class RowFiles:
    """
    What was found in each image: in memory, and a line of JSON in ``rows_RANK.jsonl``. The first
    line says for which settings.

    Args:
        folder: of the files; None for memory only.
        settings: of the evaluation, as JSON gives them back.
        resume: start with the images that the files of earlier processes have, if their settings
            were these.

    Attributes:
        by_image (dict): of image id, what was added.
    """

    def __init__(self, folder: str | None, settings: dict, resume: bool = False):
        self.folder = None if folder is None else Path(folder)
        self.settings = settings
        self.by_image: dict = {}
        self._resumed: dict = {}
        self._file: TextIO | None = None
        if self.folder is not None and resume:
            for path in sorted(self.folder.glob("rows_*.jsonl")):
                self._load(path)
        self.by_image = dict(self._resumed)

    def open(self, rank: int) -> None:
        """
        Begin with what was resumed, and write from now on to the file of a process. What else was
        there is overwritten.
        """
        self.by_image = dict(self._resumed)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.close()
        # Written anew, not appended to: a killed process may have left half a line.
        self._file = (self.folder / f"rows_{rank}.jsonl").open("w")
        self._write(self.settings)
        for image_id, record in self.by_image.items():
            self._write([image_id, record])

    def add(self, image_id: object, record: dict) -> None:
        record = _without_nan(record)
        self.by_image[image_id] = record
        if self._file is not None:
            self._write([image_id, record])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _write(self, value: object) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def _load(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        try:
            if not lines or json.loads(lines[0]) != self.settings:
                logger.info("%s is of other settings and will be overwritten.", path)
                return
            for line in lines[1:]:
                image_id, record = json.loads(line)
                self._resumed[image_id] = record
        except json.JSONDecodeError:
            logger.info("%s ends in the middle of a line, which is left out.", path)


def _without_nan(value: object) -> object:
    """JSON has no nan: what is not defined is None."""
    if isinstance(value, dict):
        return {key: _without_nan(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

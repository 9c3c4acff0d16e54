"""From what the user names on the command line to pictures."""

import glob
import os
from collections.abc import Iterable

from odam_d2.errors import UserError

__all__ = ["IMAGE_SUFFIXES", "expand_inputs"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder. A file that is named by itself may be called anything."""


def expand_inputs(names: Iterable[str]) -> list[str]:
    """
    List the image files that files, folders (not their subfolders) and patterns such as
    ``"street/*.jpg"`` stand for.

    Args:
        names: of files and folders, and patterns.

    Returns:
        Paths, in the order given, each file once.

    Raises:
        UserError: something does not exist, holds no image, or matches nothing.
    """
    paths: dict[str, str] = {}
    for name in names:
        for path in _expand(name):
            paths.setdefault(os.path.realpath(path), path)
    return list(paths.values())


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        entries = sorted(os.listdir(name))
        images = [
            os.path.join(name, entry)
            for entry in entries
            if entry.lower().endswith(IMAGE_SUFFIXES) and not entry.startswith(".")
        ]
        if not images:
            raise UserError(f"folder {name!r} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        return images
    if os.path.exists(name):  # also when its name looks like a pattern
        return [name]
    if glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        matches = [path for path in matches if not os.path.isdir(path)]
        if not matches:
            raise UserError(f"no file matches {name!r}")
        return matches
    raise UserError(f"input {name!r} does not exist")

"""Where data sets lie."""

import os
from pathlib import Path

VARIABLES = ("ODAM_DATASETS", "DETECTRON2_DATASETS")
"""Environment variables that name the data folder, the first one that is set wins."""


def datasets_root() -> Path:
    """The folder that holds the data sets: `$ODAM_DATASETS`, else Detectron2's
    `$DETECTRON2_DATASETS`, else `datasets` in the working directory."""
    for name in VARIABLES:
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    return Path("datasets")


def require_writable(folder: Path) -> None:
    """Create `folder` if it is missing.

    Raises:
        PermissionError: nothing can be written there; says what to do about it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise PermissionError(
            f"Cannot write data sets to {folder.absolute()}: "
            f"set the environment variable {VARIABLES[0]} to a folder that you can write to."
        )

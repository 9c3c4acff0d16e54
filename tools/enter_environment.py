"""Going on in the environment that ``make`` made, where the Python that runs has no Detectron2."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["enter_environment"]

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"


def enter_environment() -> None:
    """
    Run the program again by the Python of ``.venv``, if this one has no torch or no Detectron2;
    ends it with one line where that one has none either. odam_d2 is that of this checkout, unless
    another is installed.
    """
    if find_spec("torch") is None or find_spec("detectron2") is None:
        if PYTHON.exists() and Path(sys.prefix) != PYTHON.parents[1]:
            os.execv(PYTHON, [str(PYTHON), *sys.argv])
        sys.exit(
            f"error: {sys.executable} has no Detectron2: run `make env`, or name the Python of "
            f"your environment: PYTHON {sys.argv[0]} ..."
        )
    if find_spec("odam_d2") is None:
        sys.path.append(str(ROOT))

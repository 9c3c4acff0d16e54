"""Importing this says in one sentence what is missing, before an import deep inside fails."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_requirements"]


def check_requirements() -> None:
    """
    Look for what pip cannot bring along with this package, importing nothing.

    Raises:
        ImportError: Detectron2 is missing, or is one whose model zoo needs the ``pkg_resources``
            module that newer versions of setuptools no longer have.
    """
    detectron2 = find_spec("detectron2")
    if detectron2 is None or detectron2.origin is None:
        raise ImportError(
            "odam_d2 extends Detectron2, which is not installed here: see docs/install.md of "
            "odam_d2, or run `make env` in its checkout"
        )
    if find_spec("pkg_resources") is None and _uses_pkg_resources(Path(detectron2.origin).parent):
        raise ImportError(
            "this Detectron2 needs the pkg_resources module, which setuptools 82 and later lack: "
            'run pip install "setuptools<82"'
        )


def _uses_pkg_resources(detectron2: Path) -> bool:
    model_zoo = detectron2 / "model_zoo" / "model_zoo.py"
    return model_zoo.exists() and "import pkg_resources" in model_zoo.read_text(encoding="utf-8")


check_requirements()

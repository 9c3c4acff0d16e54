"""The installer, ``tools/install``: it is no package, so it is put on the path as when it runs."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installer(monkeypatch):
    """The modules of the installer, as attributes."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "install"))
    names = [
        "checks",
        "detectron2_wheel",
        "existing",
        "managed",
        "pip_runner",
        "select_environment",
    ]
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})

"""Which environment to use: the one of the running Python, or ``.venv``."""

import importlib.util
import sys
from pathlib import Path

from checks import InstallError
from existing import ExistingEnvironment
from managed import ManagedEnvironment

__all__ = ["select_environment"]

ROOT = Path(__file__).resolve().parents[2]


def select_environment(use_env: str = "", root: Path = ROOT, detectron2: str = ""):
    """
    Args:
        use_env: "1" for the environment of the running Python, "0" for ``.venv``, "" to prefer
            the running Python if it has torch and detectron2.
        root: the checkout.
        detectron2: which Detectron2 ``.venv`` shall get, a requirement or a path; empty for the
            one that it has, at first the reviewed wheel, which is asked for as "reviewed".

    Returns:
        A :class:`ManagedEnvironment` or an :class:`ExistingEnvironment`.

    Raises:
        InstallError: no environment will do, or ``detectron2`` was named for one of the user's.
    """
    environment = _select(use_env, root, detectron2)
    if detectron2 and isinstance(environment, ExistingEnvironment):
        raise InstallError(
            f"the environment of {environment.python} has a Detectron2, which stays as it is: "
            "leave out DETECTRON2=, or have .venv made with it by USE_ENV=0"
        )
    return environment


def _select(use_env: str, root: Path, detectron2: str):
    managed = ManagedEnvironment(root, detectron2)
    inside = Path(sys.prefix) == managed.folder and not managed.is_handmade()
    if use_env == "1" or (use_env == "" and not inside and _has("torch", "detectron2")):
        return _require_detectron2(ExistingEnvironment(root, Path(sys.executable)))
    if not managed.is_handmade():
        return managed
    if use_env == "0":
        raise InstallError(".venv was made by hand: rename it, then run the command again")
    handmade = ExistingEnvironment(root, managed.python)
    if handmade.lacks("torch", "detectron2", "pip") == ["torch", "detectron2"]:
        return managed  # nothing in it that an installation could spoil
    return _require_detectron2(handmade)


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in modules)


def _require_detectron2(environment: ExistingEnvironment) -> ExistingEnvironment:
    lacking = environment.lacks("torch", "detectron2")
    if lacking:
        raise InstallError(
            f"the environment of {environment.python} has no {' and no '.join(lacking)}: install "
            "as docs/install.md says, or let another be made with USE_ENV=0"
        )
    return environment

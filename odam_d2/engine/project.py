"""
A project of the user's: ``--import`` runs its code, which registers data sets and models, and adds
config keys, before a tool reads the config.
"""

import importlib
import importlib.util
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from detectron2.config import CfgNode

from odam_d2.errors import UserError, one_line

__all__ = ["add_import_argument", "import_projects"]


def add_import_argument(parser: ArgumentParser) -> None:
    """Add ``--import``, whose values are in ``args.imports``."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py or MODULE",
        help="run Python code first, which registers data sets and models; its functions named "
        "add_*config (add_pointrend_config, say) are called with the config. May be repeated",
    )


def import_projects(names: Sequence[str]) -> list[Callable[[CfgNode], object]]:
    """
    Import files and modules, each once in a process.

    Args:
        names: a path that ends with ``.py``, whose folder can be imported from, or the name of a
            module.

    Returns:
        Their functions named ``add_*config``, which add keys to a config; ours is not among them.

    Raises:
        UserError: there is no such file or module, or it fails; names the file and line.
    """
    modules = [_import(name) for name in names]
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("add_") and name.endswith("config") and name != "add_odam_config"
        if callable(value)
    ]


def _import(name: str) -> ModuleType:
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise UserError(f"--import: there is no file {name!r}")
    try:
        return _import_file(Path(name).resolve()) if is_file else importlib.import_module(name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if not is_file and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"--import: there is no module {name!r} here; a file is named by its path, which "
                "ends with .py"
            ) from error
        raise UserError(_complaint(name, error)) from error
    except Exception as error:  # the file is a program: anything can happen in it
        raise UserError(_complaint(name, error)) from error


def _import_file(path: Path) -> ModuleType:
    # Under a name of its own: a project's "demo.py" is no package's "demo".
    name = f"odam_import_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    if known is not None:
        raise UserError(f"--import: two files have the name {path.name}: {known.__file__}, {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--import: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as Python does, for classes that are pickled
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _complaint(name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(name).name]
    where = f", line {lines[-1]}," if lines else ""
    return f"--import: {name}{where} failed: {type(error).__name__}: {one_line(error)}"

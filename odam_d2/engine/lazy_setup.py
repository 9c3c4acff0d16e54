"""From a LazyConfig, Detectron2's config in Python, and overrides to a checked config."""

import builtins
import difflib
import inspect
import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2 import model_zoo
from detectron2.config import LazyConfig
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from odam_d2.errors import UserError, one_line
from odam_d2.model_zoo.config_files import find_config_file

from .lazy_yaml import load_lazy_yaml
from .project import import_projects
from .setup import settle_device

__all__ = ["select", "setup_lazy"]

logger = logging.getLogger(__name__)

# Read by Detectron2's ``default_setup``, and in no config of its zoo; their values there.
_DEFAULT_SETUP = {"seed": -1, "cudnn_benchmark": False}


def setup_lazy(
    config_file: str, opts: Sequence[str] = (), imports: Sequence[str] = ()
) -> DictConfig:
    """
    A LazyConfig with overrides, a complete ``train``, and a device that this machine has: where
    CUDA is missing and the overrides do not name ``train.device``, it becomes "cpu", without AMP.

    Args:
        config_file: path of a ``.py`` file, or of a LazyConfig that was saved as YAML; or name
            of one of the project's such as ``COCO-Detection/fcos_R_50_FPN_1x.py``.
        opts: ``KEY=VALUE ...``, in Hydra's grammar. A key that the config does not have must be
            an argument of what its node calls, or be written ``+KEY=VALUE``.
        imports: projects that are imported before, see :func:`import_projects`.

    Returns:
        omegaconf's ``DictConfig``, nothing instantiated.

    Raises:
        UserError: the file does not exist or fails, a key does not exist, a value cannot be read,
            or CUDA is asked for and missing.
    """
    import_projects(imports)
    cfg = _load(find_config_file(config_file))
    if "train" not in cfg:
        cfg.train = {}
    defaults = model_zoo.get_config("common/train.py").train
    for key, value in {**defaults, **_DEFAULT_SETUP}.items():
        if key not in cfg.train:
            cfg.train[key] = value
    named = {_override(cfg, text) for text in opts}
    cfg.train.device = settle_device(cfg.train.device, "train.device", "train.device" in named)
    _settle_amp(cfg, "train.amp.enabled" in named)
    return cfg


def select(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """
    The value at a dotted key of a config, its interpolations resolved; ``default`` where there is
    none.

    Raises:
        UserError: the value is an interpolation that leads nowhere.
    """
    try:
        for part in key.split("."):
            if not isinstance(cfg, Mapping) or part not in cfg:
                return default
            cfg = cfg[part]
    except OmegaConfBaseException as error:
        raise UserError(f"config key {key} cannot be read: {one_line(error)}") from error
    return cfg


def _load(config_file: str) -> DictConfig:
    if not config_file:
        raise UserError("name the config by --config-file")
    if not PathManager.isfile(config_file):
        raise UserError(f"config file {config_file!r} does not exist")
    importer = builtins.__import__
    try:
        lazy_yaml = config_file.endswith((".yaml", ".yml"))
        cfg = load_lazy_yaml(config_file) if lazy_yaml else LazyConfig.load(config_file)
    except UserError:
        raise
    except Exception as error:  # the file is a program: anything can happen in it
        raise UserError(_complaint(config_file, error)) from error
    finally:
        builtins.__import__ = importer  # Detectron2 leaves its own in place after an error
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        hint = " (configs with MODEL are for the tools that take YAML)" if "MODEL" in cfg else ""
        raise UserError(f"{config_file} has no 'model', so it is not a LazyConfig{hint}")
    return cfg


def _complaint(config_file: str, error: BaseException) -> str:
    """What happened in a config, and in which of its lines."""
    if isinstance(error, SyntaxError) and error.__cause__ is not None:
        error = error.__cause__  # Detectron2 wraps it, without its message
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == config_file
    ]
    where = f", line {lines[-1]}," if lines else ""
    return f"{config_file}{where} is not a usable config: {type(error).__name__}: {one_line(error)}"


def _override(cfg: DictConfig, text: str) -> str:
    """Apply one ``KEY=VALUE`` in place and return the key."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"overrides of a LazyConfig come as KEY=VALUE, and {text!r} has no value")
    if not key.startswith("+"):
        _check_key(cfg, key)
    try:
        LazyConfig.apply_overrides(cfg, [text])
    except Exception as error:  # Hydra's and omegaconf's own
        raise UserError(f"{key} cannot be {value!r}: {one_line(error)}") from error
    return key.lstrip("+")


def _check_key(cfg: DictConfig, key: str) -> None:
    """Raise a :class:`UserError` when ``key`` would add to the config what nothing reads."""
    path = [part for part in re.split(r"[.\[\]]", key) if part]
    node, above = cfg, ""
    for number, part in enumerate(path):
        names = _names(node)
        if part not in names and (number < len(path) - 1 or not _takes_anything(node)):
            close = difflib.get_close_matches(part, names, n=1)
            hint = f" (did you mean {above}{close[0]}?)" if close else ""
            raise UserError(f"config key {key} does not exist{hint}; +{key}=... would add it")
        if number < len(path) - 1:
            node = select(node, part) if isinstance(node, Mapping) else node[int(part)]
        above += f"{part}."


def _names(node: Any) -> list[str]:
    """What can be named below a node: its keys or indices, and arguments of what it calls."""
    if isinstance(node, Mapping):
        return [str(key) for key in node.keys()] + list(_arguments(node))  # noqa: SIM118 (also ???)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [str(index) for index in range(len(node))]
    return []


def _takes_anything(node: Any) -> bool:
    kinds = {parameter.kind for parameter in _arguments(node).values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def _arguments(node: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of the callable that a node calls; none where it calls nothing."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if target is None:
        return {}
    try:
        return inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    except (ValueError, TypeError, ImportError):  # a builtin without a signature
        return {}


def _settle_amp(cfg: DictConfig, explicit: bool) -> None:
    """Mixed precision as Detectron2 trains with it needs CUDA."""
    if cfg.train.device.startswith("cuda") or not select(cfg, "train.amp.enabled", False):
        return
    if explicit:
        raise UserError(f"train.amp.enabled needs CUDA, and train.device is {cfg.train.device!r}")
    logger.info("train.device is %s: train.amp.enabled is False", cfg.train.device)
    cfg.train.amp.enabled = False

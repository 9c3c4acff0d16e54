"""From a config file and command line overrides to a checked config."""

import difflib
import logging
import os
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from odam_d2.config import add_odam_config
from odam_d2.errors import UserError, one_line
from odam_d2.model_zoo.config_files import find_config_file

from .project import import_projects
from .safe_yaml import merge_file, read_config

__all__ = ["merge_opts", "settle_device", "setup_cfg"]

logger = logging.getLogger(__name__)


def setup_cfg(
    config_file: str = "", opts: Sequence[str] = (), imports: Sequence[str] = ()
) -> CfgNode:
    """
    Detectron2's default config with ``MODEL.ODAM``, a file and overrides merged, and a device that
    this machine has: where CUDA is missing and neither the file nor the overrides name
    ``MODEL.DEVICE``, it becomes "cpu".

    Args:
        config_file: path of a YAML file, or name of one of the project's such as
            ``CrowdShapes/fcos_R_50_FPN_slim.yaml``; empty for the defaults.
        opts: ``KEY VALUE KEY VALUE ...`` as on the command line.
        imports: projects that are imported before, see :func:`import_projects`; their config keys
            are known then.

    Returns:
        The config, not frozen.

    Raises:
        UserError: the file, a key or a project does not exist, a value has the wrong type, or CUDA
            is asked for and missing.
    """
    cfg = get_cfg()
    add_odam_config(cfg)
    for add_config in import_projects(imports):
        try:
            add_config(cfg)
        except Exception as error:  # it is a function of the user's
            where = f"{add_config.__module__}.{add_config.__name__}"
            raise UserError(f"{where}(cfg) failed: {error!r}") from error
    in_file: dict = {}
    if config_file:
        in_file, cfg = _merge_file(cfg, find_config_file(config_file))
    merge_opts(cfg, list(opts))
    explicit = "DEVICE" in in_file.get("MODEL", {}) or "MODEL.DEVICE" in opts[0::2]
    cfg.MODEL.DEVICE = settle_device(cfg.MODEL.DEVICE, "MODEL.DEVICE", explicit)
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> tuple[dict, CfgNode]:
    """A file's content, bases included, and the config with it merged."""
    content = read_config(config_file)
    try:
        return content, merge_file(cfg, config_file)
    except KeyError as error:
        raise UserError(f"{config_file}: {_unknown_key(cfg, error)}") from error
    except (
        ValueError, AssertionError, TypeError, AttributeError, RecursionError, MemoryError
    ) as error:  # fmt: skip
        raise UserError(f"{config_file} is not a usable config: {one_line(error)}") from error


def merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs, and {opts[-1]!r} has no value")
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError) as error:
            raise UserError(_unknown_key(cfg, error, key)) from error
        except (ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise UserError(f"{key} cannot be {value!r}: {one_line(error)}") from error


def _unknown_key(cfg: CfgNode, error: Exception, key: str = "") -> str:
    """Say that a config key does not exist, and which one was perhaps meant."""
    key = key or str(error.args[0]).removeprefix("Non-existent config key: ")
    if " " in key:  # a renamed or deprecated key: yacs explains it itself
        return key
    close = difflib.get_close_matches(key, list(_leaf_keys(cfg)), n=1, cutoff=0.75)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"config key {key} does not exist{hint}"


def _leaf_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def settle_device(device: str, key: str, explicit: bool) -> str:
    """
    A device that this machine has.

    Args:
        device: what the config says.
        key: where it says so, for the message.
        explicit: whether the user chose it; what comes from a default becomes "cpu" where CUDA
            is missing.

    Raises:
        UserError: CUDA was chosen and is missing.
    """
    if not device.startswith("cuda") or torch.cuda.is_available():
        return device
    if explicit:
        raise UserError(
            f"{key} is {device!r}, and PyTorch finds no CUDA device on this machine; choose cpu"
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        logger.info("CUDA_VISIBLE_DEVICES hides every CUDA device: %s is cpu", key)
    else:
        logger.info("No CUDA device found: %s is cpu", key)
    return "cpu"

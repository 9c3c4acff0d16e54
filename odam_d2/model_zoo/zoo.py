"""The detectors of the project's configs: Detectron2's ``model_zoo`` for ours."""

from pathlib import PurePath

from detectron2.config import CfgNode
from omegaconf import DictConfig
from torch import nn

from odam_d2.engine.detector import build_detector, setup_config
from odam_d2.errors import UserError

from .config_files import get_config_file
from .handler import OdamHandler

__all__ = ["get", "get_checkpoint_url", "get_config"]

# Where training starts, in the configs of detectors that nobody has published trained.
_BACKBONES = "detectron2://ImageNetPretrained/"


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """
    The config of a detector, ``MODEL.ODAM`` included.

    Args:
        config_path: one of :func:`available_configs`.
        trained: refuse a config of which there is no trained detector, so that its weights are
            those that training starts from. The weights are what the config says either way.

    Returns:
        The config, or of a ``.py`` file the LazyConfig. Its device is one that this machine has.

    Raises:
        UserError: there is no such config, or it has no trained detector and ``trained``.
    """
    cfg = setup_config(get_config_file(config_path))
    if trained and not _is_trained(config_path, _weights(cfg)):
        raise UserError(
            f"{config_path} has no trained detector: its weights are {_weights(cfg)!r}, from "
            "which training starts"
        )
    return cfg


def get_checkpoint_url(config_path: str) -> str:
    """
    Address of a config's trained detector.

    Args:
        config_path: one of :func:`available_configs`.

    Returns:
        What ``MODEL.WEIGHTS`` takes, an address or a path.

    Raises:
        UserError: as :func:`get_config` with ``trained``.
    """
    return _weights(get_config(config_path, trained=True))


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """
    The detector of a config with its weights.

    Args:
        config_path: one of :func:`available_configs`.
        trained: see :func:`get_config`.
        device: where it shall be, instead of where the config says.

    Returns:
        The model, in training mode as Detectron2's ``model_zoo.get`` returns it.

    Raises:
        UserError: as :func:`get_config`, or the weights cannot be read.
    """
    cfg = get_config(config_path, trained)
    if device is not None and isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device
    detector = build_detector(cfg)
    detector.load()
    model = detector.model if device is None else detector.model.to(device)
    return model.train()


def _weights(cfg: CfgNode | DictConfig) -> str:
    return cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.init_checkpoint


def _is_trained(config_path: str, weights: str) -> bool:
    if weights.startswith(OdamHandler.PREFIX):  # others train on from a detector that ships
        return PurePath(weights).stem == PurePath(config_path).stem
    return bool(weights) and not weights.startswith(_BACKBONES)

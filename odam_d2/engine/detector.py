"""A detector to explain single pictures with, from either kind of config."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from odam_d2.errors import UserError
from odam_d2.modeling.settings import ExplainSettings

from .augmentation import refuse_augmentation
from .building import building_errors
from .lazy_setup import select, setup_lazy
from .lazy_trainer import build_lazy, build_lazy_model, dataset_names
from .setup import setup_cfg
from .weights import load_weights

__all__ = [
    "Detector",
    "build_detector",
    "check_score_threshold",
    "set_score_threshold",
    "setup_config",
]


@dataclass(frozen=True)
class Detector:
    """
    Attributes:
        model: in evaluation mode, on its device, with random weights until :meth:`load`.
        weights: path or address of its checkpoint.
        weights_key: where the config names it.
        input_format: order of the channels that it was trained with, "RGB" or "BGR".
        resize: takes a picture to the size at which the model is tested.
        settings: what the config says of explaining, and the names of the classes.
    """

    model: nn.Module
    weights: str
    weights_key: str
    input_format: str
    resize: Callable[[T.AugInput], object]
    settings: ExplainSettings

    def load(self) -> None:
        """Load the weights, or raise a :class:`UserError`."""
        load_weights(self.model, self.weights, self.weights_key)


def setup_config(
    config_file: str, opts: Sequence[str] = (), imports: Sequence[str] = ()
) -> CfgNode | DictConfig:
    """
    The config of a file, with ``MODEL.ODAM``.

    Args:
        config_file: YAML; or Python, which is a LazyConfig.
        opts: overrides, ``KEY VALUE`` in turns for YAML, ``KEY=VALUE`` for a LazyConfig.
        imports: files or modules that are imported first, see ``--import``.

    Returns:
        The config, on a device that this machine has.

    Raises:
        UserError: a file cannot be read, or a key or value is wrong.
    """
    setup = setup_lazy if config_file.endswith(".py") else setup_cfg
    return setup(config_file, opts, imports)


def build_detector(cfg: CfgNode | DictConfig, score_threshold: float | None = None) -> Detector:
    """
    Build the detector of a config of either kind.

    Args:
        cfg: config with ``MODEL.ODAM``, or a LazyConfig by :func:`setup_lazy`. It is not changed.
        score_threshold: least score of a detection, in [0, 1]; None is what the config says.

    Returns:
        The detector without its weights, which :meth:`Detector.load` loads.

    Raises:
        UserError: the threshold is not in [0, 1], the images are neither RGB nor BGR, or a part
            of the config cannot be built.
    """
    if score_threshold is not None:
        check_score_threshold(score_threshold)
    build = _from_yaml if isinstance(cfg, CfgNode) else _from_lazy
    return build(cfg, score_threshold)


def check_score_threshold(threshold: float) -> None:
    """Raise a :class:`UserError` when ``threshold`` is not in [0, 1]."""
    if not 0 <= threshold <= 1:
        raise UserError(f"the confidence threshold must be in [0, 1], not {threshold:g}")


def set_score_threshold(cfg: CfgNode, threshold: float) -> None:
    """
    Make every kind of detector in ``cfg`` drop detections below a score, in place.

    Raises:
        UserError: ``threshold`` is not in [0, 1].
    """
    check_score_threshold(threshold)
    for name in ("ROI_HEADS", "RETINANET", "FCOS"):
        if name in cfg.MODEL:
            cfg.MODEL[name].SCORE_THRESH_TEST = threshold


def _from_yaml(cfg: CfgNode, score_threshold: float | None) -> Detector:
    _check_format("INPUT.FORMAT", cfg.INPUT.FORMAT)
    refuse_augmentation(cfg)
    cfg = cfg.clone()
    if score_threshold is not None:
        cfg.defrost()
        set_score_threshold(cfg, score_threshold)
        cfg.freeze()
    with building_errors():
        model = build_model(cfg).eval()
    return Detector(
        model=model,
        weights=cfg.MODEL.WEIGHTS,
        weights_key="MODEL.WEIGHTS",
        input_format=cfg.INPUT.FORMAT,
        resize=T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST),
        settings=ExplainSettings.from_config(cfg),
    )


def _from_lazy(cfg: DictConfig, score_threshold: float | None) -> Detector:
    """Pictures are prepared as by the mapper of ``dataloader.test``, where there is one."""
    key = "dataloader.test.mapper"
    input_format = select(cfg, f"{key}.image_format") or select(cfg, "model.input_format", "BGR")
    _check_format(f"{key}.image_format", input_format)
    model = build_lazy_model(cfg).eval()
    if score_threshold is not None:
        _set_model_threshold(model, score_threshold)
    settings = getattr(model, "odam", None) or ExplainSettings()
    if settings.class_names is None:
        settings = dataclasses.replace(settings, class_names=_class_names(cfg))
    return Detector(
        model=model,
        weights=cfg.train.init_checkpoint,
        weights_key="train.init_checkpoint",
        input_format=input_format,
        resize=_test_resize(cfg, f"{key}.augmentations"),
        settings=settings,
    )


def _check_format(key: str, layout: str) -> None:
    if layout not in ("RGB", "BGR"):
        raise UserError(f"{key} is {layout!r}; pictures are RGB or BGR")


def _test_resize(cfg: DictConfig, key: str) -> T.AugmentationList:
    node = select(cfg, key)
    if node is None:  # Detectron2's defaults in YAML
        return T.AugmentationList([T.ResizeShortestEdge(800, 1333)])
    return T.AugmentationList(list(build_lazy(node, key)))


def _set_model_threshold(model: nn.Module, threshold: float) -> None:
    """
    Make a built detector drop detections below a score, in place. Dense detectors and box
    predictors both have ``test_score_thresh``; of a cascade's predictors the last one's counts.
    """
    owners: list[Any] = [
        module for module in model.modules() if hasattr(module, "test_score_thresh")
    ]
    if not owners:
        raise UserError(f"{type(model).__name__} has no score threshold that could be set")
    for module in owners:
        module.test_score_thresh = threshold


def _class_names(cfg: DictConfig) -> Sequence[str] | None:
    for name in (*dataset_names(cfg, "test"), *dataset_names(cfg, "train")):
        names = MetadataCatalog.get(name).get("thing_classes")
        if names is not None:
            return tuple(names)
    return None

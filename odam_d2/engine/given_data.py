"""The data that a command names, as the data set of a config."""

from argparse import Namespace

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

from odam_d2.data.given import name_classes, read_class_names, register_coco_json
from odam_d2.errors import UserError

from .lazy_setup import select

__all__ = ["use_given_data"]

_LAZY_KEY = "dataloader.test.dataset.names"


def use_given_data(cfg: CfgNode | DictConfig, args: Namespace, needs_data: bool = True) -> None:
    """
    Make ``--coco-json`` the data set that is tested on, and name its classes by ``--class-names``,
    in place.

    Args:
        cfg: a config of either kind, not frozen.
        args: with what :func:`odam_d2.data.given.add_data_arguments` adds.
        needs_data: whether the tool reads the data set. One that does not takes any class names:
            those of the config's data set may be of another detector.

    Raises:
        UserError: a file cannot be used, or class names are not those of the data set.
    """
    if args.image_root is not None and args.coco_json is None:
        raise UserError("--image-root is for the images of --coco-json, which is missing")
    if args.coco_json is not None:
        _test_on(cfg, register_coco_json(args.coco_json, args.image_root))
    if args.class_names is None:
        return
    names = read_class_names(args.class_names)
    if args.coco_json is None and not needs_data:
        _test_on(cfg, f"classes {', '.join(names)}")
    for dataset in _tested_on(cfg):
        name_classes(dataset, names, args.class_names)


def _tested_on(cfg: CfgNode | DictConfig) -> tuple[str, ...]:
    if isinstance(cfg, CfgNode):
        return tuple(cfg.DATASETS.TEST)
    names = select(cfg, _LAZY_KEY, ())
    return (names,) if isinstance(names, str) else tuple(names)


def _test_on(cfg: CfgNode | DictConfig, name: str) -> None:
    if isinstance(cfg, CfgNode):
        cfg.DATASETS.TEST = (name,)
    else:
        OmegaConf.update(cfg, _LAZY_KEY, name, force_add=True)

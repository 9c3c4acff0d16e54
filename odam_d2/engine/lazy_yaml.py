"""
A LazyConfig that was saved as YAML, with nothing but the parts of a detector in it.

Such a file names what is called (``_target_``), and could name anything that is installed. Only
what a detector, its data and its training are made of is accepted; a LazyConfig in Python has no
such bounds, and is the user's own program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from odam_d2.errors import UserError

from .safe_yaml import SafeLoader, place, read_yaml

__all__ = ["load_lazy_yaml"]

_PACKAGES = (
    "detectron2.data",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common.param_scheduler",
    "odam_d2.evaluation",
    "odam_d2.modeling",
    "torch.nn",
    "torch.optim",
)
"""Where classes may come from."""

_NOT_OF_THEM = ("detectron2.modeling.mmdet_wrapper",)  # builds what another package's config names

_FUNCTIONS = {
    "detectron2.data.build.build_detection_test_loader",
    "detectron2.data.build.build_detection_train_loader",
    "detectron2.data.build.get_detection_dataset_dicts",
    "detectron2.modeling.backbone.resnet.ResNet.make_default_stages",
    "detectron2.modeling.backbone.resnet.ResNet.make_stage",
    "detectron2.solver.build.get_default_optimizer_params",
}
"""The functions that configs of Detectron2's zoo call."""


class _Loader(SafeLoader):
    """With what arguments of parts are saved as: names of classes, and shapes."""


def _class(loader: _Loader, suffix: str, node: yaml.Node) -> object:
    return _located(suffix, place(node))


def _shape(loader: _Loader, node: yaml.Node) -> ShapeSpec:
    return ShapeSpec(**loader.construct_mapping(node))


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", _class)
_Loader.add_constructor(
    "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec", _shape
)


def load_lazy_yaml(path: str) -> DictConfig:
    """
    The config, as ``LazyConfig.load`` makes it.

    Raises:
        UserError: the file cannot be used, or names something that is no part of a detector.
    """
    content = read_yaml(path, _Loader)
    for key, value in _items(content):
        if key == "_target_":
            _located(value, path)
        elif key == "proposal_files" and value:  # Detectron2 unpickles them
            raise UserError(f"{path}: proposal_files are for a LazyConfig in Python (.py)")
        # A resolver of omegaconf can make a config out of text.
        elif isinstance(value, str) and re.search(r"\$\{[^}]*[:{]", value):
            raise UserError(f"{path}: {value!r} of {key} is refused; an interpolation names a key")
    return OmegaConf.create(content, flags={"allow_objects": True})


def _items(value: object, key: object = None) -> Iterator[tuple[object, object]]:
    """Every key and value of nested lists and dicts; keys as values, too."""
    yield key, value
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _items(below, name)
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _items(below, key)


def _located(name: object, where: str) -> object:
    """
    The class or function of a name, if it may be called.

    Raises:
        UserError: it may not.
    """
    if isinstance(name, str) and _within(name, ("detectron2", "fvcore", "odam_d2", "torch")):
        try:
            found = locate(name)
        except Exception as error:  # of importing a module
            raise UserError(f"{where}: {name!r} cannot be found ({error})") from error
        real = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        of_ours = _within(real, _PACKAGES) and not _within(real, _NOT_OF_THEM)
        if real in _FUNCTIONS or (isinstance(found, type) and of_ours):
            return found
    raise UserError(
        f"{where}: {name!r} is not called; a LazyConfig in YAML names parts of Detectron2, of "
        "odam_d2, torch.nn and torch.optim only, one in Python (.py) anything (docs/security.md)"
    )


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)

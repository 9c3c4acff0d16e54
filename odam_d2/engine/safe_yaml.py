"""
Config files in YAML as data: what Detectron2 reads from them, without the Python that it would run.

Detectron2 loads a file with Python tags by ``yaml.unsafe_load``, which runs what they name. Its own
configs have one kind of tag, ``!!python/object/apply:eval`` of an expression of literals, which is
worked out here. All other tags are refused, but for ``!!python/tuple``, which is data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from odam_d2.errors import UserError, one_line

from .literals import evaluate_literals

__all__ = ["SafeLoader", "merge_file", "place", "read_config", "read_yaml"]

# Configs are small. A few lines with aliases can stand for more than memory holds.
_MOST_CHARACTERS = 1_000_000
_MOST_VALUES = 100_000
_DEEPEST = 100

_PYTHON = "tag:yaml.org,2002:python/"


class SafeLoader(yaml.SafeLoader):
    """PyYAML's, with the tags of Detectron2's configs; any other Python tag is a UserError."""


def _eval(loader: SafeLoader, node: yaml.Node) -> object:
    arguments = loader.construct_sequence(node, deep=True) if _is_list(node) else []
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise UserError(f"{place(node)}: !!python/object/apply:eval takes one expression")
    try:
        return evaluate_literals(arguments[0])
    except ValueError as error:
        raise UserError(
            f"{place(node)}: {one_line(error)}; a config may use arithmetic and comprehensions "
            "over literals only"
        ) from error


def _is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


def _tuple(loader: SafeLoader, node: yaml.Node) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _refuse(loader: SafeLoader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise UserError(
        f"{place(node)}: the tag {tag} is refused; a config is data, and what it names is not run "
        "(docs/security.md)"
    )


def place(node: yaml.Node) -> str:
    """File and line, for messages."""
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


SafeLoader.add_constructor(f"{_PYTHON}object/apply:eval", _eval)
SafeLoader.add_constructor(f"{_PYTHON}tuple", _tuple)
SafeLoader.add_constructor(None, _refuse)


def read_yaml(path: str, loader: type[SafeLoader] = SafeLoader) -> dict:
    """
    What a YAML file says by itself: ``_BASE_`` is a key like others.

    Raises:
        UserError: it is no mapping, no YAML, larger than any config, or has a tag that is refused.
        OSError: it cannot be read.
    """
    try:
        with PathManager.open(path, "r") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a usable config: {one_line(error)}") from error
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{path} is not a usable config: it has over {_MOST_CHARACTERS} characters")
    try:
        reader = loader(text)
        reader.name = path
        content = reader.get_single_data()
    except UserError:
        raise
    except Exception as error:  # PyYAML's own, and whatever a malformed scalar makes of it
        raise UserError(f"{path} is not a usable config: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a usable config: it holds no KEY: VALUE")
    if not _within_bounds(content):
        raise UserError(
            f"{path} is not a usable config: it holds over {_MOST_VALUES} values, or they are "
            f"nested more than {_DEEPEST} deep"
        )
    return content


def _within_bounds(content: dict) -> bool:
    """Aliases are counted as often as they occur."""
    count, level = 0, [content]
    for _ in range(_DEEPEST):
        below: list = []
        for value in level:
            count += 1
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, (list, tuple)):
                below.extend(value)
            if count + len(below) > _MOST_VALUES:
                return False
        if not below:
            return True
        level = below
    return False


def read_config(path: str, above: Sequence[str] = ()) -> dict:
    """
    A config with what it inherits from its ``_BASE_``, as Detectron2 finds and merges it.

    Args:
        above: the files that inherit from this one.

    Raises:
        UserError: a file cannot be used, or inherits from itself.
    """
    chain = [*above, os.path.abspath(path)]
    if chain[-1] in above:
        raise UserError(f"{path} is not a usable config: by its {BASE_KEY} it inherits from itself")
    if "://" not in path and not PathManager.isfile(path):
        raise UserError(
            f"{above[-1]}: its {BASE_KEY} {path!r} does not exist"
            if above
            else f"config file {path!r} does not exist"
        )
    content = read_yaml(path)
    if BASE_KEY not in content:
        return content
    bases = content.pop(BASE_KEY)
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: its {BASE_KEY} must be a path or a list of them")
    merged: dict = {}
    for base in bases:
        _merge(read_config(_base_path(path, base), chain), merged, path)
    _merge(content, merged, path)
    return merged


def _base_path(path: str, base: str) -> str:
    """Where Detectron2 looks: relative to the file, unless absolute, at home, or an address."""
    base = os.path.expanduser(base) if base.startswith("~") else base
    if base.startswith(("/", "https://", "http://")):
        return base
    return os.path.join(os.path.dirname(path), base)


def _merge(values: dict, into: dict, path: str) -> None:
    """Values of a file over those that it inherits, in place."""
    for key, value in values.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise UserError(f"{path}: its {BASE_KEY} has a value for {key}, and no keys below")
            _merge(value, into[key], path)
        else:
            into[key] = value


class _ReadSafely(CfgNode):
    """Merges files as Detectron2 does, older versions of its keys included."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        return read_config(filename)


def merge_file(cfg: CfgNode, path: str) -> CfgNode:
    """
    A config with a file merged into it, as ``cfg.merge_from_file`` would.

    Raises:
        UserError: the file, or one that it inherits from, cannot be used.
        KeyError, ValueError, AssertionError: Detectron2's, for keys and values.
    """
    merged = _ReadSafely(cfg)
    merged.merge_from_file(path)
    return type(cfg)(merged)

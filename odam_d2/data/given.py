"""Data that a command names: ``--coco-json``, ``--image-root``, ``--class-names``."""

import json
import os
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from odam_d2.errors import UserError, one_line

__all__ = ["add_data_arguments", "name_classes", "read_class_names", "register_coco_json"]


def add_data_arguments(parser: ArgumentParser) -> None:
    """Add ``--coco-json``, ``--image-root`` and ``--class-names``."""
    parser.add_argument(
        "--coco-json",
        metavar="FILE",
        help="annotations in COCO's format, the data set of this run; it gets the file's name",
    )
    parser.add_argument(
        "--image-root",
        metavar="FOLDER",
        help="of the images that --coco-json names (default: the folder of that file)",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the detector's classes, one in a line, in the order of their ids",
    )


def register_coco_json(file: str, image_root: str | None = None) -> str:
    """
    Register a file of COCO's format as a data set, with Detectron2's own function.

    Args:
        file: with the keys "images", "annotations" and "categories".
        image_root: folder that ``file_name`` of the images starts from; by default that of
            ``file``.

    Returns:
        The name of the data set, that of the file without its ending. Category ids may have gaps;
        Detectron2 counts them anew from 0, in the order of the ids.

    Raises:
        UserError: the file cannot be read or lacks a key, there is no such folder, or its first
            image is not in it, or another data set has that name.
    """
    root = os.path.dirname(file) if image_root is None else image_root
    content = _read(file)
    if not os.path.isdir(root or "."):
        raise UserError(f"--image-root: there is no folder {root!r}")
    first = content["images"][0]["file_name"] if content["images"] else ""
    if not os.path.isfile(os.path.join(root, first)):
        raise UserError(f"there is no image {first!r} of {file!r} in {root or '.'!r}: --image-root")
    name = Path(file).stem
    source = os.path.abspath(file), os.path.abspath(root)
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) != source:
            raise UserError(f"there is a data set {name!r} already: rename {file!r}")
        return name
    register_coco_instances(name, {}, *source)
    ordered = sorted(content["categories"], key=lambda category: category["id"])
    name_classes(name, [category["name"] for category in ordered], file)
    return name


def _read(file: str) -> dict:
    try:
        with open(file, encoding="utf-8") as handle:
            content = json.load(handle)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file!r} is not JSON: {one_line(error)}") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        content = {}
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"{file!r} is not in COCO's format: it has no list of {' and of '.join(missing)}"
        )
    for key, needed in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        for number, entry in enumerate(content[key]):
            lacking = [k for k in needed if not isinstance(entry, dict) or k not in entry]
            if lacking:
                raise UserError(f"{file!r}: number {number} of {key} has no {lacking[0]!r}")
    return content


def read_class_names(file: str) -> list[str]:
    """
    Names of classes, one in a line; empty lines at the end do not count.

    Raises:
        UserError: the file cannot be read as text, a line is empty, or two are equal.
    """
    try:
        names = Path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except ValueError as error:
        raise UserError(f"{file!r} is not text: {one_line(error)}") from error
    names = [name.strip() for name in names]
    if not names or not all(names):
        raise UserError(f"{file!r} must have the name of a class in each line")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file!r} has the class {twice!r} twice")
    return names


def name_classes(dataset: str, names: Sequence[str], source: str) -> None:
    """
    Give the classes of a data set their names.

    Args:
        dataset: name of a data set, registered or not.
        names: by contiguous class id.
        source: where they come from, for the message.

    Raises:
        UserError: the data set has other names.
    """
    metadata = MetadataCatalog.get(dataset)
    known = metadata.get("thing_classes")
    if known is None:
        metadata.thing_classes = list(names)
    elif list(known) != list(names):
        raise UserError(
            f"{source!r} has the classes {_short(names)}, and the data set {dataset!r} has "
            f"{_short(known)}"
        )


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")

"""What can be known to be wrong before a run starts."""

import argparse
import difflib
import os

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from odam_d2.errors import UserError
from odam_d2.modeling.explainers import build_explainer
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import borrowed

from .augmentation import check_augmentation
from .evaluators import check_evaluators
from .weights import check_weights_exist, starting_weights

__all__ = [
    "check_classes",
    "check_dataset",
    "check_num_gpus",
    "check_output_folder",
    "check_run",
]


def check_num_gpus(num_gpus: int) -> None:
    """Raise a :class:`UserError` when more GPUs are asked for than there are; 1 is always fine."""
    found = torch.cuda.device_count()
    if num_gpus > max(found, 1):
        raise UserError(f"--num-gpus is {num_gpus}, and PyTorch finds {found} on this machine")


def check_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """
    Check a training or evaluation before anything is built or written.

    Args:
        cfg: the config of the run.
        args: Detectron2's default arguments.

    Raises:
        UserError: a data set that is unknown or missing, an unknown evaluator, no such weights
            file.
    """
    check_evaluators(cfg)
    check_augmentation(cfg)
    needed = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST
    for name in needed:
        check_dataset(name)
    check_weights_exist(starting_weights(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args.resume))


def check_classes(model: nn.Module, dataset: str, settings: ExplainSettings | None = None) -> None:
    """
    Raise a :class:`UserError` when a detector has another number of classes than a data set, and an
    :class:`InputError` when it cannot be explained as the settings ask.
    """
    with borrowed(model):
        found = build_explainer(model, settings or ExplainSettings()).num_classes
    names = MetadataCatalog.get(dataset).thing_classes
    if found != len(names):
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(
            f"the detector has {found} classes and {dataset!r} has {len(names)} ({listed}); set "
            "DATASETS.TEST to what it was trained for"
        )


def check_output_folder(folder: str | os.PathLike) -> None:
    """Raise a :class:`UserError` when results could not be written to a folder, made if need be."""
    place = os.path.abspath(folder)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"output {str(folder)!r} cannot be a folder: {place!r} is not one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"output {str(folder)!r} cannot be written to: no permission in {place!r}")


def check_dataset(name: str) -> None:
    """
    Fail now, not after training, when a data set is unknown or cannot be read.

    Raises:
        UserError: with the name, and one like it.
    """
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"data set {name!r} is not registered{hint}")
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file", metadata.get("odgt_file"))
    if json_file is None or os.path.isfile(json_file):
        return
    try:
        DatasetCatalog.get(name)  # a generated data set is made here
    except FileNotFoundError as error:
        raise UserError(
            f"data set {name!r} needs {json_file!r}, which does not exist; the environment "
            "variable DETECTRON2_DATASETS names the folder of the data sets"
        ) from error

"""What can be known to be wrong before a run starts."""

import argparse
import difflib
import logging
import os
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from odam_d2.core.errors import InputError
from odam_d2.data.checks import DatasetUse, check_coco_file, check_entries
from odam_d2.errors import UserError, one_line
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import preserved

from .augmentation import check_augmentation
from .evaluators import check_evaluators, evaluated_use
from .weights import check_weights_exist, starting_weights

__all__ = [
    "check_class_ids",
    "check_classes",
    "check_dataset",
    "check_num_gpus",
    "check_output_folder",
    "check_run",
]

logger = logging.getLogger(__name__)


def check_num_gpus(num_gpus: int) -> None:
    """
    Raise a :class:`UserError` when more GPUs are asked for than there are, or less than none; 1 is
    always fine.
    """
    if num_gpus < 0:
        raise UserError(f"--num-gpus is {num_gpus}; it must be 0 or more")
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
        UserError: a data set that is unknown, missing or malformed, an unknown evaluator, no such
            weights file.
    """
    check_evaluators(cfg)
    check_augmentation(cfg)
    if not args.eval_only:
        _check_loss(cfg)
        use = DatasetUse(training=True, masks=cfg.MODEL.MASK_ON, keypoints=cfg.MODEL.KEYPOINT_ON)
        for name in cfg.DATASETS.TRAIN:
            check_dataset(name, use)
    for name in cfg.DATASETS.TEST:
        check_dataset(name, evaluated_use(cfg, name))
    check_weights_exist(starting_weights(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args.resume))


def _check_loss(cfg: CfgNode) -> None:
    """The loss compares ODAM's maps of what the head reads, whatever else is configured."""
    node = cfg.MODEL.ODAM
    for key, without in (("METHOD", "odam"), ("PRESET", ""), ("LAYER", "")):
        if node.LOSS.NAME and node[key] != without:
            raise UserError(
                f"MODEL.ODAM.{key} is {node[key]!r}, and the loss {node.LOSS.NAME} is of other "
                f"maps: train with {without!r}, and evaluate as you like"
            )


def check_classes(model: nn.Module, dataset: str, settings: ExplainSettings | None = None) -> None:
    """
    Raise a :class:`UserError` when a detector has another number of classes than a data set, and an
    :class:`InputError` when it cannot be explained as the settings ask.
    """
    with preserved(model):
        explanation = Explanation.of(model, settings or ExplainSettings())
        found = explanation.adapter.num_classes
    names = MetadataCatalog.get(dataset).thing_classes
    if found != len(names):
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(
            f"the detector has {found} classes and {dataset!r} has {len(names)} ({listed}); set "
            "DATASETS.TEST to what it was trained for"
        )


def check_class_ids(model: nn.Module, training: Iterable[str], testing: Iterable[str]) -> None:
    """
    Check that a detector can learn, and be evaluated on, the classes of data sets; those were
    checked by themselves. Another number of classes is right, and told, as long as none is beyond
    the detector's. Detectors without ``num_classes`` in Detectron2's places are not checked.

    Args:
        model: in training or not.
        training, testing: names of data sets.

    Raises:
        UserError: an object to learn from is of a class that the detector does not have.
    """
    count = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if not isinstance(count, int):
        return
    training = list(training)
    for name in dict.fromkeys([*training, *testing]):
        classes = MetadataCatalog.get(name).get("thing_classes")
        most = len(classes) if classes else 0
        if name in training and (classes is None or most > count):
            most = max(most, highest := _highest_class(DatasetCatalog.get(name)) + 1)
            if highest > count:
                raise UserError(
                    f"data set {name!r} has objects of class {highest - 1}, counted from 0, and "
                    f"the detector has {count} classes: its NUM_CLASSES (num_classes in a "
                    f"LazyConfig) must be {most}"
                )
        if most and most != count:
            logger.warning(
                "The detector has %d classes (NUM_CLASSES), and data set %r has %d: is that meant?",
                *(count, name, most),
            )


def _highest_class(entries: object) -> int:
    """Of the objects that are learned from; -1 where there are none, or they are not listed."""
    if not isinstance(entries, Sequence):
        return -1
    objects = (found for entry in entries for found in entry.get("annotations", ()))
    return max((int(x["category_id"]) for x in objects if not x.get("iscrowd", 0)), default=-1)


def check_output_folder(folder: str | os.PathLike) -> None:
    """Raise a :class:`UserError` when results could not be written to a folder, made if need be."""
    place = os.path.abspath(folder)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"output {str(folder)!r} cannot be a folder: {place!r} is not one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"output {str(folder)!r} cannot be written to: no permission in {place!r}")


def check_dataset(name: str, use: DatasetUse | None = None) -> None:
    """
    Fail now, not after training, when a data set is unknown, cannot be read, or does not fit what
    is done with it.

    Args:
        use: None where its entries are read by something that is not Detectron2's, or ours.

    Raises:
        UserError: with the name, and one like it, or with what is wrong and where.
    """
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"data set {name!r} is not registered{hint}")
    metadata = MetadataCatalog.get(name).as_dict()
    json_file = metadata.get("json_file", metadata.get("odgt_file"))
    has_file = json_file is not None and os.path.isfile(json_file)
    if use is not None and use.coco and has_file:
        check_coco_file(name, json_file)
    entries = _read_entries(name, json_file)  # a generated data set is made here
    if use is not None:
        check_entries(name, entries, MetadataCatalog.get(name).as_dict(), use)


def _read_entries(name: str, json_file: str | None) -> object:
    try:
        return DatasetCatalog.get(name)
    except (UserError, InputError):
        raise
    except FileNotFoundError as error:
        if json_file is None or os.path.isfile(json_file):
            missing = error.filename or one_line(error)
            raise UserError(f"data set {name!r} needs {missing!r}, which does not exist") from error
        raise UserError(
            f"data set {name!r} needs {json_file!r}, which does not exist; the environment "
            "variable DETECTRON2_DATASETS names the folder of the data sets"
        ) from error
    except OSError:
        raise
    except Exception as error:  # the function that makes the list is the user's
        raise UserError(
            f"data set {name!r} cannot be read: {type(error).__name__}: {one_line(error)}"
        ) from error

"""
What a result depends on: the one rule by which results of an earlier run are taken again or not.

Whatever a tool reuses is kept beside its fingerprint: the resolved config but for the keys that
cannot change what is computed (:data:`NEVER_MATTERS`, and more of them for a trained detector or a
training), the content of the weights, the versions, and for each image its entry in the data set
(:func:`entry_key`). Only what has the same fingerprint is reused; :func:`differences` says why not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .digests import describe, digest
from .version import __version__

__all__ = [
    "NEVER_MATTERS",
    "ONLY_FOR_TESTING",
    "ONLY_FOR_TRAINING",
    "differences",
    "entry_key",
    "of_config",
    "of_detector",
    "versions",
    "weights_key",
]

NEVER_MATTERS = {
    "OUTPUT_DIR": "where results are written",
    "MODEL.WEIGHTS": "its content counts, see weights_key",
    "DATALOADER.NUM_WORKERS": "who reads the images, not in which order",
    "VIS_PERIOD": "pictures for TensorBoard while training",
    "MODEL.ODAM.LOSS.VIS_PERIOD": "the same",
    "MODEL.ODAM.D_RISE.STATE_DIR": "where sums are kept; they have fingerprints of their own",
    "MODEL.ODAM.RISE.STATE_DIR": "the same",
    "MODEL.ODAM.D_CLOSE.STATE_DIR": "the same",
    "MODEL.ODAM.VPS.STATE_DIR": "the same",
    "SOLVER.CHECKPOINT_PERIOD": "how often a training is saved",
    "TEST.EXPECTED_RESULTS": "what figures are compared with afterwards",
}
"""
Keys of the config that cannot change what is computed, and why. Batch sizes are none of them:
convolutions round differently in batches of another size.
"""

ONLY_FOR_TRAINING = {
    "SOLVER": "the optimizer",
    "MODEL.ODAM.LOSS": "the loss on heat maps",
    "DATASETS.TRAIN": "what is trained on",
    "DATASETS.PROPOSAL_FILES_TRAIN": "the same",
    "DATASETS.TEST": "which data sets there are; that of a result is in its fingerprint by itself",
    "INPUT.MIN_SIZE_TRAIN": "augmentation",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "augmentation",
    "INPUT.MAX_SIZE_TRAIN": "augmentation",
    "INPUT.RANDOM_FLIP": "augmentation",
    "INPUT.CROP": "augmentation",
    "DATALOADER": "how training images are drawn",
    "TEST.EVAL_PERIOD": "how often a training is evaluated",
    "TEST.PRECISE_BN": "statistics that training estimates",
}
"""Keys, or beginnings of keys, without effect on what a trained detector says."""

ONLY_FOR_TESTING = {
    "DATASETS.TEST": "what is evaluated on",
    "DATASETS.PROPOSAL_FILES_TEST": "the same",
    "INPUT.MIN_SIZE_TEST": "size of test images",
    "INPUT.MAX_SIZE_TEST": "the same",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "which proposals are classified",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "the same",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "which detections are returned",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "the same",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "the same",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "the same",
    "MODEL.RETINANET.NMS_THRESH_TEST": "the same",
    "MODEL.FCOS.SCORE_THRESH_TEST": "the same",
    "MODEL.FCOS.TOPK_CANDIDATES_TEST": "the same",
    "MODEL.FCOS.NMS_THRESH_TEST": "the same",
    "MODEL.ODAM.NMS": "the same",
    "MODEL.ODAM.TARGETS": "which maps are made of a trained detector",
    "MODEL.ODAM.METHOD": "how they are made",
    "MODEL.ODAM.PRESET": "the same",
    "MODEL.ODAM.SIGNED": "the same",
    "MODEL.ODAM.D_RISE": "the same",
    "MODEL.ODAM.RISE": "the same",
    "TEST.DETECTIONS_PER_IMAGE": "which detections are returned",
    "TEST.AUG": "test-time augmentation",
    "TEST.ODAM": "evaluators of heat maps",
    "TEST.KEYPOINT_OKS_SIGMAS": "an evaluator",
}
"""Keys, or beginnings of keys, without effect on the weights that a training ends with."""


def of_config(cfg: CfgNode, without: Mapping[str, str] = ONLY_FOR_TRAINING) -> dict[str, object]:
    """
    Args:
        cfg: the resolved config.
        without: keys, or beginnings of keys, that do not matter here either, beside
            :data:`NEVER_MATTERS`.

    Returns:
        The values of all others by their full names, as JSON gives them back.
    """
    left_out = (*NEVER_MATTERS, *without)
    return {
        key: describe(value)
        for key, value in _flat(cfg).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }


def of_detector(cfg: CfgNode, without: Mapping[str, str] = ONLY_FOR_TRAINING) -> dict:
    """Config, weights and versions: what all that a trained detector says depends on."""
    return {
        "config": of_config(cfg, without),
        "weights": weights_key(cfg.MODEL.WEIGHTS),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "odam_d2": __version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
    }


def weights_key(weights: str) -> str:
    """
    A checkpoint by its content, wherever it lies, with what says how it is read: the ending of its
    name, and options behind a ``?``. What has to be downloaded is.

    Args:
        weights: as ``MODEL.WEIGHTS``; empty for none.
    """
    if not weights:
        return ""
    path, _, options = weights.partition("?")
    local = PathManager.get_local_path(path)
    state = os.stat(local)
    content = _content(os.path.realpath(local), state.st_size, state.st_mtime_ns)
    return " ".join(filter(None, [content, os.path.splitext(urlsplit(path).path)[1], options]))


@functools.lru_cache(maxsize=64)
def _content(path: str, size: int, changed: int) -> str:
    """Of a file, read once for each state of it."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def entry_key(entry: Mapping) -> str:
    """
    An image of a data set: names, sizes and times of its files, and all that its dict says, such
    as the annotations. A file that was moved with its time is the same one.

    Args:
        entry: in Detectron2's format.
    """
    plain, files = {}, {}
    for key, value in entry.items():
        if key.endswith("file_name") and isinstance(value, str | os.PathLike):
            files[key] = _file_state(value)
        else:
            plain[key] = value
    return digest({"files": files, "entry": plain})


def _file_state(path: str | os.PathLike) -> list:
    name = os.path.basename(path)
    try:
        state = os.stat(PathManager.get_local_path(os.fspath(path)))
    except OSError:  # whoever reads it will say so
        return [name]
    return [name, state.st_size, state.st_mtime_ns]


def differences(old: object, new: object, max_keys: int = 3) -> str:
    """
    In which keys two fingerprints differ, for the log: the first few, with both values.

    Returns:
        Empty where they do not.
    """
    before, after = _flat(old), _flat(new)
    keys = [k for k in dict.fromkeys([*after, *before]) if _text(before, k) != _text(after, k)]
    named = [
        f"{key} ({_short(_text(before, key))}, now {_short(_text(after, key))})"
        for key in keys[:max_keys]
    ]
    more = f" and {len(keys) - max_keys} more" if len(keys) > max_keys else ""
    return ", ".join(named) + more


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix.rstrip("."): value}
    found: dict[str, object] = {}
    for key, of_key in value.items():
        found |= _flat(of_key, f"{prefix}{key}.")
    return found


def _text(values: Mapping[str, object], key: str) -> str:
    return json.dumps(values[key], sort_keys=True) if key in values else "absent"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

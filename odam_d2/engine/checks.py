"""What can be known to be wrong before a run starts."""

import argparse

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from odam_d2.errors import UserError

from .weights import check_weights_exist

__all__ = ["check_run"]


def check_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """
    Check a training or evaluation before anything is built or written.

    Args:
        cfg: the config of the run.
        args: Detectron2's default arguments.

    Raises:
        UserError: more GPUs asked for than there are, an unknown data set, no weights.
    """
    if args.num_gpus > 1 and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus is {args.num_gpus}, and PyTorch finds {torch.cuda.device_count()} "
            "on this machine"
        )
    needed = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST
    for name in needed:
        if name not in DatasetCatalog.list():
            raise UserError(f"data set {name!r} is not registered")
    check_weights_exist(cfg.MODEL.WEIGHTS)

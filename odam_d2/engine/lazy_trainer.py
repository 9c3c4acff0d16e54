"""Training and evaluation by a LazyConfig, as Detectron2's ``tools/lazyconfig_train_net.py``."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from odam_d2.core.errors import InputError
from odam_d2.data.checks import DatasetUse
from odam_d2.data.mapper import PictureMapper
from odam_d2.errors import UserError, one_line

from .checkpointer import SafeCheckpointer
from .checks import check_class_ids, check_dataset
from .evaluators import evaluation_errors
from .lazy_setup import select
from .proposals import check_proposals
from .seeded_training import LossNormalizers, seeded_iterations, seeded_loader
from .training import event_writers, nothing_lost, save_if_finished
from .weights import (
    check_finite,
    check_weights_exist,
    checkpoint_errors,
    load_weights,
    starting_weights,
)

__all__ = [
    "build_lazy",
    "build_lazy_model",
    "check_lazy_run",
    "dataset_names",
    "evaluate_checkpoint",
    "train_lazy",
]

logger = logging.getLogger(__name__)

_FOR_TRAINING = ("dataloader.train", "optimizer", "lr_multiplier")
_FOR_EVALUATION = ("dataloader.test", "dataloader.evaluator")


def check_lazy_run(cfg: DictConfig, args: argparse.Namespace) -> None:
    """
    Check a training or evaluation before anything is built or written.

    Args:
        cfg: the config of the run, by :func:`setup_lazy`.
        args: Detectron2's default arguments.

    Raises:
        UserError: a part of the config is missing, a data set is unknown or missing, no such
            weights file.
    """
    for key in _FOR_EVALUATION if args.eval_only else _FOR_TRAINING:
        if select(cfg, key) is None:
            raise UserError(f"{args.config_file} has no {key!r}, which this run needs")
    for split in ("test",) if args.eval_only else ("train", "test"):
        for name in dataset_names(cfg, split):
            check_dataset(name, _use(cfg, split))
        check_proposals(select(cfg, f"dataloader.{split}.dataset.proposal_files") or ())
    check_weights_exist(_starting_weights(cfg, args.resume))


def _use(cfg: DictConfig, split: str) -> DatasetUse | None:
    """What a run does with the data sets of a split; None where a mapper of its own reads them."""
    if not maps_as_detectron(cfg, split):
        return None
    if split == "train":
        mapper = cfg.dataloader.train.mapper
        masks, keypoints = select(mapper, "use_instance_mask"), select(mapper, "use_keypoint")
        return DatasetUse(training=True, masks=bool(masks), keypoints=bool(keypoints))
    coco = _target(cfg, "dataloader.evaluator") is COCOEvaluator
    return DatasetUse(image_ids=coco, coco=coco)


def dataset_names(cfg: DictConfig, split: str) -> tuple[str, ...]:
    """Names of the data sets of a dataloader, "train" or "test"; none where it is of its own."""
    names = select(cfg, f"dataloader.{split}.dataset.names", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _read_as_detectron(cfg: DictConfig, split: str) -> tuple[str, ...]:
    """The data sets of a split whose entries are what a detector sees: by no mapper of its own."""
    return dataset_names(cfg, split) if maps_as_detectron(cfg, split) else ()


def build_lazy(node: DictConfig, part: str) -> Any:
    """
    Instantiate a part of a config.

    Raises:
        UserError: that fails; the message names the part.
    """
    with _building(part):
        return instantiate(node)


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """The model of a config on ``train.device``, with random weights, in training mode."""
    return build_lazy(cfg.model, "model").to(cfg.train.device)


def evaluate_checkpoint(cfg: DictConfig, resume: bool) -> dict:
    """
    Evaluate ``train.init_checkpoint``, or when resuming the last checkpoint in
    ``train.output_dir``.

    Raises:
        UserError: the model cannot be built, or the checkpoint does not fit it.
    """
    model = _without_maps(build_lazy_model(cfg))
    check_class_ids(model, (), _read_as_detectron(cfg, "test"))
    load_weights(model, _starting_weights(cfg, resume), "train.init_checkpoint")
    return _evaluate(cfg, model)


def train_lazy(cfg: DictConfig, resume: bool) -> None:
    """
    Train from ``train.init_checkpoint``, or when resuming go on from the last checkpoint of
    ``train.output_dir``. On Ctrl-C, what was trained so far is saved first.

    Raises:
        UserError: something of the config cannot be built, an object is of a class that the
            detector does not have, the weights are no checkpoint, or the loss is not finite any
            more.
        KeyboardInterrupt: with a message that says up to where the training is saved.
    """
    model = _without_maps(build_lazy_model(cfg))
    names = {split: _read_as_detectron(cfg, split) for split in ("train", "test")}
    check_class_ids(model, names["train"], names["test"])
    logger.info("Model:\n%s", model)
    cfg.optimizer.params.model = model
    optimizer = build_lazy(cfg.optimizer, "optimizer")
    loader = _build_loader(cfg, "train")
    model = create_ddp_model(model, **cfg.train.ddp)
    kind = AMPTrainer if select(cfg, "train.amp.enabled", False) else SimpleTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = SafeCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    checkpointer.add_checkpointable(LossNormalizers.NAME, LossNormalizers(checkpointer.model))
    trainer.register_hooks([*seeded_iterations(loader), *_hooks(cfg, model, checkpointer)])
    start = _resume_or_load(cfg, trainer, checkpointer, resume)
    with nothing_lost(trainer, checkpointer, "optimizer.lr"):
        save_if_finished(trainer, checkpointer, start, cfg.train.max_iter)
        trainer.train(start, cfg.train.max_iter)


def _hooks(cfg: DictConfig, model: nn.Module, checkpointer: SafeCheckpointer) -> list:
    """Those of Detectron2's own tool, in its order: writers last, to see what the others say."""
    schedule = build_lazy(cfg.lr_multiplier, "lr_multiplier")
    result = [hooks.IterationTimer(), hooks.LRScheduler(scheduler=schedule)]
    if comm.is_main_process():
        result.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
    if select(cfg, "dataloader.evaluator") is not None:
        result.append(hooks.EvalHook(cfg.train.eval_period, lambda: _evaluate(cfg, model)))
    if comm.is_main_process():
        writers = event_writers(cfg.train.output_dir, cfg.train.max_iter)
        result.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    return result


def _resume_or_load(
    cfg: DictConfig, trainer: TrainerBase, checkpointer: SafeCheckpointer, resume: bool
) -> int:
    """Load what the training starts from; the number of its first iteration."""
    weights = _starting_weights(cfg, resume)
    with checkpoint_errors(weights):
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    check_finite(checkpointer.model, weights)
    # A checkpoint has the number of the iteration that it was saved after.
    return trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0


def _evaluate(cfg: DictConfig, model: nn.Module) -> dict:
    loader = _build_loader(cfg, "test")
    evaluator = build_lazy(cfg.dataloader.evaluator, "dataloader.evaluator")
    with evaluation_errors():
        results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def maps_as_detectron(cfg: DictConfig, split: str) -> bool:
    """Whether a dataloader, "train" or "test", makes its inputs by Detectron2's own mapper."""
    return _target(cfg, f"dataloader.{split}.mapper") is DatasetMapper


def _target(cfg: DictConfig, key: str) -> object:
    """What a node calls."""
    target = select(cfg, f"{key}._target_")
    return locate(target) if isinstance(target, str) else target


def _build_loader(cfg: DictConfig, split: str) -> Any:
    """The dataloader of a split; Detectron2's mapper in it reads pictures as every tool does."""
    key = f"dataloader.{split}"
    if maps_as_detectron(cfg, split):
        cfg.dataloader[split].mapper._target_ = PictureMapper
    seed = select(cfg, "train.seed", -1)
    if split == "train" and seed is not None and seed >= 0 and _follows_seed(cfg):
        node = cfg.dataloader.train
        arguments = {name: build_lazy(node[name], f"{key}.{name}") for name in node}
        del arguments["_target_"]
        if arguments.get("sampler") is None:
            arguments["sampler"] = TrainingSampler(len(arguments["dataset"]))
        return seeded_loader(arguments, seed)
    return build_lazy(cfg.dataloader[split], key)


def _follows_seed(cfg: DictConfig) -> bool:
    """Whether the training's images are read as Detectron2 reads a list of entries."""
    parts = {"dataloader.train": build_detection_train_loader,
             "dataloader.train.dataset": get_detection_dataset_dicts,
             "dataloader.train.mapper": PictureMapper}  # fmt: skip
    return all(_target(cfg, key) is part for key, part in parts.items())


def _starting_weights(cfg: DictConfig, resume: bool) -> str:
    return starting_weights(cfg.train.init_checkpoint, cfg.train.output_dir, resume)


def _without_maps(model: Any) -> nn.Module:
    """Turn explaining off in a model of ours: losses and evaluators only need boxes."""
    if getattr(model, "odam", None) is not None:
        model.odam = None
    return model


@contextlib.contextmanager
def _building(part: str) -> Iterator[None]:
    """Turn what a wrong value may raise while a part of the config is built into one sentence."""
    try:
        yield
    except (UserError, InputError, OSError):
        raise
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).split(".")[0]
        raise UserError(
            f"{part} of the config needs the Python package {package!r}, which is not installed"
        ) from error
    except Exception as error:  # the config chooses what is called, and with what
        raise UserError(
            f"{part} of the config cannot be built: {type(error).__name__}: {one_line(error)}"
        ) from error

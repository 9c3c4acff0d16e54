"""Detectron2's default trainer with evaluators, and nothing lost on Ctrl-C."""

import weakref
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from odam_d2.data.mapper import PictureMapper
from odam_d2.errors import UserError

from .augmentation import without_maps
from .building import building_errors
from .checkpointer import SafeCheckpointer
from .checks import check_class_ids
from .evaluators import build_evaluator, evaluates_maps, evaluation_errors
from .heat_map_hook import HeatMapImages
from .proposals import check_proposals
from .seeded_training import LossNormalizers, seeded_iterations, seeded_loader
from .training import event_writers, nothing_lost, save_if_finished
from .weights import check_finite, checkpoint_errors, starting_weights

__all__ = ["Trainer"]


class Trainer(DefaultTrainer):
    """
    Trains what the config names and evaluates it by Detectron2's :class:`COCOEvaluator` and ours.

    Its models do not explain unless ``TEST.ODAM.EVALUATORS`` has an evaluator of heat maps: others
    only need boxes, so ``MODEL.ODAM.TARGETS`` is empty while models are built. The config that is
    logged and saved keeps the user's targets.
    """

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``cfg``, with explaining turned off where nothing asks for it."""
        if "ODAM" in cfg.MODEL and not evaluates_maps(cfg):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ODAM.TARGETS = []
        with building_errors():
            return super().build_model(cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """
        As in Detectron2, with pictures as every tool reads them, a :class:`UserError` where there
        is nothing to train on, and with a ``SEED`` images that follow from it, see
        :mod:`odam_d2.engine.seeded_training`.
        """
        if cfg.MODEL.LOAD_PROPOSALS:
            check_proposals(cfg.DATASETS.PROPOSAL_FILES_TRAIN)
        mapper = PictureMapper(cfg, True)
        try:
            if cfg.SEED < 0:
                return build_detection_train_loader(cfg, mapper=mapper)
            arguments = build_detection_train_loader.from_config(cfg, mapper=mapper)
            return seeded_loader(arguments, cfg.SEED)
        except AssertionError as error:
            if "No valid data" not in str(error):
                raise
            names = ", ".join(cfg.DATASETS.TRAIN)
            raise UserError(f"no image of {names} has an object to train on") from error

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """As in Detectron2, with pictures as every tool reads them."""
        if cfg.MODEL.LOAD_PROPOSALS:
            check_proposals(cfg.DATASETS.PROPOSAL_FILES_TEST)
        return build_detection_test_loader(cfg, dataset_name, mapper=PictureMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """
        The evaluator of one data set, and those that ``TEST.ODAM.EVALUATORS`` names; predictions
        are kept in ``OUTPUT_DIR/inference``.
        """
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list | None = None) -> dict:
        """As in Detectron2; evaluators of heat maps get the model as well."""
        if evaluators is None:
            plain = model.module if isinstance(model, DistributedDataParallel) else model
            evaluators = [build_evaluator(cfg, name, plain) for name in cfg.DATASETS.TEST]
        with evaluation_errors():
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_augmentation(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """
        What ``TEST.AUG`` asks for, as by Detectron2's own ``tools/train_net.py``: detections of
        several sizes and mirror images of each image, merged. They are boxes (and masks) only: no
        one pass of the network made them that a heat map could explain.

        Returns:
            As ``test``, each task with ``_TTA`` at its end.
        """
        augmented = GeneralizedRCNNWithTTA(cfg, without_maps(model))
        evaluators = [
            build_evaluator(cfg, name, folder="inference_TTA", maps=False)
            for name in cfg.DATASETS.TEST
        ]
        with evaluation_errors():
            found = super().test(cfg, augmented, evaluators)
        return {f"{name}_TTA": value for name, value in found.items()}

    def build_hooks(self) -> list[HookBase]:
        """
        Detectron2's, with a ``SEED`` what a resumed training needs to end as one that was not
        interrupted, pictures of heat maps where ``MODEL.ODAM.LOSS.VIS_PERIOD`` asks, and after the
        last iteration what ``TEST.AUG`` asks for. They save by a checkpointer that reads files as
        data, in the place of Detectron2's.
        """
        self.checkpointer = SafeCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.checkpointer.add_checkpointable(
            LossNormalizers.NAME, LossNormalizers(self.checkpointer.model)
        )
        found = super().build_hooks()
        found[:0] = seeded_iterations(self._trainer.data_loader)
        node = self.cfg.MODEL.get("ODAM")
        if node is not None and node.LOSS.NAME and node.LOSS.VIS_PERIOD > 0:
            # Before the writers, which write what the storage has.
            found.insert(0, HeatMapImages(self.cfg, node.LOSS.VIS_PERIOD))
        if self.cfg.TEST.AUG.ENABLED:
            evaluation = hooks.EvalHook(
                0, lambda: self.test_with_augmentation(self.cfg, self.model)
            )
            # The main process has writers, last.
            found.insert(len(found) - comm.is_main_process(), evaluation)
        return found

    def build_writers(self) -> list[EventWriter]:
        """As in Detectron2."""
        return event_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def resume_or_load(self, resume: bool = True) -> None:
        """
        As in Detectron2, with a :class:`UserError` for a file that is no checkpoint, or not finite.
        """
        weights = starting_weights(self.cfg.MODEL.WEIGHTS, self.cfg.OUTPUT_DIR, resume)
        with checkpoint_errors(weights):
            super().resume_or_load(resume)
        check_finite(self.checkpointer.model, weights)

    def train(self) -> dict | None:
        """
        Train from ``start_iter`` to ``max_iter``. On Ctrl-C, what was trained so far is saved
        first, so that ``--resume`` continues after the last finished iteration.

        Raises:
            UserError: an object is of a class that the detector does not have, or the loss is not
                finite any more.
        """
        check_class_ids(self.checkpointer.model, self.cfg.DATASETS.TRAIN, self.cfg.DATASETS.TEST)
        with nothing_lost(self, self.checkpointer, "SOLVER.BASE_LR"):
            save_if_finished(self, self.checkpointer, self.start_iter, self.max_iter)
            return super().train()

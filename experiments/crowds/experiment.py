"""
The experiment from training to figures. Each step leaves a file, and is skipped where that is whole
and of the same fingerprint, see :mod:`odam_d2.fingerprint`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn
from tqdm import tqdm

from odam_d2.data.checks import DatasetUse
from odam_d2.digests import describe, digest
from odam_d2.engine import Trainer, load_weights, setup_cfg
from odam_d2.engine.augmentation import refuse_augmentation
from odam_d2.engine.checks import check_dataset
from odam_d2.engine.whole_checkpoints import is_whole, last_whole, remove_checkpoints
from odam_d2.errors import UserError
from odam_d2.files import read_json, write_json
from odam_d2.fingerprint import ONLY_FOR_TESTING, differences, entry_key, of_detector

from .candidates import ImageCandidates, collect, load, save, without_nms
from .measures import detection_figures, pair_figures
from .plan import Run
from .tuning import GRIDS, NMS_METHODS, tune

__all__ = ["Experiment", "run_all"]

logger = logging.getLogger(__name__)

# More than any of these detectors has above its score threshold: a dense one has many for each
# object, and where only the best were kept, whole objects would be missing.
_MOST_CANDIDATES = 10_000


@dataclass(frozen=True)
class Experiment:
    """
    Attributes:
        configs: folder of the project's configs.
        output: folder of the experiment; a folder of its own for each run.
        tuning_images: images of the training split on which thresholds are chosen.
        overlap: objects overlap where their boxes' IoU is above this.
        precision: at which recalls are compared.
        opts: further overrides of the configs.
    """

    configs: Path
    output: Path
    tuning_images: int = 100
    overlap: float = 0.3
    precision: float = 0.8
    opts: tuple[str, ...] = ()

    def cfg(self, run: Run) -> CfgNode:
        """The config of a training."""
        cfg = setup_cfg(str(run.config(self.configs)), [*run.opts(self.output), *self.opts])
        refuse_augmentation(cfg)
        cfg.freeze()
        return cfg

    def train(self, run: Run) -> Path:
        """Train, or go on training, unless that is done; returns the checkpoint."""
        cfg, folder = self.cfg(run), self.output / run.name
        done, record = folder / "model_final.pth", folder / "training.json"
        folder.mkdir(parents=True, exist_ok=True)
        fingerprint = describe(_of_training(cfg))
        written = read_json(record, lambda content: isinstance(content, dict))
        if why := differences(written or {}, fingerprint):
            if done.exists() or last_whole(folder):
                logger.info("%s is of an earlier run, and is trained again: %s.", folder, why)
            remove_checkpoints(folder)
            write_json(record, fingerprint)
        if not is_whole(done):
            if not last_whole(folder):
                remove_checkpoints(folder)
            setup_logger(str(folder))
            seed_all_rng(cfg.SEED)
            trainer = _QuietTrainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
        return done

    def candidates(self, run: Run, split: str) -> list[ImageCandidates]:
        """Of the images that thresholds are chosen on (``"train"``), or of all (``"val"``)."""
        path = self.output / run.name / f"candidates_{split}.pth"
        cfg, fingerprint = self._detector(run), self._of_candidates(run, split)
        found = load(path, fingerprint)
        if found is None:
            model = Trainer.build_model(cfg).eval()
            load_weights(model, cfg.MODEL.WEIGHTS)
            save(list(collect(model, cfg, getattr(run, split), self._images(split))), path,
                 fingerprint)  # fmt: skip
            found = load(path, fingerprint)
        if found is None:
            raise UserError(f"{str(path)!r} was written, and cannot be read back")
        return found

    def _images(self, split: str) -> int | None:
        return self.tuning_images if split == "train" else None

    def _detector(self, run: Run) -> CfgNode:
        """The config of the trained detector, without NMS."""
        cfg = without_nms(self.cfg(run), _MOST_CANDIDATES)
        cfg.MODEL.WEIGHTS = str(self.output / run.name / "model_final.pth")
        cfg.freeze()
        return cfg

    def _of_candidates(self, run: Run, split: str) -> dict:
        """What candidates depend on, see :mod:`odam_d2.fingerprint`; not before the training."""
        dataset = getattr(run, split)
        images = DatasetCatalog.get(dataset)[: self._images(split)]
        keys = digest([entry_key(entry) for entry in images])
        return {**of_detector(self._detector(run)), "dataset": dataset, "images": keys}

    def figures(self, run: Run) -> dict:
        """All figures of one run: ``pairs``, and for each method ``settings`` and ``figures``."""
        path = self.output / run.name / "figures.json"
        self.train(run)
        parts = {"overlap": self.overlap, "precision": self.precision,
                 "tuning_images": self.tuning_images,
                 "tried": {method: digest(GRIDS[method]) for method in NMS_METHODS},
                 "candidates": {split: self._of_candidates(run, split)
                                for split in ("train", "val")}}  # fmt: skip
        asked = {key: describe(value) for key, value in parts.items()}
        found = read_json(path, lambda content: content["checksum"] == _checksum(content))
        if found is not None:
            why = differences(found["asked"], asked)
            if not why:
                return found
            logger.info("%s is of an earlier run, and made again: %s.", path, why)
        train, val = (self.candidates(run, split) for split in ("train", "val"))
        objects, val_objects = (_entries(getattr(run, split)) for split in ("train", "val"))
        found = {"asked": asked, "pairs": pair_figures(val, val_objects, self.overlap)}
        limits = (self.overlap, self.precision)
        for method in NMS_METHODS:
            settings = tune(method, train, objects, *limits)
            figures = detection_figures(run.val, val, val_objects, method, settings, *limits)
            found[method] = {"settings": settings, "figures": figures}
        write_json(path, {**found, "checksum": _checksum(found)})
        return found


def _of_training(cfg: CfgNode) -> dict:
    """What the weights at the end of a training depend on."""
    images = [entry for name in cfg.DATASETS.TRAIN for entry in DatasetCatalog.get(name)]
    keys = digest([entry_key(entry) for entry in images])
    return {**of_detector(cfg, ONLY_FOR_TESTING), "images": keys}


def _checksum(figures: dict) -> str:
    return digest({key: value for key, value in figures.items() if key != "checksum"})


class _QuietTrainer(Trainer):
    """Evaluates nothing by itself."""

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list | None = None) -> dict:
        return {}


def _entries(dataset: str) -> dict:
    return {entry["image_id"]: entry for entry in DatasetCatalog.get(dataset)}


def run_all(experiment: Experiment, runs: Sequence[Run]) -> Iterator[tuple[Run, dict]]:
    """
    The figures of every run. Interrupt it whenever you like: the next call goes on from there.

    Raises:
        UserError: a data set is missing; told before anything is trained.
    """
    # Thresholds are chosen on the images that detectors learn from.
    use = DatasetUse(annotations=True, image_ids=True, sizes=True)
    for dataset in dict.fromkeys(name for run in runs for name in (run.train, run.val)):
        check_dataset(dataset, use)
    with tqdm(runs, "crowd experiment", unit="run") as bar:
        for run in bar:
            bar.set_postfix_str(run.name)
            logger.info("crowd experiment: %s", run.name)
            yield run, experiment.figures(run)

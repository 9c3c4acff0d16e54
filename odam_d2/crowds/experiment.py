"""The experiment from training to figures. Each step leaves a file, and is skipped if it exists."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from odam_d2.engine import Trainer, load_weights, setup_cfg
from odam_d2.engine.checks import check_dataset

from .candidates import Candidates, collect, load, save, without_nms
from .measures import detection_figures, pair_figures
from .plan import Run
from .tuning import GRIDS, METHODS, tune

__all__ = ["Experiment", "run_all"]

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
        cfg.freeze()
        return cfg

    def train(self, run: Run) -> Path:
        """Train, or go on training; returns the checkpoint."""
        done = self.output / run.name / "model_final.pth"
        if not done.is_file():
            cfg = self.cfg(run)
            done.parent.mkdir(parents=True, exist_ok=True)
            setup_logger(str(done.parent))
            trainer = _QuietTrainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
        return done

    def candidates(self, run: Run, split: str) -> list[Candidates]:
        """Of the images that thresholds are chosen on (``"train"``), or of all (``"val"``)."""
        path = self.output / run.name / f"candidates_{split}.pth"
        if not path.is_file():
            cfg = without_nms(self.cfg(run), _MOST_CANDIDATES)
            model = Trainer.build_model(cfg).eval()
            load_weights(model, str(self.output / run.name / "model_final.pth"))
            images = self.tuning_images if split == "train" else None
            save(list(collect(model, cfg, getattr(run, split), images)), path)
        return load(path)

    def figures(self, run: Run) -> dict:
        """All figures of one run: ``pairs``, and for each method ``settings`` and ``figures``."""
        path = self.output / run.name / "figures.json"
        asked = {"overlap": self.overlap, "precision": self.precision,
                 "tuning_images": self.tuning_images,
                 "tried": {method: len(GRIDS[method]) for method in METHODS}}  # fmt: skip
        if path.is_file():
            found = json.loads(path.read_text())
            if found["asked"] == asked:
                return found
        self.train(run)
        train, val = (self.candidates(run, split) for split in ("train", "val"))
        objects, val_objects = (_entries(getattr(run, split)) for split in ("train", "val"))
        found = {"asked": asked, "pairs": pair_figures(val, val_objects, self.overlap)}
        limits = (self.overlap, self.precision)
        for method in METHODS:
            settings = tune(method, train, objects, *limits)
            figures = detection_figures(run.val, val, val_objects, method, settings, *limits)
            found[method] = {"settings": settings, "figures": figures}
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(found, indent=2))
        unfinished.replace(path)
        return found


class _QuietTrainer(Trainer):
    """Evaluates nothing by itself."""

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {}


def _entries(dataset: str) -> dict:
    return {entry["image_id"]: entry for entry in DatasetCatalog.get(dataset)}


def run_all(experiment: Experiment, runs: Sequence[Run]) -> Iterator[tuple[Run, dict]]:
    """
    The figures of every run. Interrupt it whenever you like: the next call goes on from there.

    Raises:
        UserError: a data set is missing; told before anything is trained.
    """
    for dataset in dict.fromkeys(name for run in runs for name in (run.train, run.val)):
        check_dataset(dataset)
    with tqdm(runs, "crowd experiment", unit="run") as bar:
        for run in bar:
            bar.set_postfix_str(run.name)
            logging.getLogger("odam_d2").info("crowd experiment: %s", run.name)
            yield run, experiment.figures(run)

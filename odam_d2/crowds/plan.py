"""What is trained for the experiment: data sets, detectors, variants, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from odam_d2.errors import UserError

__all__ = ["DATASETS", "DETECTORS", "VARIANTS", "Run", "plan"]

DETECTORS = ("faster_rcnn", "retinanet")
VARIANTS = ("plain", "odam_train")


@dataclass(frozen=True)
class _Dataset:
    """
    Attributes:
        config: leaf of the plain detector, with ``{detector}``.
        train, val: registered names.
        opts: overrides of the configs, the same for all.
    """

    config: str
    train: str
    val: str
    opts: tuple[str, ...] = ()


DATASETS = {
    # Both start from the shipped detectors, which have seen robots, but never so many at once.
    "crowdshapes": _Dataset(
        "CrowdShapes/{detector}_R_50_FPN_slim_crowded.yaml",
        "crowdshapes_crowded_train",
        "crowdshapes_crowded_val",
    ),
    # From nothing, with a quarter of the images that the configs ask for: for CPUs, within hours.
    "bccd": _Dataset(
        "BCCD/{detector}_R_18_FPN.yaml",
        "bccd_train",
        "bccd_val",
        ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01", "SOLVER.STEPS", "(110,145)",
         "SOLVER.MAX_ITER", "160", "SOLVER.CHECKPOINT_PERIOD", "80", "DATALOADER.NUM_WORKERS",
         "0"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training of the experiment."""

    dataset: str
    detector: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.detector}/{self.variant}/seed{self.seed}"

    @property
    def train(self) -> str:
        return DATASETS[self.dataset].train

    @property
    def val(self) -> str:
        return DATASETS[self.dataset].val

    def config(self, configs: Path) -> Path:
        """The config file of this run, among those of the project."""
        plain = configs / DATASETS[self.dataset].config.format(detector=self.detector)
        suffix = "" if self.variant == "plain" else f"_{self.variant}"
        return plain.with_name(f"{plain.stem}{suffix}.yaml")

    def opts(self, output: Path) -> list[str]:
        """
        Overrides of that config.

        Args:
            output: folder of the experiment.
        """
        opts = ["OUTPUT_DIR", str(output / self.name), "SEED", str(self.seed)]
        opts += [*DATASETS[self.dataset].opts, "TEST.EVAL_PERIOD", "0"]
        if (start := self.starts_from) is not None:
            opts += ["MODEL.WEIGHTS", str(output / start.name / "model_final.pth")]
        return opts

    @property
    def starts_from(self) -> Run | None:
        """
        The run whose backbone this one starts with: a RetinaNet does not begin to place boxes
        within so few iterations from nothing.
        """
        if (self.dataset, self.detector) != ("bccd", "retinanet"):
            return None
        return Run(self.dataset, "faster_rcnn", "plain", self.seed)


def plan(datasets: Sequence[str], detectors: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """
    The runs, those first that others start from.

    Raises:
        UserError: a name is unknown; the message lists those that there are.
    """
    for given, known in ((datasets, DATASETS), (detectors, DETECTORS)):
        for name in given:
            if name not in known:
                raise UserError(f"the experiment has no {name!r}; there are {', '.join(known)}")
    ordered = [name for name in DETECTORS if name in detectors]
    for parts in itertools.product(datasets, ordered, VARIANTS, seeds):
        yield Run(*parts)

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
    """

    config: str
    train: str
    val: str


DATASETS = {
    # Both start from the shipped detectors, which have seen robots, but never so many at once.
    "crowdshapes": _Dataset(
        "CrowdShapes/{detector}_R_50_FPN_slim_crowded.yaml",
        "crowdshapes_crowded_train",
        "crowdshapes_crowded_val",
    ),
    # From the same detectors, whose classes and anchors are other ones there.
    "bccd": _Dataset("BCCD/{detector}_R_50_FPN_slim.yaml", "bccd_train", "bccd_val"),
}


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
        return [*opts, "TEST.EVAL_PERIOD", "0"]


def plan(datasets: Sequence[str], detectors: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """
    The runs, in the order in which they are done.

    Raises:
        UserError: a name is unknown; the message lists those that there are.
    """
    for given, known in ((datasets, DATASETS), (detectors, DETECTORS)):
        for name in given:
            if name not in known:
                raise UserError(f"the experiment has no {name!r}; there are {', '.join(known)}")
    for parts in itertools.product(datasets, detectors, VARIANTS, seeds):
        yield Run(*parts)

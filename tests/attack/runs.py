"""Small runs of the tools: what kills, full disks and odd states are tried on."""

import atexit
import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from experiments.crowds import plan

from .case import Wrong
from .killed import FileEvents
from .material import NAMES, SMALL, coco, config_file, crop, register
from .tools import Ran, tool

__all__ = [
    "CROWD", "RUNS", "SMALL_EVALUATION", "Run", "again", "crowd_data", "prepared", "reference",
]  # fmt: skip

_DATA = ["DATASETS.TEST", f"('{NAMES[0]}',)", "DATASETS.TRAIN", f"('{NAMES[0]}',)"]
SMALL_EVALUATION = [*SMALL, *_DATA]
# Two pictures in an order of the seed, mirrored or not by it, and a sample of the anchors.
_TRAINING = [
    "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()",
    "SOLVER.IMS_PER_BATCH", "1", "INPUT.MIN_SIZE_TRAIN", "(96,)", "MODEL.DEVICE", "cpu",
]  # fmt: skip
CROWD = [
    "--datasets", "crowdshapes", "--detectors", "faster_rcnn", "--seeds", "1", "--overlap", "0.3",
]  # fmt: skip
"""The experiment on crowds with one seed, on what :func:`crowd_data` registers."""


@dataclass
class Run:
    """
    A command whose results go to ``out`` in the working folder.

    Attributes:
        tool: its name.
        arguments: of the command line.
        resume: what is added when it is run again.
        data: gets the annotations file and registers what the tool uses.
        pictures: of the data set.
        folder: where its reference results are, once they were made.
        events: on files, of the reference.
    """

    tool: str
    arguments: list[str]
    resume: list[str] = field(default_factory=list)
    data: Callable[[Path], object] = register
    pictures: int = 1
    folder: Path | None = None
    events: int = 0

    def __call__(
        self, cwd: Path, again: bool = False, opts: list = (), before: Callable | None = None
    ) -> Ran:
        """
        Run in a folder that :func:`prepared` made.

        Args:
            cwd: that folder.
            again: with ``resume``.
            opts: more overrides.
            before: see :func:`odam_d2.tests.attack.tools.tool`.
        """

        def first():
            self.data(cwd / "data" / "annotations.json")
            if before is not None:
                before()

        added = self.resume if again else []
        return tool(self.tool, *added, *self.arguments, *opts, before=first, cwd=cwd)


def crowd_data(annotations: Path) -> None:
    """Let the experiment on crowds train and evaluate on a small data set."""
    register(annotations, "attack_crowd")
    plan.DATASETS["crowdshapes"] = dataclasses.replace(
        plan.DATASETS["crowdshapes"], train="attack_crowd", val="attack_crowd"
    )


RUNS = {
    "train": Run(
        "train_net",
        ["--config-file", config_file(), *_DATA, *_TRAINING, "MODEL.WEIGHTS", "", "SEED", "1",
         "OUTPUT_DIR", "out", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.BASE_LR", "0.001"],
        resume=["--resume"],
        pictures=2,
    ),
    "evaluate": Run(
        "evaluate_explanations",
        ["--config-file", config_file(), "--output", "out", *SMALL, *_DATA],
    ),
    "analyse": Run(
        "analyze_errors",
        ["--config-file", config_file(), "--output", "out", "--most", "1", "--confidence", "0.3",
         *SMALL, *_DATA],
    ),
    "demo": Run(
        "demo",
        ["--config-file", config_file(), "--input", "0.png", "1.png", "--output", "out",
         "--targets", "class", "--max-detections", "2",
         "--opts", "INPUT.MIN_SIZE_TEST", "144", "MODEL.DEVICE", "cpu"],
    ),
    "crowd": Run(
        "crowd_experiment",
        ["--output", "out", *CROWD, "--tuning-images", "1", *_TRAINING,
         "DATASETS.TRAIN", "('attack_crowd',)", "INPUT.MIN_SIZE_TEST", "200",
         "SOLVER.BASE_LR", "1e-4", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
         "DATALOADER.NUM_WORKERS", "0"],
        data=crowd_data,
        pictures=2,
    ),
}  # fmt: skip


def prepared(folder: Path, number: int = 1, change=None) -> Path:
    """Data of a run: a data set of so many pictures, and two pictures for the demo."""
    coco(folder / "data", number, change)
    for k in range(2):
        Image.fromarray(crop(k)).save(folder / f"{k}.png")
    return folder


def reference(name: str) -> Run:
    """The run with its uninterrupted results. Called before cases are forked, so made once."""
    run = RUNS[name]
    if run.folder is None:
        folder = Path(tempfile.mkdtemp(prefix="attack_reference_"))
        atexit.register(_remove, folder, os_pid())
        prepared(folder, run.pictures)
        events = FileEvents(folder / "out")
        ran = run(folder, before=events.watch)
        if ran.status:
            raise Wrong(f"the reference of {name} failed: {ran.err[-800:]}")
        run.folder, run.events = folder, events.count
    return run


def os_pid() -> int:
    import os

    return os.getpid()


def _remove(folder: Path, owner: int) -> None:
    if os_pid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def again(name: str, folder: Path, finished: bool = True) -> Run:
    """A folder like the reference's, with its results in it or not, and the run."""
    run = reference(name)
    for part in run.folder.iterdir():
        if part.name == "out" and not finished:
            continue
        copy = shutil.copytree if part.is_dir() else shutil.copy2
        copy(part, folder / part.name)
    return run

"""Names of data sets that others register too, in a fresh Python."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from .case import RIGHT, Case, expect
from .tools import ROOT

__all__ = ["cases"]

_OTHER = """
from detectron2.data import DatasetCatalog, MetadataCatalog
for name in {names!r}:
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(thing_classes=["theirs"], evaluator_type="coco",
        json_file="theirs.json")
"""
_PUBLIC = ["crowdhuman_train", "crowdhuman_val", "bccd_train", "bccd_val", "coco128_dev"]
_CHECK = """
assert all(n in DatasetCatalog.list() for n in {names!r})
assert MetadataCatalog.get("crowdhuman_train").thing_classes == ["theirs"], "theirs was replaced"
assert "crowdshapes_val" in DatasetCatalog.list(), "crowdshapes_val is unknown"
"""
_OURS = """
from detectron2.data import DatasetCatalog
assert "crowdshapes_val" in DatasetCatalog.list(), "crowdshapes_val is unknown"
from detectron2.utils.file_io import PathManager
assert PathManager.isfile("odam://CrowdShapes/faster_rcnn_R_50_FPN_slim.pth"), "odam:// is unknown"
"""
_TOOLS = """
import runpy, sys
sys.argv = ["tools/{tool}.py", "--config-file", "configs/BCCD/faster_rcnn_R_18_FPN.yaml",
    {more} "DATASETS.TEST", "('{name}',)"]
runpy.run_path("tools/{tool}.py", run_name="__main__")
"""


def _python(code: str, folder: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment
    )


def _runs(code: str, folder: Path) -> str:
    done = _python(code, folder)
    expect(done.returncode == 0, f"fails: {' | '.join(done.stderr.strip().splitlines()[-1:])}")
    return RIGHT


def _tool_knows(tool: str, name: str, more: str, folder: Path) -> str:
    """Where the files of a public data set are missing, the tool says so, and knows the name."""
    done = _python(_TOOLS.format(tool=tool, name=name, more=more), folder)
    said = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    expect(
        done.returncode == 1 and len(said) == 1, f"status {done.returncode}: {done.stderr[-300:]}"
    )
    expect("is not registered" not in said[0], said[0])
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    theirs = _OTHER.format(names=_PUBLIC)
    check, fault = _CHECK.format(names=_PUBLIC), "5 import odam_d2 registers crowdhuman_train"
    for what, code in {
        "import-then-theirs": f"import odam_d2{theirs}{check}",
        "theirs-then-import": f"{theirs}import odam_d2{check}",
        "data-then-theirs": f"import odam_d2.data{theirs}{check}",
        "engine-then-theirs": f"import odam_d2.engine, odam_d2.model_zoo{theirs}{check}",
        "demo-then-theirs": f"import odam_d2.demo{theirs}{check}",
        "evaluation-then-theirs": f"import odam_d2.evaluation{theirs}{check}",
    }.items():  # fmt: skip
        yield Case(what, partial(_runs, code), fault if "then-theirs" in what else "")
    yield Case(
        "ours-are-known", partial(_runs, "import odam_d2" + _OURS), "5 odam:// known on import"
    )
    for tool, more in (
        ("train_net", "'--eval-only',"),
        ("analyze_errors", ""),
        ("evaluate_explanations", ""),
    ):
        name = rng.choice(_PUBLIC)
        yield Case(f"{tool}-knows-{name}", partial(_tool_knows, tool, name, more))

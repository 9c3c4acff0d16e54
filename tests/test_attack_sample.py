"""A sample of the attacks (`make attack` runs all), and that the runner notices what goes wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from attack.case import RIGHT, Case, Refused, Running, Wrong, attempt, refused
from attack.kinds import all_cases
from attack.tools import whole

from odam_d2.core.errors import InputError

ROOT = Path(__file__).parents[1]

# Two or so of each kind that take a second at most; those of seed 0 never change their names.
SAMPLE = """
annotations/analyse-dict-string-ids
arguments/boxes-empty-retinanet
arguments/boxes-nan-faster_rcnn
arguments/input-uint8-faster_rcnn
arguments/maps-cat-other
arguments/targets-class-3-fcos
checkpoints/evil-model.pkl
checkpoints/flipped-3
checkpoints/good-pkl-arrays-2
checkpoints/strip-good
configs/apply-system-value
configs/eval-attributes-base
configs/literal-4
configs/wrong-unknown
configs/zoo-model_zoo-COCO-Detection:retinanet_R_50_FPN_1x.yaml
folders/line-break-in-folder
folders/html-named
heads/roi-gate-96x128
heads/roi-plain-96x128
kills/demo-6
numbers/faster_rcnn-times-3-class
numbers/retinanet-times-4-class
odgt/bytes-twice
odgt/good-3-*
odgt/noise-7
outputs/exact-256x50x76
outputs/no-grad-decorated
overrides/MODEL.ODAM.CHUNK_MB-nan
pictures/jpg-cut-5
pictures/tif-RGB-orientation-6
pictures/webp-noise-2
settings/faster_rcnn-MODEL.ODAM.SMOOTHING_SIGMA-2.0
stale/evaluate-TEST.DETECTIONS_PER_IMAGE-2
state_files/demo-index.html-cut-0.000
threads/faster_rcnn-alone_call_explain
"""


def _names() -> list[str]:
    from attack.__main__ import chosen

    return list(chosen(all_cases(0), SAMPLE.split()))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """
    Of the sample, run by a process of its own: one that has used autograd for a device, which
    another test may pretend to have, must not be forked.
    """
    file = tmp_path_factory.mktemp("attack") / "outcomes.json"
    cases = [x for name in SAMPLE.split() for x in ("--case", name)]
    command = [sys.executable, "-m", "tests.attack", "--jobs", "1", "--json", str(file), *cases]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert file.exists(), ran.stderr[-2000:]
    return json.loads(file.read_text())["outcomes"]


def outcome(case: Case) -> tuple[str, str]:
    running = Running(case)
    while not running.ended(0.2) and not running.late():
        pass
    return running.finish()


@pytest.mark.parametrize("name", _names())
def test_right_or_refused(name, outcomes):
    assert outcomes[name]["verdict"] in ("right", "refused"), outcomes[name]["words"]


def _hang(folder):
    os.read(os.open(os.mkfifo(folder / "x") or folder / "x", os.O_RDONLY), 1)


def _loop(folder):
    while True:
        time.process_time()


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (_loop, "did not end"),
        (lambda folder: np.ones(2**31), "memory"),
        (lambda folder: [][0], "IndexError"),
        (lambda folder: os.kill(os.getpid(), 9), "died"),
        (lambda folder: None, "returned None"),
        (lambda folder: refused(lambda: 3), "returned 3"),
    ],
)
def test_what_goes_wrong_is_noticed(attack, words):
    verdict, said = outcome(Case("fault", attack, seconds=1, memory=500))
    assert verdict == "wrong"
    assert words in said


def test_a_refusal_is_deliberate_and_of_one_line():
    def refuse(words):
        raise InputError(words)

    assert attempt(lambda: 7) == 7
    with pytest.raises(InputError):  # not raised by the project
        attempt(lambda: refuse("no"))
    found = refused(lambda: _ours("score"), "score")
    assert isinstance(found, Refused)


def _ours(_):
    from odam_d2 import ExplainSettings

    return ExplainSettings(score="nothing")


def test_half_written_files_and_leftovers_are_noticed(tmp_path):
    np.savez_compressed(tmp_path / "maps.npz", values=np.ones(300))
    whole(tmp_path)
    data = (tmp_path / "maps.npz").read_bytes()
    (tmp_path / "maps.npz").write_bytes(data[:-30])
    with pytest.raises(Wrong, match=r"half-written: maps\.npz"):
        whole(tmp_path)
    (tmp_path / "maps.npz").rename(tmp_path / "maps.npz.partial")
    with pytest.raises(Wrong, match="left over"):
        whole(tmp_path)
    whole(tmp_path, remains=True)


def test_names_are_the_same_each_time():
    assert list(all_cases(3, ["odgt"])) == list(all_cases(3, ["odgt"]))
    assert len(all_cases(1)) >= 1500
    assert RIGHT == "right"

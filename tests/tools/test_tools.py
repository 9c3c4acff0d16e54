"""tools/benchmark.py and tools/evaluate_explanations.py, run as programs are."""

import json
from pathlib import Path

import pytest
from oracle import SLIM
from tool_modules import load_tool, run_in_process

from odam_d2.errors import run_tool

ROOT = Path(__file__).parents[2]
RCNN = str(ROOT / "configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
RETINANET = str(ROOT / "configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml")
OPTS = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *map(str, SLIM)]

# The contract of the project's design, section 7.
KEYS = {
    "forward_s", "explain_s", "overhead", "autograd_s_per_map", "speedup", "max_relative_error",
    "num_instances", "num_targets", "device", "torch", "commit",
}  # fmt: skip


def benchmark(*arguments):
    return run_in_process(load_tool("benchmark"), *arguments, *OPTS)


@pytest.mark.parametrize(
    ("config", "spread", "levels"),
    [(RCNN, [], None), (RETINANET, ["--spread", "4", "3", "2", "1", "1"], [4, 3, 2, 1, 1])],
)
def test_benchmark_compares_ours_with_autograd(config, spread, levels, tmp_path):
    """The maps of both ways are compared: an error in either shows in max_relative_error."""
    out = tmp_path / "figures.json"
    size = ["--size", "160", "224", "--runs", "1", "--instances", "11"]
    assert benchmark("--config-file", config, "--json", str(out), *spread, *size) == 0
    figures = json.loads(out.read_text())
    assert figures.keys() >= KEYS
    assert figures["num_instances"] == 11
    assert figures["num_targets"] == 5
    assert figures["max_relative_error"] <= 1e-5
    assert figures["way"] == ("window" if spread else "pooled")
    assert "median_difference_to_exact" not in figures  # no norm has statistics to hold constant
    for name in ("forward_s", "explain_s", "autograd_s_per_map"):
        least, most = figures[f"{name}_range"]
        assert least <= figures[name] <= most
    assert figures["overhead"] == figures["explain_s"] / figures["forward_s"]
    assert figures["autograd_maps"] >= 5
    assert levels is None or figures["instances_per_level"] == levels


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config-file", RCNN, "--spread", "5", "5", "--size", "64", "96"], "dense detectors"),
        (["--config-file", RETINANET, "--spread", "5", "--size", "64", "96"], "has 5 levels"),
        (["--config-file", RCNN, "--runs", "0"], "must be positive"),
        (["--config-file", RCNN, "--threads", "0"], "must be positive"),
        (["--config-file", RCNN, "--spread", "5", "--nms", "5"], "no effect with --nms"),
        (["--config-file", RCNN, "MODEL.ODAM.METHOD", "grad_cam"], "METHOD is 'grad_cam'"),
        (["--config-file", RCNN, "MODEL.ODAM.LAYER", "res4"], "LAYER is 'res4'"),
        (["--config-file", RCNN, "MODEL.ODAM.SMOOTHING_SIGMA", "1.0"], "SMOOTHING_SIGMA is 1.0"),
        (["--config-file", RCNN, "--json", "/nowhere/at/all.json"], "cannot write"),
        (["--config-file", "nope.yaml"], "does not exist"),
    ],
)
def test_benchmark_errors_are_one_sentence(arguments, sentence, capsys):
    assert benchmark(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (["MODEL.ODAM.SCORE", "odds"], "must be one of"),
        (["MODEL.ODAM.TARGETS", "['middle']"], "unknown target 'middle'"),
        (["MODEL.ODAM.TARGETS", "[]"], "MODEL.ODAM.TARGETS is empty"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
    ],
)
def test_evaluation_errors_are_one_sentence(opts, sentence, capsys, tmp_path):
    module = load_tool("evaluate_explanations")
    config = str(ROOT / "configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml")
    folder = tmp_path / "explanations"
    flags = ["--config-file", config, "--output", str(folder)]
    args = module.get_parser().parse_args([*flags, "MODEL.DEVICE", "cpu", *opts])
    assert run_tool(lambda: module.main(args)) == 1
    assert not folder.exists()  # figures of an earlier run would be lost
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error

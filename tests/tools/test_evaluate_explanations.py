"""tools/evaluate_explanations.py and train_net.py on the shipped detector and a few pictures."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from few_images import few_images
from tool_modules import load_tool

import odam_d2.engine.explanation_run as explanation_run
from odam_d2.errors import run_tool
from odam_d2.evaluation.explanation_scores import METRICS

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml")
NAME, IMAGES = "crowdshapes_evaluated", 4
OPTS = [
    "MODEL.DEVICE", "cpu", "DATASETS.TEST", f"('{NAME}',)", "DATALOADER.NUM_WORKERS", "0",
    "TEST.ODAM.EXPLANATION.IOU_THRESH", "0.7", "TEST.ODAM.EXPLANATION.FAITHFULNESS.STEPS", "2",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def images():
    with few_images(NAME, IMAGES):
        yield


def evaluate(folder, *arguments, opts=()):
    tool = vars(load_tool("evaluate_explanations"))
    base = ["--config-file", CONFIG, "--output", str(folder), *arguments]  # then overrides at once
    return run_tool(lambda: tool["run"]([*base, *OPTS, *opts]))


def test_no_detection_to_evaluate(tmp_path, capsys):
    """No detector is this sure: empty results, and no plot of an earlier run."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "methods.png").write_bytes(b"earlier")
    opts = ["TEST.ODAM.EXPLANATION.SCORE_THRESH", "1.0"]
    out = tmp_path / "all.json"
    assert evaluate(tmp_path, "--num-images", "1", "--json", str(out), opts=opts) == 0
    assert "explanation-class" not in json.loads(out.read_text())[NAME]
    assert "No detection could be evaluated." in capsys.readouterr().out
    assert not (tmp_path / NAME / "methods.png").exists()


@pytest.mark.slow
def test_methods_on_the_same_detections(tmp_path, capsys):
    opts = ["MODEL.ODAM.TARGETS", "['class', 'left']"]
    out = tmp_path / "all.json"
    methods = ["--methods", "odam", "grad_cam"]
    assert evaluate(tmp_path, *methods, "--json", str(out), opts=opts) == 0
    results = json.loads(out.read_text())[NAME]
    assert list(results) == ["odam", "grad_cam"]
    counts = {found["explanation-class"]["num_detections"] for found in results.values()}
    assert len(counts) == 1
    for found in results.values():
        assert set(METRICS) <= set(found["explanation-class"])
        assert "deletion" not in found["explanation-left"]
        assert found["explanation-class"]["num_curves"] == IMAGES
        assert found["known_causes"]["num_detections"] >= counts.copy().pop()
    assert results["odam"]["explanation-class"]["energy_mask"] > 20
    tables = (tmp_path / NAME / "methods.md").read_text()
    assert tables in capsys.readouterr().out
    row = next(line for line in tables.splitlines() if line.startswith("| odam |"))
    assert f"| {results['odam']['explanation-class']['pointing_mask']:.1f} |" in row
    assert (tmp_path / NAME / "methods.png").stat().st_size > 10_000


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    json_of = {folder: str(folder) + ".json" for folder in (whole, parts)}
    assert evaluate(whole, "--json", json_of[whole]) == 0

    inference = explanation_run.inference_on_dataset

    def interrupted(model, loader, evaluator):
        def some():
            for number, batch in enumerate(loader):
                if number == 2:
                    raise KeyboardInterrupt
                yield batch

        class Loader(list):
            __iter__ = lambda _: some()  # noqa: E731
            __len__ = lambda _: IMAGES  # noqa: E731

        return inference(model, Loader(), evaluator)

    with monkeypatch.context() as patch:
        patch.setattr(explanation_run, "inference_on_dataset", interrupted)
        assert evaluate(parts) == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        f"interrupted after 2 images of {NAME}, which are kept: the same command goes on from there"
    )
    seen = []

    def counted(model, loader, evaluator):
        seen.append(len(loader))
        return inference(model, loader, evaluator)

    monkeypatch.setattr(explanation_run, "inference_on_dataset", counted)
    assert evaluate(parts, "--json", json_of[parts]) == 0
    assert seen == [IMAGES - 2]
    assert Path(json_of[parts]).read_text() == Path(json_of[whole]).read_text()
    # All is done: the figures are given again, and the detector does not run.
    assert evaluate(parts, "--json", json_of[parts]) == 0
    assert seen == [IMAGES - 2]
    assert Path(json_of[parts]).read_text() == Path(json_of[whole]).read_text()


FAST = [
    "TEST.ODAM.EXPLANATION.FAITHFULNESS.PER_IMAGE", "0", "MODEL.ODAM.TARGETS", "['class']",
    "INPUT.MIN_SIZE_TEST", "200",
]  # fmt: skip


def run_images(monkeypatch):
    """How many images each evaluation runs the detector on."""
    inference, seen = explanation_run.inference_on_dataset, []

    def counted(model, loader, evaluator):
        seen.append(len(loader))
        return inference(model, loader, evaluator)

    monkeypatch.setattr(explanation_run, "inference_on_dataset", counted)
    return seen


def figures(folder, *opts, num_images=IMAGES):
    arguments = ["--num-images", str(num_images), "--json", f"{folder}.json"]
    assert evaluate(folder, *arguments, opts=[*FAST, *opts]) == 0
    return json.loads(Path(f"{folder}.json").read_text())


def test_more_images_go_on_and_fewer_are_told_apart(tmp_path, monkeypatch):
    seen = run_images(monkeypatch)
    two, three = figures(tmp_path / "a", num_images=2), figures(tmp_path / "a", num_images=3)
    assert seen == [2, 1]
    assert three[NAME]["explanation-class"]["num_images"] == 3
    assert figures(tmp_path / "a", num_images=2) == two
    assert figures(tmp_path / "a", num_images=3) == three
    assert seen == [2, 1]
    assert figures(tmp_path / "fresh", num_images=3) == three


@pytest.mark.parametrize(
    "opts",
    [["TEST.DETECTIONS_PER_IMAGE", "2"], ["MODEL.PIXEL_MEAN", "[90.0, 90.0, 90.0]"]],
)
def test_another_setting_gives_the_figures_of_a_fresh_folder(tmp_path, opts, caplog, monkeypatch):
    # The tool's own logging keeps what it says from pytest's.
    monkeypatch.setattr(logging.getLogger("odam_d2.evaluation.rows"), "handlers", [caplog.handler])
    figures(tmp_path / "used", num_images=2)
    assert "of an earlier run" not in caplog.text
    used = figures(tmp_path / "used", *opts, num_images=2)
    assert used == figures(tmp_path / "fresh", *opts, num_images=2)
    assert f"evaluated again: config.{opts[0]} (" in caplog.text


def test_an_image_whose_file_or_labels_changed_is_evaluated_again(tmp_path, monkeypatch):
    seen = run_images(monkeypatch)
    before = figures(tmp_path / "a", num_images=3)
    first, second, *others = DatasetCatalog.get(NAME)
    black = np.zeros((second["height"], second["width"], 3), np.uint8)
    cv2.imwrite(str(tmp_path / "black.png"), black)
    first = first | {"annotations": first["annotations"][1:]}
    second = second | {"file_name": str(tmp_path / "black.png")}
    monkeypatch.setitem(DatasetCatalog.data, NAME, lambda: [first, second, *others])
    after = figures(tmp_path / "a", num_images=3)
    assert seen == [3, 2]
    assert after == figures(tmp_path / "fresh", num_images=3) != before


def test_causal_recovery_of_methods_with_settings_of_their_own(tmp_path, monkeypatch, capsys):
    seen = run_images(monkeypatch)
    recovery = "TEST.ODAM.CAUSAL_RECOVERY."
    opts = [*FAST, "TEST.ODAM.EVALUATORS", "['causal_recovery']", recovery + "PER_IMAGE", "1",
            recovery + "FILLS", "['mean']", recovery + "AREAS", "[1.0]"]  # fmt: skip
    methods = ["--methods", "odam", "odam:layer=res4,smoothing_sigma=1.0", "box_centre"]
    arguments = [*methods, "--num-images", "2", "--json", str(tmp_path / "all.json")]
    for _ in range(2):
        assert evaluate(tmp_path, *arguments, opts=opts) == 0
        assert seen == [2, 2, 2]  # the second time nothing is left to do
        results = json.loads((tmp_path / "all.json").read_text())[NAME]
        assert list(results) == methods[1:]
        for found in results.values():
            assert found["causal_recovery"]["num_objects"] == 2
            assert found["causal_recovery"]["class_low"] <= found["causal_recovery"]["class"]
        assert results["odam"] != results["odam:layer=res4,smoothing_sigma=1.0"]
        table = (tmp_path / NAME / "causal_recovery.md").read_text()
        assert table in capsys.readouterr().out
        assert "| odam:layer=res4,smoothing_sigma=1.0 | " in table
    assert (tmp_path / NAME / "causal_references/rows_0.jsonl").is_file()


def test_sanity_checks_with_another_checkpoint(tmp_path, monkeypatch, capsys):
    """That of the detector itself, whose maps are the same."""
    seen = run_images(monkeypatch)
    sanity = "TEST.ODAM.SANITY_CHECKS."
    weights = "odam://CrowdShapes/faster_rcnn_R_50_FPN_slim.pth"
    opts = [*FAST, "TEST.ODAM.EVALUATORS", "['sanity_checks']", sanity + "PER_IMAGE", "1",
            sanity + "ORDERS", "[]", sanity + "RANDOM_LABELS", weights]  # fmt: skip
    arguments = ["--methods", "odam", "box_blob", "--num-images", "2"]
    for _ in range(2):
        assert evaluate(tmp_path, *arguments, opts=opts) == 0
        assert seen == [2, 2]  # the second time nothing is left to do
        table = (tmp_path / NAME / "sanity_checks.md").read_text()
        assert table in capsys.readouterr().out
    content = json.loads((tmp_path / NAME / "sanity_checks.json").read_text())
    odam, blob = (content[name]["groups"]["class"] for name in ("odam", "box_blob"))
    assert odam["spearman"]["random_labels"]["value"] == pytest.approx(1, abs=1e-4)
    assert odam["spearman"]["cascading"][-1]["value"] < 0.8
    assert blob["verdict"] == "fails: does not change"
    assert evaluate(tmp_path, *arguments, opts=[*opts[:-1], str(tmp_path / "none.pth")]) == 1
    assert "does not exist" in capsys.readouterr().err.splitlines()[-1]


def test_d_rise_keeps_its_sums(tmp_path):
    opts = ["MODEL.ODAM.D_RISE.NUM_MASKS", "4", "TEST.ODAM.EXPLANATION.FAITHFULNESS.PER_IMAGE", "0"]
    assert evaluate(tmp_path, "--methods", "d_rise", "--num-images", "1", opts=opts) == 0
    assert len(list((tmp_path / "d_rise").glob("*.pth"))) == 1
    found = json.loads((tmp_path / NAME / "methods.json").read_text())["d_rise"]
    assert found["explanation-class"]["num_images"] == 1


@pytest.mark.parametrize(
    ("arguments", "opts", "sentence"),
    [
        (["--methods", "gradcam"], [], "unknown method 'gradcam'; there are odam, box_blob, "),
        (["--methods", "odam:lair=res4"], [], "MODEL.ODAM.LAIR"),
        ([], ["TEST.ODAM.EVALUATORS", "['causes']"], "has 'causes'; there are causal_recovery"),
        (
            ["--methods", "d_rise"],
            ["TEST.ODAM.EVALUATORS", "['sanity_checks']"],
            "sanity checks read decisions in place, and 'd_rise' looks for final detections",
        ),
        (["--num-images", "0"], [], "--num-images must be 1 or more"),
        (
            [],
            ["TEST.ODAM.EXPLANATION.IOU_THRESH", "2.0"],
            "IOU_THRESH is 2.0; it must be in [0, 1]",
        ),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "the detector has 5 classes and"),
        ([], ["DATASETS.TEST", "('nothing',)"], "'nothing' is not registered"),
        (["--num-gpus", "2"], [], "--num-gpus is 2, and PyTorch finds"),
        ([], ["MODEL.ODAM.METHOD", "lime"], "unknown method 'lime'; there are odam"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, arguments, opts, sentence):
    assert evaluate(tmp_path, *arguments, opts=opts) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error


def train_net(folder, *opts):
    tool = vars(load_tool("train_net"))
    arguments = ["--config-file", CONFIG, "--eval-only", *OPTS, "OUTPUT_DIR", str(folder), *opts]
    return run_tool(lambda: tool["run"](arguments))


def test_switched_on_in_yaml_for_train_net(tmp_path):
    opts = ["TEST.ODAM.EVALUATORS", "['explanation', 'known_causes']",
            "MODEL.ODAM.TARGETS", "['class']"]  # fmt: skip
    assert train_net(tmp_path, *opts) == 0
    folder = tmp_path / "inference" / NAME / "explanation"
    content = json.loads((folder / "results.json").read_text())
    assert set(METRICS) <= set(content["results"]["explanation-class"])
    assert (folder / "detections.csv").is_file()
    assert (tmp_path / "inference" / NAME / "known_causes/rows_0.jsonl").is_file()


def test_without_targets_there_is_nothing_to_evaluate(tmp_path, capsys):
    opts = ["TEST.ODAM.EVALUATORS", "['explanation']", "MODEL.ODAM.TARGETS", "[]"]
    assert train_net(tmp_path, *opts) == 1
    assert "MODEL.ODAM.TARGETS is empty" in capsys.readouterr().err

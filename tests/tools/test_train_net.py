"""tools/train_net.py from its command line: training, resuming, evaluating, and what goes wrong."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from tiny_coco import last_checkpoint, logged_ap, register_tiny
from tool_modules import load_tool, run_in_process

from odam_d2.engine import Trainer, setup_cfg
from odam_d2.errors import UserError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "train_net.py"
CONFIG = str(ROOT / "configs" / "CrowdShapes" / "faster_rcnn_R_50_FPN_slim.yaml")
RETINANET = str(ROOT / "configs" / "CrowdShapes" / "retinanet_R_50_FPN_slim.yaml")
SMALL = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SEED", "1"]
SMALL += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()"]
SMALL += ["DATASETS.TRAIN", "('tiny_train_net',)", "DATASETS.TEST", "('tiny_train_net',)"]
SMALL += ["TEST.DETECTIONS_PER_IMAGE", "10"]


train_net = load_tool("train_net")
run = partial(run_in_process, train_net)


def train(output_dir: Path, *arguments) -> int:
    """Train the slim Faster R-CNN from scratch on the tiny data set."""
    options = [*SMALL, "MODEL.WEIGHTS", "", "OUTPUT_DIR", output_dir]
    head = [argument for argument in arguments if str(argument).startswith("--")]
    return run("--config-file", CONFIG, *head, *options, *arguments[len(head) :])


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    """A tiny data set, and one whose file is missing."""
    folder = tmp_path_factory.mktemp("tiny")
    register_tiny("tiny_train_net", folder)
    register_coco_instances("lost_train_net", {}, str(folder / "lost.json"), str(folder))
    yield
    DatasetCatalog.remove("tiny_train_net")
    DatasetCatalog.remove("lost_train_net")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An output folder after four iterations."""
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    assert train(output_dir, "SOLVER.MAX_ITER", "4") == 0
    return output_dir


def test_training_writes_checkpoints_config_and_evaluation(trained):
    assert (trained / "model_0000001.pth").is_file()
    assert last_checkpoint(trained)["iteration"] == 3
    assert (trained / "inference" / "tiny_train_net" / "coco_instances_results.json").is_file()
    saved = setup_cfg(str(trained / "config.yaml"))
    assert saved.MODEL.ODAM.TARGETS == ["class", "left", "top", "right", "bottom"]
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP50" in row for row in rows)


def test_eval_only_gives_the_figures_of_the_end_of_training(trained, capsys, tmp_path):
    at_the_end = logged_ap((trained / "log.txt").read_text())
    arguments = ["--eval-only", *SMALL, "OUTPUT_DIR", tmp_path]
    weights = trained / "model_final.pth"
    assert run("--config-file", CONFIG, *arguments, "MODEL.WEIGHTS", weights) == 0
    assert logged_ap((tmp_path / "log.txt").read_text()) == at_the_end
    assert not (tmp_path / "last_checkpoint").exists()


def test_resume_goes_on_where_training_stopped(trained, tmp_path):
    for name in ("last_checkpoint", "model_final.pth"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "-1") == 0
    assert "Starting training from iteration 4" in (tmp_path / "log.txt").read_text()
    assert last_checkpoint(tmp_path)["iteration"] == 5


@pytest.mark.parametrize("config", [CONFIG, RETINANET])
def test_with_a_seed_a_resumed_training_ends_as_one_that_was_not_interrupted(config, tmp_path):
    # Flipped at random, resized at random, proposals sampled at random; RetinaNet divides its loss
    # by a running mean.
    options = ["MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "5",
               "INPUT.MIN_SIZE_TRAIN", "(64,72,80)", "TEST.EVAL_PERIOD", "-1",
               "SOLVER.BASE_LR", "0.01", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "8"]  # fmt: skip
    assert run("--config-file", config, *SMALL, *options) == 0
    whole = last_checkpoint(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert run("--config-file", config, "--resume", *SMALL, *options) == 0
    resumed = last_checkpoint(tmp_path)
    assert resumed["iteration"] == whole["iteration"] == 4
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    assert resumed["loss_normalizer"] == whole["loss_normalizer"]
    assert len(whole["loss_normalizer"]) == (config == RETINANET)


def copy_of(trained, folder, names=("model_0000001.pth", "model_final.pth", "last_checkpoint")):
    for name in names:
        shutil.copy(trained / name, folder / name)  # times in this order


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "start", "said"),
    [
        (lambda f: cut(f / "model_final.pth"), 2, "names 'model_final.pth', which is missing or"),
        (lambda f: (f / "model_final.pth").unlink(), 2, "names 'model_final.pth', which is miss"),
        (lambda f: (f / "last_checkpoint").write_text(""), 4, "last_checkpoint is empty or"),
        (lambda f: (f / "last_checkpoint").write_text("model_fi"), 4, "names 'model_fi', which"),
        (lambda f: (f / "last_checkpoint").write_bytes(b"\xff\x00"), 4, "which is missing"),
    ],
)
def test_resume_goes_on_from_a_whole_checkpoint(
    trained, tmp_path, damage, start, said, caplog, monkeypatch
):
    log = logging.getLogger("odam_d2.engine.whole_checkpoints")
    monkeypatch.setattr(log, "handlers", [caplog.handler])  # the tool's own logging keeps it
    copy_of(trained, tmp_path)
    damage(tmp_path)
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "-1") == 0
    assert f"from iteration {start}" in (tmp_path / "log.txt").read_text()
    assert said in caplog.text
    assert last_checkpoint(tmp_path)["iteration"] == 4


@pytest.mark.parametrize("state", ["missing", "cut", "of another length", "not named"])
def test_a_training_killed_before_its_last_file_saves_that_when_resumed(trained, tmp_path, state):
    shutil.copy(trained / "model_final.pth", tmp_path / "model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    if state != "missing":
        source = "model_0000001.pth" if state == "of another length" else "model_final.pth"
        shutil.copy(trained / source, tmp_path / "model_final.pth")
    if state == "cut":
        cut(tmp_path / "model_final.pth")
    if state == "not named":
        (tmp_path / "last_checkpoint").write_text("")
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "-1") == 0
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    first, last = last_checkpoint(trained), last_checkpoint(tmp_path)
    assert last["iteration"] == first["iteration"] == 3
    assert last["trainer"]["iteration"] == first["trainer"]["iteration"]
    assert all(torch.equal(last["model"][k], first["model"][k]) for k in first["model"])


def test_resume_where_no_checkpoint_is_whole_is_one_sentence(trained, tmp_path, capsys):
    copy_of(trained, tmp_path, ("model_final.pth", "last_checkpoint"))
    cut(tmp_path / "model_final.pth")
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "5") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: '{tmp_path}/last_checkpoint' says that there is a checkpoint")
    assert "remove last_checkpoint to train from the start" in error


def test_a_full_disk_while_saving_is_one_sentence(trained, tmp_path, capsys, monkeypatch):
    copy_of(trained, tmp_path)
    before = (tmp_path / "model_final.pth").read_bytes()

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "-1") == 1
    said = capsys.readouterr()
    sentence = f"No space left on device: '{tmp_path}/model_final.pth'"
    assert said.err.splitlines()[-1] == f"error: {sentence}"
    assert "Traceback" not in said.err + said.out
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(tmp_path.glob(".odam-*"))


def test_half_a_line_of_metrics_is_dropped(trained, tmp_path):
    copy_of(trained, tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 3}\n{"itera')
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "-1") == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows][:2] == [3, 4]


def test_ctrl_c_saves_what_was_trained(tmp_path, monkeypatch, capsys):
    step = Trainer.run_step

    def interrupted(self):
        if self.iter == 1:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    assert train(tmp_path, "SOLVER.MAX_ITER", "4") == 130
    assert last_checkpoint(tmp_path)["iteration"] == 0
    assert "--resume" in capsys.readouterr().err


def test_evaluation_does_not_explain():
    cfg = setup_cfg(CONFIG)
    model = Trainer.build_model(cfg).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 64, 96)}])
    assert not result["instances"].has("odam_maps")
    assert cfg.MODEL.ODAM.TARGETS  # the caller's config is as it was


def test_a_plain_detectron2_config_is_fine(tmp_path):
    (tmp_path / "plain.yaml").write_text('VERSION: 2\nMODEL:\n  META_ARCHITECTURE: "RetinaNet"\n')
    assert setup_cfg(str(tmp_path / "plain.yaml")).MODEL.META_ARCHITECTURE == "RetinaNet"


def test_device_is_cpu_where_cuda_is_missing_and_not_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_cfg(CONFIG).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert setup_cfg(CONFIG).MODEL.DEVICE == "cuda"
    assert setup_cfg(CONFIG, ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


def test_cuda_asked_for_in_a_file_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "gpu.yaml").write_text(f'_BASE_: "{CONFIG}"\nMODEL:\n  DEVICE: "cuda"\n')
    with pytest.raises(UserError, match="no CUDA device"):
        setup_cfg(str(tmp_path / "gpu.yaml"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["SOLVER.MAX_ITERS", "5"], "SOLVER.MAX_ITERS does not exist (did you mean SOLVER.MAX_IT"),
        (["NOTHING.LIKE.IT", "5"], "config key NOTHING.LIKE.IT does not exist"),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER cannot be 'many'"),
        (["MODEL.DEVICE", "cuda"], "no CUDA device"),
        (["MODEL.WEIGHTS", "nowhere/model.pth"], "'nowhere/model.pth' does not exist"),
        (["MODEL.WEIGHTS", "odam://no.pth"], "available are odam://CrowdShapes/"),
        (["DATASETS.TRAIN", "('bccd_trian',)"], "'bccd_trian' is not registered (did you mean b"),
        (["DATASETS.TRAIN", "('lost_train_net',)"], "lost.json', which does not exist"),
    ],
)
def test_error_in_options(options, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--config-file", CONFIG, *SMALL, "OUTPUT_DIR", tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "config.yaml' does not exist"),
        ("VERSION: 2\nMODEL:\n  WEIGHTZ: x\n", "MODEL.WEIGHTZ does not exist (did you mean"),
        ('_BASE_: "missing.yaml"\n', "missing.yaml' does not exist"),
        ("VERSION: 2\nMODEL: [1, 2\n", "config.yaml is not a usable config"),
        ("VERSION: 2\nSOLVER:\n  MAX_ITER: many\n", "config.yaml is not a usable config"),
    ],
)
def test_error_in_config_file(content, sentence, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    assert run("--config-file", tmp_path / "config.yaml", "OUTPUT_DIR", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_error_more_gpus_than_there_are(capsys):
    assert run("--config-file", CONFIG, "--num-gpus", "99") == 1
    assert "--num-gpus is 99" in capsys.readouterr().err


def test_error_output_folder_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train(tmp_path / "file" / "out") == 1
    assert "file/out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "options", "sentence"),
    [
        (CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "9"], "cls_score.weight is (7, 256) in the file"),
        (RETINANET, [], "parameters are not in the file (backbone.top_block.p6.bias, "),
    ],
)
def test_eval_only_refuses_weights_that_do_not_fit(
    config, options, sentence, trained, tmp_path, capsys
):
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run("--config-file", config, "--eval-only", *SMALL, *weights, *options) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("mode", [["--eval-only"], []])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04garbage"])
def test_a_file_that_is_no_checkpoint_is_refused(mode, content, tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(content)
    options = [*SMALL, "MODEL.WEIGHTS", tmp_path / "bad.pth", "OUTPUT_DIR", tmp_path]
    assert run("--config-file", CONFIG, *mode, *options) == 1
    assert "bad.pth' is not a checkpoint" in capsys.readouterr().err


def test_as_a_program_it_fails_with_one_sentence_and_a_status():
    command = [sys.executable, TOOL, "--config-file", "none.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: config file 'none.yaml' does not exist"
    assert "Traceback" not in result.stderr


def test_objects_of_classes_that_the_detector_has_not_end_it_before_a_step(tmp_path, capsys):
    """They are of classes 0 to 3: with 3 of them, Detectron2 takes the last for background."""
    options = ["SOLVER.MAX_ITER", "1", "MODEL.ROI_HEADS.NUM_CLASSES"]
    assert train(tmp_path / "few", *options, "3") == 1
    said = capsys.readouterr().err
    assert "data set 'tiny_train_net' has objects of class 3, counted from 0" in said
    assert "the detector has 3 classes" in said
    assert "must be 6" in said
    assert not list((tmp_path / "few").glob("*.pth"))
    assert train(tmp_path / "enough", *options, "4") == 0
    assert (
        "has 4 classes (NUM_CLASSES), and data set 'tiny_train_net' has 6"
        in capsys.readouterr().out
    )


def test_detections_of_classes_that_the_data_set_has_not_are_one_sentence(tmp_path, capsys):
    """Of 60 classes at random, some of 40 detections are none of the data set's 6."""
    options = ["MODEL.ROI_HEADS.NUM_CLASSES", "60", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    assert train(tmp_path, *options, "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "1e-9") == 1
    of_training = capsys.readouterr()
    options += ["MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run("--config-file", CONFIG, "--eval-only", *SMALL, *options) == 1
    for said in (of_training, capsys.readouterr()):
        assert "The detector has 60 classes (NUM_CLASSES), and data set" in said.out
        assert "but the dataset only has 6 classes" in said.err
        assert "Does NUM_CLASSES fit the data set?" in said.err
        assert "Traceback" not in said.err + said.out

"""Odam-Train and Odam-NMS from the command line of tools/train_net.py."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_coco import register_tiny
from tool_modules import load_tool, run_in_process

from odam_d2.modeling.losses import OdamTrainLoss

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "CrowdShapes"
FASTER_RCNN, RETINANET = "faster_rcnn_R_50_FPN_slim.yaml", "retinanet_R_50_FPN_slim.yaml"
NAME = "tiny_train_net_odam"
SMALL = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SEED", "1",
         "SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "2",
         "DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)",
         "TEST.DETECTIONS_PER_IMAGE", "10", "TEST.EVAL_PERIOD", "0"]  # fmt: skip
LOSS = ["MODEL.ODAM.LOSS.NAME", "OdamTrainLoss"]


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    register_tiny(NAME, tmp_path_factory.mktemp("tiny"))
    yield
    DatasetCatalog.remove(NAME)


def run(config, output, *opts, flags=()):
    arguments = ["--config-file", CONFIGS / config, *flags, *SMALL, "OUTPUT_DIR", output, *opts]
    return run_in_process(load_tool("train_net"), *arguments)


def rows(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("config", [FASTER_RCNN, RETINANET])
def test_training_logs_the_loss_and_pictures(config, tmp_path):
    more = ["MODEL.ODAM.LOSS.VIS_PERIOD", "2", "SOLVER.MAX_ITER", "3"]
    assert run(config, tmp_path, *LOSS, *more) == 0
    logged = {name: value for row in rows(tmp_path) for name, value in row.items()}
    assert logged["loss_odam"] > 0
    assert 0 <= logged["odam/same_correlation"] <= 1
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = events.Images("odam/class_maps")
    assert [image.step for image in shown] == [1, 2]  # after two iterations, and at the end
    assert shown[0].width >= 96  # of one picture of the tiny set


def test_gradients_are_clipped_with_it(tmp_path):
    """The slim detectors clip the norm of all gradients, which the loss is part of."""
    big = ["MODEL.ODAM.LOSS.WEIGHT", "1e6", "SOLVER.MAX_ITER", "3", "SOLVER.CLIP_GRADIENTS.ENABLED"]
    assert run(RETINANET, tmp_path / "clipped", *LOSS, *big, "True") == 0
    weights = torch.load(tmp_path / "clipped" / "model_final.pth", weights_only=False)["model"]
    assert all(torch.as_tensor(w).isfinite().all() for w in weights.values())


def test_schedule_goes_on_where_training_stopped(tmp_path, monkeypatch):
    """START_ITER and the warm-up count iterations of the training, not of the process."""
    seen, forward = [], OdamTrainLoss.forward

    def spy(self, batch):
        seen.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(OdamTrainLoss, "forward", spy)
    schedule = [*LOSS, "MODEL.ODAM.LOSS.START_ITER", "3", "MODEL.ODAM.LOSS.WARMUP_ITERS", "2"]
    assert run(RETINANET, tmp_path, *schedule, "SOLVER.MAX_ITER", "2") == 0
    assert not seen
    assert run(RETINANET, tmp_path, *schedule, "SOLVER.MAX_ITER", "5", flags=["--resume"]) == 0
    assert len(seen) == 2  # iterations 3 and 4


def test_losses_that_are_not_finite_stop_with_a_sentence(tmp_path, monkeypatch, capsys):
    forward = OdamTrainLoss.forward

    def broken(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return forward(self, batch) * (float("nan") if self.calls > 3 else 1)

    monkeypatch.setattr(OdamTrainLoss, "forward", broken)
    assert run(RETINANET, tmp_path, *LOSS, "SOLVER.MAX_ITER", "9") == 1
    error = capsys.readouterr().err
    assert "training diverged" in error
    assert "loss_odam" in error
    # What was saved before is still there, and finite.
    kept = torch.load(tmp_path / "model_0000001.pth", weights_only=False)["model"]
    assert all(torch.as_tensor(w).isfinite().all() for w in kept.values())
    assert not (tmp_path / "model_final.pth").exists()


def test_a_data_set_without_objects_is_refused(tmp_path, capsys):
    entries = [{**entry, "annotations": []} for entry in DatasetCatalog.get(NAME)]
    DatasetCatalog.register("tiny_of_nobody", lambda: entries)
    try:
        status = run(RETINANET, tmp_path, *LOSS, "DATASETS.TRAIN", "('tiny_of_nobody',)")
    finally:
        DatasetCatalog.remove("tiny_of_nobody")
    assert status == 1
    assert "no image of tiny_of_nobody has an object to train on" in capsys.readouterr().err


def test_images_without_objects_train_too(tmp_path):
    assert run(RETINANET, tmp_path, *LOSS, "SOLVER.MAX_ITER", "3",
               "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False") == 0  # fmt: skip


@pytest.mark.parametrize("config", [FASTER_RCNN, RETINANET])
def test_evaluation_with_another_nms_in_crowds(config, tmp_path, capsys):
    nms = ["MODEL.ODAM.NMS.NAME", "odam_nms", "TEST.ODAM.EVALUATORS", "['crowd']"]
    assert run(config, tmp_path, *nms, flags=["--eval-only"]) == 0
    folder = tmp_path / "inference" / NAME
    crowd = json.loads((folder / "crowd_results.json").read_text())
    assert {"AP", "Recall", "MR", "JI", "Recall-overlapped@P80"} <= set(crowd)
    assert (folder / "coco_instances_results.json").is_file()


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (["MODEL.ODAM.LOSS.NAME", "OdamLoss"], "the registered losses are OdamTrainLoss"),
        (["MODEL.ODAM.NMS.NAME", "diou"], "the registered ones are nms, odam_nms, soft_nms"),
        (["MODEL.ODAM.NMS.NAME", "odam_nms", "MODEL.ODAM.NMS.SIM_THRESH_LOW", "0.9"],
         "SIM_THRESH_HIGH is 0.7, below"),
        (["TEST.ODAM.EVALUATORS", "['coco']"],
         "TEST.ODAM.EVALUATORS has 'coco'; there are causal_recovery, crowd"),
    ],
)  # fmt: skip
def test_wrong_names_end_with_a_sentence(opts, sentence, tmp_path, capsys):
    assert run(RETINANET, tmp_path, *opts, "SOLVER.MAX_ITER", "1") == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert len(re.findall("error:", error)) == 1

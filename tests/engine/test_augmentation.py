"""``TEST.AUG``: evaluated as Detectron2's own tool does it, refused where it would do nothing."""

import json
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, build_model
from tiny_coco import register_tiny
from tool_modules import load_tool, run_in_process

from odam_d2.engine import build_detector, load_weights, setup_cfg
from odam_d2.engine.augmentation import without_maps
from odam_d2.errors import UserError

ROOT = Path(__file__).parents[2]
CROWDSHAPES = ROOT / "configs" / "CrowdShapes"
CONFIG = str(CROWDSHAPES / "faster_rcnn_R_50_FPN_slim.yaml")
AUG = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 80)", "TEST.AUG.MAX_SIZE", "200"]


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    register_tiny("tiny_augmented", folder)
    yield folder
    DatasetCatalog.remove("tiny_augmented")


@pytest.mark.parametrize("nms", ["", "soft_nms"])
def test_detections_are_those_of_detectron2(nms, tiny):
    """The same weights in Detectron2's own class; another NMS of ours is used in each pass."""
    options = ["MODEL.ODAM.NMS.NAME", nms, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1e-6"]
    cfg = setup_cfg(CONFIG, [*AUG, *options])
    ours = build_model(cfg).eval()
    load_weights(ours, cfg.MODEL.WEIGHTS)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    theirs = build_model(cfg).eval()
    theirs.load_state_dict(ours.state_dict())
    assert type(theirs) is GeneralizedRCNN
    image = torch.as_tensor(cv2.imread(str(tiny / "0.png")).transpose(2, 0, 1).copy())
    inputs = [{"image": image, "height": 64, "width": 96}]
    with torch.no_grad():
        plain = without_maps(ours)
        assert not plain(inputs)[0]["instances"].has("odam_maps")
        found = GeneralizedRCNNWithTTA(cfg, plain)(inputs)[0]["instances"]
        wanted = GeneralizedRCNNWithTTA(cfg, theirs)(inputs)[0]["instances"]
    assert len(wanted) > 0
    same = len(found) == len(wanted) and torch.equal(found.scores, wanted.scores)
    assert same == (not nms)
    if not nms:
        assert torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert ours.odam.targets  # as it was


@pytest.mark.parametrize("mode", ["--eval-only", "training"])
def test_the_tool_evaluates_both_ways(mode, tmp_path, monkeypatch):
    train_net, found = load_tool("train_net"), []
    test = train_net.Trainer.test_with_augmentation
    monkeypatch.setattr(
        train_net.Trainer,
        "test_with_augmentation",
        classmethod(lambda cls, cfg, model: found.append(test(cfg, model)) or found[-1]),
    )
    options = [
        *AUG,
        "DATASETS.TEST",
        "('tiny_augmented',)",
        "DATASETS.TRAIN",
        "('tiny_augmented',)",
    ]
    options += ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
    options += ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    options += ["TEST.ODAM.EVALUATORS", "['explanation']", "INPUT.MIN_SIZE_TEST", "64"]
    head = ["--config-file", CONFIG, *([mode] if mode == "--eval-only" else [])]
    assert run_in_process(train_net, *head, *options) == 0
    ((name, figures),) = found[0].items()
    assert name == "bbox_TTA"
    assert set(figures) >= {"AP", "AP50"}
    boxes = tmp_path / "inference_TTA" / "tiny_augmented" / "coco_instances_results.json"
    assert json.loads(boxes.read_text()) is not None
    if mode == "training":
        rows = [json.loads(row) for row in (tmp_path / "metrics.json").read_text().splitlines()]
        assert any("bbox_TTA/AP50" in row for row in rows)


@pytest.mark.parametrize(
    ("config", "options", "sentence"),
    [
        ("retinanet_R_50_FPN_slim.yaml", [], "not for OdamRetinaNet"),
        ("fcos_R_50_FPN_slim.yaml", [], "not for OdamFCOS"),
        (CONFIG, ["MODEL.META_ARCHITECTURE", "OdamPanopticFPN"], "not for OdamPanopticFPN"),
        (CONFIG, ["MODEL.META_ARCHITECTURE", "Nothing"], "not for Nothing"),
        (CONFIG, ["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON"),
        (CONFIG, ["MODEL.LOAD_PROPOSALS", "True"], "MODEL.LOAD_PROPOSALS"),
        (CONFIG, ["TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES is ()"),
        (CONFIG, ["TEST.AUG.MIN_SIZES", "(0, 'a')"], "TEST.AUG.MIN_SIZES is (0, 'a')"),
        (CONFIG, ["TEST.AUG.MAX_SIZE", "None"], "TEST.AUG.MAX_SIZE is None"),
    ],
)
def test_what_detectron2_cannot_augment_is_told_before_a_run(
    config, options, sentence, tmp_path, capsys
):
    options = [*AUG, *options, "OUTPUT_DIR", str(tmp_path / "out")]
    head = ["--config-file", str(CROWDSHAPES / config), "--eval-only"]
    assert run_in_process(load_tool("train_net"), *head, *options) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["analyze_errors", "benchmark", "evaluate_explanations"])
def test_tools_that_would_ignore_it_refuse_it(name, capsys):
    arguments = ["--config-file", CONFIG, *AUG]
    assert run_in_process(load_tool(name), *arguments) == 1
    assert "TEST.AUG.ENABLED: a heat map explains one pass" in capsys.readouterr().err


def test_so_do_the_demo_and_the_crowd_experiment(tmp_path):
    with pytest.raises(UserError, match=r"TEST\.AUG\.ENABLED"):
        build_detector(setup_cfg(CONFIG, AUG))
    crowds = load_tool("crowd_experiment")
    experiment = crowds.Experiment(ROOT / "configs", tmp_path, opts=tuple(AUG))
    (run, *_) = crowds.plan(["crowdshapes"], ["retinanet"], [1])
    with pytest.raises(UserError, match=r"TEST\.AUG\.ENABLED"):
        experiment.cfg(run)

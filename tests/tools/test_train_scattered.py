"""Training on for badges that may be anywhere: what is learned from, and that it goes on."""

from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from few_images import few_images
from tiny_coco import last_checkpoint
from tool_modules import load_tool, run_in_process

from experiments.scattered.mapper import LabelMapper
from experiments.scattered.probes import Probe
from experiments.scattered.trainer import ALL_PLACES, ScatteredTrainer, learn_for_all_places
from odam_d2.engine import Trainer, load_weights, setup_cfg
from odam_d2.model_zoo import strip_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs" / "CrowdShapes"
FASTER = str(CONFIGS / "faster_rcnn_R_50_FPN_slim_scattered.yaml")
FCOS = str(CONFIGS / "fcos_R_50_FPN_slim_scattered.yaml")
SMALL = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('few_old','few_new')", "DATASETS.TEST", "()"]
SMALL += ["SOLVER.IMS_PER_BATCH", "2", "SEED", "1"]

run = partial(run_in_process, load_tool("train_scattered"))


@pytest.fixture(scope="module", autouse=True)
def few():
    with few_images("few_old", 2), few_images("few_new", 2, source="crowdshapes_scattered_val"):
        yield


@pytest.mark.parametrize("mirrored", [False, True])
def test_labels_follow_the_picture(mirrored, monkeypatch):
    cfg = setup_cfg(FCOS, [*SMALL, "INPUT.RANDOM_FLIP", "horizontal" if mirrored else "none"])
    monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0, size=None: low)  # flips
    entry = DatasetCatalog.get("few_new")[0]
    sample = LabelMapper(cfg, True)(entry)
    expected = {"badges": np.zeros((288, 384), int), "robots": np.zeros((288, 384), int)}
    for a in entry["annotations"]:
        badge = mask_utils.decode(a["part_segmentations"]["class"]) > 0
        robot = mask_utils.decode(a["segmentation"]) > 0
        expected["badges"][badge] = expected["robots"][robot] = 1 + a["category_id"]
    for name, labels in expected.items():
        labels = labels[:, ::-1] if mirrored else labels
        assert np.array_equal(sample[name].numpy(), labels)
    for box, label in zip(
        sample["instances"].gt_boxes, sample["instances"].gt_classes, strict=True
    ):
        x1, y1, x2, y2 = box.int().tolist()
        assert (sample["badges"][y1:y2, x1:x2] == 1 + label).any()


def test_probe_reads_the_middle_of_each_cell():
    """Cells that the picture does not have, for padding, are left out."""
    probe = Probe(3, 3, weight=4.0)
    with torch.no_grad():
        probe.layer.weight.copy_(torch.eye(3)[..., None, None])
        probe.layer.bias.zero_()
    truth = torch.zeros(1, 8, 12, dtype=torch.long)
    truth[0, 2, 6], truth[0, 6, 9] = 2, 1  # the second is in the middle of no cell of 4 pixels
    features = torch.randn(1, 3, 3, 4)
    logits = features[0, :, :2, :3].flatten(1).T
    labels = torch.tensor([0, 2, 0, 0, 0, 0])
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = (losses * torch.tensor([1.0, 4.0, 1.0, 1.0, 1.0, 1.0])).sum() / 9
    torch.testing.assert_close(probe(features, truth, 4), expected)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (FASTER, {"badges_p2", "badges_p3"}),
        (FCOS, {"badges_p3", "robots_p3", "robots_p4"}),
    ],
)
def test_probes_are_read_in_training_only_and_learn_faster(config, names):
    cfg = setup_cfg(config, SMALL)
    model = ScatteredTrainer.build_model(cfg)
    assert set(model.probes) == names
    optimizer = ScatteredTrainer.build_optimizer(cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    of = {name: rates[id(p)] / cfg.SOLVER.BASE_LR for name, p in model.named_parameters()}
    assert all(rate == (10 if name.startswith("probes.") else 1) for name, rate in of.items())
    image = {"image": torch.zeros(3, 96, 128, dtype=torch.uint8), "height": 96, "width": 128}
    with torch.no_grad():
        assert set(model.eval()([image])[0]) == {"instances"}


def test_pooled_features_are_read_alike_at_all_places():
    """Channels come before places in a flattened input."""
    layer = torch.nn.Linear(6, 1)
    learn_for_all_places(layer, places=3)
    layer(torch.tensor([1.0, 2.0, 6.0, 0.0, 3.0, 0.0])).backward()
    expected = torch.tensor([[1.0, 2.0, 6.0, 0.0, 3.0, 0.0]])
    expected += ALL_PLACES * torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.slow
def test_training_goes_on_and_ends_as_what_the_plain_tools_read(tmp_path):
    folder, small = tmp_path / "run", tmp_path / "small.pth"
    command = ["--config-file", FCOS]
    options = [*SMALL, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER"]
    assert run(*command, *options, "2") == 0
    first = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert run(*command, "--resume", *options, "3") == 0
    assert last_checkpoint(folder)["iteration"] == 2
    trained = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    changed = {name for name in trained if not torch.equal(trained[name], first[name])}
    assert {"probes.badges_p3.layer.weight", "head.cls_score.weight"} <= changed

    assert strip_checkpoint(folder / "model_final.pth", small, without="probes.") < 12e6
    plain = Trainer.build_model(setup_cfg(FCOS, SMALL))
    load_weights(plain, str(small))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trained[name])
    assert not [name for name in torch.load(small, weights_only=True)["model"] if "probes" in name]


def test_evaluation_is_left_to_the_other_tool(capsys):
    assert run("--config-file", FASTER, "--eval-only", *SMALL) != 0
    assert "tools/train_net.py evaluates" in capsys.readouterr().err

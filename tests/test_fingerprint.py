"""What results depend on: everything that changes them, nothing else, and no address in memory."""

import functools
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from torch import nn

from odam_d2.digests import describe, digest
from odam_d2.engine import setup_cfg
from odam_d2.fingerprint import (
    NEVER_MATTERS,
    ONLY_FOR_TESTING,
    ONLY_FOR_TRAINING,
    differences,
    entry_key,
    of_config,
    of_detector,
    weights_key,
)
from odam_d2.model_zoo import available_weights
from odam_d2.modeling.settings import ExplainSettings

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml")


def config(*opts):
    return setup_cfg(CONFIG, ["MODEL.DEVICE", "cpu", *opts])


@pytest.mark.parametrize(
    "opts",
    [
        ("TEST.DETECTIONS_PER_IMAGE", "2"),
        ("MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"),
        ("INPUT.MAX_SIZE_TEST", "500"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.6"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3"),
        ("MODEL.ODAM.SMOOTHING_SIGMA", "1.0"),
        ("MODEL.ODAM.NMS.NAME", "soft_nms"),
        ("TEST.ODAM.EXPLANATION.FAITHFULNESS.BATCH_SIZE", "3"),
        ("SEED", "7"),
    ],
)
def test_settings_that_matter(opts):
    assert opts[0] in differences(of_config(config()), of_config(config(*opts)))


@pytest.mark.parametrize(
    "opts",
    [
        ("OUTPUT_DIR", "elsewhere"),
        ("DATALOADER.NUM_WORKERS", "0"),
        ("MODEL.ODAM.D_RISE.STATE_DIR", "somewhere"),
        ("SOLVER.BASE_LR", "1.0"),
        ("DATASETS.TEST", "('a', 'b')"),
    ],
)
def test_settings_that_do_not_matter(opts):
    assert differences(of_config(config()), of_config(config(*opts))) == ""


def test_a_training_has_other_settings():
    of_training = functools.partial(of_config, without=ONLY_FOR_TESTING)
    same = config("TEST.DETECTIONS_PER_IMAGE", "2", "MODEL.ODAM.TARGETS", "['left']")
    assert differences(of_training(config()), of_training(same)) == ""
    for key, value in (("SOLVER.BASE_LR", "1.0"), ("MODEL.ODAM.LOSS.WEIGHT", "0.5")):
        assert key in differences(of_training(config()), of_training(config(key, value)))


def test_every_key_that_is_left_out_exists():
    """A key with a typing error would matter after all."""
    for key in (*NEVER_MATTERS, *ONLY_FOR_TRAINING, *ONLY_FOR_TESTING):
        node = config()
        for part in key.split("."):
            node = node[part]


def test_weights_count_by_their_content(tmp_path):
    (address,) = (x for x in available_weights() if "faster_rcnn_R_50_FPN_slim.pth" in x)
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_bytes(b"1234")
    shutil.copy(first, second)
    os.utime(second, ns=(5, 5))
    assert weights_key(str(first)) == weights_key(str(second))
    assert len(weights_key(address).split()[0]) == 64
    second.write_bytes(b"1235")
    assert weights_key(str(first)) != weights_key(str(second))
    assert weights_key(f"{first}?matching_heuristics=True") != weights_key(str(first))
    shutil.copy(first, tmp_path / "first.pkl")
    assert weights_key(str(tmp_path / "first.pkl")) != weights_key(str(first))  # read otherwise
    assert weights_key("") == ""
    assert of_detector(config("MODEL.WEIGHTS", str(first)))["weights"] == weights_key(str(first))


def entry(path):
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    mask = {"size": [4, 4], "counts": b"abc"}
    return {"file_name": str(path), "image_id": 1, "annotations": [box | {"segmentation": mask}]}


def test_an_image_is_its_file_and_all_that_is_said_of_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1234")
    os.utime(path, ns=(10**18, 10**18))
    key = entry_key(entry(path))
    changed = entry(path)
    changed["annotations"][0]["segmentation"]["counts"] = b"abd"
    assert entry_key(changed) != key
    changed = entry(path)
    changed["annotations"][0]["bbox"][0] = np.float32(1.5)
    assert entry_key(changed) != key
    (tmp_path / "moved").mkdir()
    shutil.copy2(path, tmp_path / "moved/a.png")
    assert entry_key(entry(tmp_path / "moved/a.png")) == key
    os.utime(path, ns=(10**18, 10**18 + 1000))
    assert entry_key(entry(path)) != key
    path.write_bytes(b"12345")
    os.utime(path, ns=(10**18, 10**18))
    assert entry_key(entry(path)) != key
    path.unlink()
    assert entry_key(entry(path)) != key


class Odd(nn.Module):
    def __init__(self, thresh=0.5):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        nn.init.ones_(self.layer.weight)
        nn.init.ones_(self.layer.bias)
        self.thresh, self.lock, self.device = thresh, threading.Lock(), torch.device("cpu")
        self.rule = functools.partial(max, key=self.forward)
        self.me = [self]

    def forward(self, x):
        return x


def test_objects_are_what_they_hold_and_not_where_they_are():
    one, two = Odd(), Odd()
    two.eval().register_forward_hook(lambda *_: None)
    assert "0x" not in repr(describe(one))
    assert digest(one) == digest(two)
    assert digest(Odd(0.6)) != digest(one)
    with torch.no_grad():
        two.layer.weight[0, 0] += 1e-6
    assert digest(two) != digest(one)
    two = Odd()
    two.device = torch.device("meta")
    assert digest(two) != digest(one)


def test_settings_with_an_nms_are_equal_in_the_next_process():
    def settings(thresh):
        return ExplainSettings.from_config(
            config("MODEL.ODAM.NMS.NAME", "odam_nms", "MODEL.ODAM.NMS.IOU_THRESH", str(thresh))
        )

    assert digest(settings(0.5)) == digest(settings(0.5))
    assert digest(settings(0.5)) != digest(settings(0.6))
    assert "0x" not in repr(describe(settings(0.5)))


def test_values_that_json_or_numpy_know_otherwise():
    for value in (np.float64(0.5), np.int64(3), float("nan"), (1, 2), {3: "a"}, BoxMode.XYXY_ABS):
        assert differences(describe({"a": value}), describe({"a": value})) == ""
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, dtype=torch.float64))
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))
    assert digest(np.zeros(2)) != digest(np.ones(2))
    assert digest(torch.ones((), dtype=torch.bfloat16)) != digest(torch.zeros(2)[0].bfloat16())


def test_differences_name_keys_and_both_values():
    old = {"config": {"A": 1, "B": list(range(50))}, "gone": 0}
    new = {"config": {"A": 2, "B": [*range(49), 0]}, "new": 0}
    text = differences(old, new, max_keys=2)
    assert text.startswith("config.A (1, now 2), config.B ([0, 1, ")  # although it begins equally
    assert text.endswith(" and 2 more")
    assert differences(old, old) == ""
    assert "absent" in differences(old, {**old, "new": None})

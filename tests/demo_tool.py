"""tools/demo.py for tests: how to call it, and made-up or small detectors for it."""

import html.parser
import re
import urllib.parse

import numpy as np
import pytest
import torch
from blob_maps import blob_detections
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image
from tool_modules import load_tool

from odam_d2 import add_odam_config
from odam_d2.errors import run_tool

BOXES = [(10.0, 5.0, 40.0, 30.0), (30.0, 20.0, 70.0, 45.0)]
# A Faster R-CNN small enough to be built and run in a fraction of a second.
SLIM = [
    "MODEL.META_ARCHITECTURE", "OdamRCNN",
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]],
    "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    "INPUT.MIN_SIZE_TEST", 64,
    "TEST.DETECTIONS_PER_IMAGE", 6,
    "DATASETS.TEST", [],
    "DATASETS.TRAIN", [],
]  # fmt: skip


tool = load_tool("demo")


def save_image(path, height=50, width=80, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the detector by made-up detections; ``fake.calls`` counts the images it saw."""

    class FakePredictor:
        class_names = ("star", "half/moon")
        weights = "fake.pth"
        calls = 0
        boxes = BOXES
        interrupt_at = None

        method = "odam"

        def __init__(self, cfg, targets=None, score_threshold=None, preset=None, signed=None):
            self.targets = tuple(cfg.MODEL.ODAM.TARGETS if targets is None else targets)

        def __call__(self, image):
            FakePredictor.calls += 1
            if FakePredictor.calls == FakePredictor.interrupt_at:
                raise KeyboardInterrupt
            classes = [i % 2 for i in range(len(self.boxes))]
            found = blob_detections(
                image.shape[:2], self.boxes, classes=classes, targets=self.targets
            )
            found.odam_maps.saturated[1:, :1] = True
            return {"instances": found}

    monkeypatch.setattr(tool, "ExplainingPredictor", FakePredictor)
    return FakePredictor


@pytest.fixture
def slim(tmp_path):
    """A config file and weights of a small random detector."""
    cfg = get_cfg()
    add_odam_config(cfg)
    cfg.merge_from_list(SLIM)
    torch.manual_seed(0)
    model = build_model(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "slim.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    path = tmp_path / "slim.yaml"
    path.write_text(cfg.dump())
    return str(path)


def run(capsys, *argv):
    """Exit status, stdout and stderr without the progress bar of a call of the tool."""
    try:
        status = run_tool(lambda: tool.run([str(arg) for arg in argv]))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    lines = captured.err.replace("\r", "\n").splitlines()
    lines = [line for line in lines if line and not re.search(r"(image/s|s/image)\]$", line)]
    return status, captured.out, lines


def config(tmp_path):
    """A config for tests with a made-up detector."""
    path = tmp_path / "fake.yaml"
    path.write_text("MODEL:\n  DEVICE: cpu\n")
    return ["--config-file", path]


def links(page):
    found = []

    class Collector(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(value for name, value in attrs if name in ("href", "src"))

    Collector().feed(page.read_text(encoding="utf-8"))
    return {urllib.parse.unquote(link) for link in found if not link.startswith("#")}


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

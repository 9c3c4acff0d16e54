"""The page "Your own data and model", followed: its code and commands, on a project."""

import json
import re
import shlex
import sys

import cv2
import numpy as np
import pytest
import torch
from demo_tool import SLIM
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from hooks import ROOT
from PIL import Image

from odam_d2.command_line import analyze_errors, demo, evaluate_explanations, train
from odam_d2.errors import run_tool

PAGE = (ROOT / "docs" / "your_own_data.md").read_text()
PROGRAMS = {"odam-demo": demo, "odam-train": train, "odam-errors": analyze_errors,
            "odam-evaluate": evaluate_explanations}  # fmt: skip
SIZE = (64, 96)
PLAIN = [*SLIM, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]


def commands():
    text = PAGE.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    (odam-.*)$", text, re.M)]


def annotations():
    """One class, of an id with a gap; no masks."""
    images = [{"id": 7 + k, "file_name": f"{k}.jpg", "height": SIZE[0], "width": SIZE[1]}
              for k in range(2)]  # fmt: skip
    boxes = [[10, 8, 40, 30], [50, 20, 30, 40]]
    rows = [{"id": k + 1, "image_id": 7 + k, "category_id": 31, "bbox": box, "iscrowd": 0,
             "area": box[2] * box[3]} for k, box in enumerate(boxes)]  # fmt: skip
    return {"images": images, "annotations": rows, "categories": [{"id": 31, "name": "bolt"}]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a project: code, config, checkpoint of plain Detectron2, data, a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    code, example = re.findall(r"```python\n(.*?)```", PAGE, re.S)[::-1]
    (tmp_path / "my_project.py").write_text(code)
    (tmp_path / "bolts" / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    for path, image in zip(["photo", "bolts/images/0", "bolts/images/1"], noise, strict=True):
        cv2.imwrite(f"{path}.jpg", image)
    (tmp_path / "bolts" / "val.json").write_text(json.dumps(annotations()))
    (tmp_path / "names.txt").write_text("bolt\n")

    cfg = get_cfg()  # of plain Detectron2: no key of ours
    cfg.merge_from_list([*PLAIN, "MODEL.ROI_HEADS.NUM_CLASSES", 1, "OUTPUT_DIR", "output/run",
                         "DATASETS.TEST", "('bolts_val',)", "DATALOADER.NUM_WORKERS", 0,
                         "MODEL.DEVICE", "cpu"])  # fmt: skip
    torch.manual_seed(3)  # it finds something
    torch.save({"model": build_model(cfg).state_dict()}, "model_final.pth")
    cfg.MODEL.BOLTS = type(cfg)({"NUM_RINGS": 5})
    (tmp_path / "my_config.yaml").write_text(cfg.dump())
    yield example
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in ("bolts_val", "val"):
            if name in catalog.list():
                catalog.remove(name)
    for name in [n for n in sys.modules if n.endswith("my_project")]:
        del sys.modules[name]


def test_the_page_has_commands_of_every_tool():
    assert {command[0] for command in commands()} == set(PROGRAMS)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command(project, command, capsys, tmp_path):
    name, *arguments = command
    if "--import" not in arguments:  # a config whose keys are Detectron2's
        text = (tmp_path / "my_config.yaml").read_text()
        (tmp_path / "my_config.yaml").write_text(re.sub(r"  BOLTS:\n    NUM_RINGS: 5\n", "", text))
    if name == "odam-demo":  # its random detector is sure of nothing
        arguments[arguments.index("--input"):arguments.index("--input")] = [
            *("--confidence-threshold", "0")
        ]  # fmt: skip
    status = run_tool(lambda: PROGRAMS[name].run(arguments))
    said = capsys.readouterr()
    assert status == 0, said.err[-500:]
    if name == "odam-demo":
        listing = json.loads(next(tmp_path.glob("output/*/photo/maps.json")).read_text())
        assert {item["class"]["name"] for item in listing["maps"]} == {"bolt"}


def test_in_python(project, monkeypatch):
    cfg = get_cfg()
    cfg.merge_from_list([*PLAIN, "MODEL.WEIGHTS", "model_final.pth", "MODEL.DEVICE", "cpu",
                         "MODEL.ROI_HEADS.NUM_CLASSES", 1,
                         "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])  # fmt: skip
    names = {"cfg": cfg}
    exec(project, names)
    assert isinstance(names["predictor"], DefaultPredictor)
    assert len(names["found"]) > 0
    assert Image.open("photo_explained.png").size[0] > 300

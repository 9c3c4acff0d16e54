"""The code on pages for users runs, on the shipped detector, and one page after the other."""

from __future__ import annotations

import ast
import re

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY
from hooks import ROOT

from odam_d2 import ExplainSettings, model_zoo
from odam_d2.engine import setup_cfg
from odam_d2.structures.heat_colors import no_evidence
from odam_d2.visualization.overlay import SATURATED

DOCS = ROOT / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def given():
    """What readers have: a config with weights, and a photo."""
    cfg = model_zoo.get_config("CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml", trained=True)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.995  # three robots
    image = cv2.imread(DatasetCatalog.get("crowdshapes_val")[0]["file_name"])
    return cfg, image


def test_quick_start(given, tmp_path, monkeypatch):
    cfg, image = given
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    names = {"cfg": cfg}
    first, second = blocks("index.md")
    exec(first, names)
    exec(second, names)
    found = names["found"]
    assert len(found) >= 3
    assert names["heat"].shape == (len(found), 1, *image.shape[:2])
    assert (tmp_path / "photo.npz").is_file()
    assert cv2.imread("sheet.png").shape[1] > 500


def test_readme(given, tmp_path, monkeypatch):
    """The first code that people type, and a config by its keys, which are there."""
    _, image = given
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert len(names["found"]) > 0
    assert cv2.imread("explained.png").shape[1] > 500
    (config,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "a.yaml").write_text(config)
    cfg = setup_cfg(str(tmp_path / "a.yaml"))
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert ExplainSettings.from_config(cfg).preset == "gradient"


def test_answers(given, tmp_path, monkeypatch, capsys):
    cfg, image = given
    monkeypatch.chdir(tmp_path)
    names = {"predictor": DefaultPredictor(cfg), "image": image}
    for block in blocks("faq.md"):
        exec(block, names)
    found, count = names["found"], len(names["found"])
    assert not names["empty"].any()
    assert not names["lost"].any()
    assert names["logits"].targets == ("class",)
    assert names["fine"]["instances"].odam_maps.strides.tolist() == [4.0] * count
    assert "res2" in capsys.readouterr().out.splitlines()[0]
    # The box that is asked about has a robot of another class.
    assert float(names["asked"].scores[0]) < 0.5
    assert names["heat"].shape == (1, 1, *image.shape[:2])
    assert names["small"].shape == (count, 5, 60, 80)
    assert len(names["only"]["instances"]) == count
    assert torch.equal(names["again"].scores, found.scores)
    assert names["cfg"].MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.5


def test_messages_that_are_quoted_are_those_of_the_code():
    quoted = re.findall(r'"\.\.\. (.*?) \.\.\."', (DOCS / "faq.md").read_text())
    code = [*(ROOT / "odam_d2").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    text = "".join(path.read_text() for path in code)
    assert len(quoted) == 3
    assert [message for message in quoted if message not in text] == []


def test_remedies_are_settings():
    """What "How to read a map" tells to do is accepted, and its words are those of pictures."""
    page = (DOCS / "how_to_read_a_map.md").read_text()
    assert f'"{no_evidence(False)}"' in page
    assert f'"{SATURATED}"' in page
    settings = set(re.findall(r"\b(signed|score|method|layer)=(\w+|\"\w+\")", page))
    assert {name for name, _ in settings} == {"signed", "score", "method", "layer"}
    for name, value in settings:
        ExplainSettings(**{name: ast.literal_eval(value)})

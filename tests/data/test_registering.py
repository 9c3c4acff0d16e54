"""Importing odam_d2 takes no public name of a data set; the tools register them afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest
from tool_modules import load_tool

TOOLS = Path(__file__).parents[2] / "tools"
SLIM = TOOLS.parent / "configs" / "CrowdShapes" / "retinanet_R_50_FPN_slim.yaml"
LAZY = TOOLS.parent / "tests" / "lazy_configs" / "retinanet_slim.py"


def test_other_projects_can_register_their_own(tmp_path):
    """In a fresh process, where nothing else has registered anything."""
    program = """
import odam_d2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

public = ("crowdhuman_", "bccd_", "coco128_")
assert not [name for name in DatasetCatalog.list() if name.startswith(public)]
assert "crowdshapes_val" in DatasetCatalog.list()
assert PathManager.isfile("odam://CrowdShapes/faster_rcnn_R_50_FPN_slim.pth")
for name in ("crowdhuman_train", "bccd_val"):
    DatasetCatalog.register(name, lambda: ["mine"])
    MetadataCatalog.get(name).set(thing_classes=["mine"])
for _ in range(2):
    odam_d2.data.register_datasets()
for name in ("crowdhuman_train", "bccd_val"):
    assert DatasetCatalog.get(name) == ["mine"]
    assert MetadataCatalog.get(name).as_dict() == {"name": name, "thing_classes": ["mine"]}
assert MetadataCatalog.get("crowdhuman_val").thing_classes == ["person"]
assert MetadataCatalog.get("bccd_train").thing_classes[0] == "RBC"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


class Registered(Exception):
    """The tool came to registering."""


@pytest.mark.parametrize(
    ("name", "setup", "arguments"),
    [
        ("analyze_errors", "setup_cfg", ["--config-file", SLIM]),
        ("benchmark", "setup_cfg", ["--config-file", SLIM]),
        ("evaluate_explanations", "setup_cfg", ["--config-file", SLIM]),
        ("train_net", "setup_cfg", ["--config-file", SLIM]),
        ("lazyconfig_train_net", "setup_lazy", ["--config-file", LAZY]),
        ("demo", "setup_config", ["--config-file", LAZY, "--input", SLIM]),
        ("crowd_experiment", None, ["--output"]),
    ],
)
def test_tools_register_after_what_the_config_imports(
    name, setup, arguments, monkeypatch, tmp_path
):
    tool = load_tool(name)
    monkeypatch.chdir(tmp_path)
    read = []

    def register():
        raise Registered

    monkeypatch.setattr(tool, "register_datasets", register)
    if setup is None:  # configs of the project only
        arguments, read = ["--output", tmp_path], [True]
    else:
        load = getattr(tool, setup)
        monkeypatch.setattr(tool, setup, lambda *given: (load(*given), read.append(True))[0])
    with pytest.raises(Registered):
        getattr(tool, "run", getattr(tool, "main", None))([str(word) for word in arguments])
    assert read

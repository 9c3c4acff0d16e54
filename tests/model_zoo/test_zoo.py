"""Configs and detectors by name, as from Detectron2's model zoo."""

import runpy
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.engine import DefaultPredictor
from omegaconf import DictConfig

import odam_d2
from odam_d2 import model_zoo
from odam_d2.engine import setup_cfg, setup_config
from odam_d2.errors import UserError
from odam_d2.model_zoo import config_files

ROOT = Path(__file__).parents[2]
FCOS = "CrowdShapes/fcos_R_50_FPN_slim.yaml"
LAZY = "COCO-Detection/fcos_R_50_FPN_1x.py"


def test_version():
    assert odam_d2.__version__ == runpy.run_path(str(ROOT / "odam_d2/version.py"))["__version__"]


def test_every_config_but_bases_is_there():
    names = model_zoo.available_configs()
    assert {FCOS, LAZY} <= set(names)
    assert not [name for name in names if "Base" in name or name.startswith("common/")]
    for name in names:
        assert Path(model_zoo.get_config_file(name)).is_file()


def test_configs_of_an_installed_package(tmp_path, monkeypatch):
    """There they lie in the package, and there is no checkout."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr(config_files, "CONFIGS", tmp_path)
    assert model_zoo.available_configs() == ["new/mine.yaml"]
    assert setup_cfg("new/mine.yaml").MODEL.ODAM


def test_get_loads_the_weights_and_trains_like_detectron2_s():
    model = model_zoo.get(FCOS, trained=True, device="cpu")
    assert model.training
    (file,) = (ROOT / "odam_d2/model_zoo/weights/CrowdShapes").glob("fcos*.pth")
    saved = torch.load(file, weights_only=True)["model"]
    assert saved
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, saved[name].to(value.dtype), rtol=0, atol=0)


def test_weights_are_found_by_detectron2_s_predictor():
    predictor = DefaultPredictor(model_zoo.get_config(FCOS))
    assert predictor.model.training is False


def test_checkpoint_of_the_zoo():
    name = "COCO-Detection/retinanet_R_50_FPN_3x"
    suffix = model_zoo.get_checkpoint_url(f"{name}.yaml").removeprefix("detectron2://")
    assert detectron2_zoo.get_checkpoint_url(f"{name}.yaml").endswith(suffix)


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/fcos_R_50_FPN_1x.yaml",  # ImageNet's backbone
        "CrowdShapes/retinanet_R_50_FPN_slim_crowded.yaml",  # trains the shipped one on
        LAZY,
    ],
)
def test_what_training_starts_from_is_no_trained_detector(name):
    with pytest.raises(UserError, match="no trained detector"):
        model_zoo.get_config(name, trained=True)
    model_zoo.get_config(name)


def test_lazy_config():
    assert isinstance(model_zoo.get_config(LAZY), DictConfig)


def test_unknown_name():
    with pytest.raises(UserError, match="available_configs"):
        model_zoo.get("CrowdShapes/fcos.yaml")


@pytest.mark.parametrize("name", [FCOS, LAZY])
def test_tools_take_names_too(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, by_path = setup_config(name), setup_config(str(ROOT / "configs" / name))
    assert named == by_path


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FCOS).parent.mkdir()
    (tmp_path / FCOS).write_text("SEED: 4321\n")
    assert setup_cfg(FCOS).SEED == 4321

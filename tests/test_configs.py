"""Every shipped config loads; those of the COCO models are the model zoo's."""

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

import odam_d2  # noqa: F401 (registers)
from odam_d2.engine import setup_cfg
from odam_d2.errors import UserError
from odam_d2.model_zoo import available_weights

CONFIGS = Path(__file__).parents[1] / "configs"
ALL = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in ALL if not Path(name).name.startswith("Base-")]
COCO = [name for name in LEAVES if name.startswith("COCO-Detection/")]
CROWDSHAPES = [name for name in LEAVES if name.startswith("CrowdShapes/")]


def flat(node: CfgNode, prefix: str = "") -> dict:
    """``{"A.B": value}`` of a nested config."""
    result = {}
    for key, value in node.items():
        nested = isinstance(value, CfgNode)
        result.update(flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return result


@pytest.mark.parametrize("name", ALL)
def test_config_loads(name):
    setup_cfg(str(CONFIGS / name))  # raises where a key does not exist


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_chooses_an_explaining_model_and_its_data(name):
    cfg = setup_cfg(str(CONFIGS / name))
    assert ("OdamRetinaNet" if "retina" in name else "OdamRCNN") == cfg.MODEL.META_ARCHITECTURE
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.ODAM.TARGETS == ["class", "left", "top", "right", "bottom"]
    folder = {"COCO-Detection": "coco_2017", "BCCD": "bccd", "CrowdShapes": "crowdshapes"}
    prefix = folder[Path(name).parent.name]
    assert (f"{prefix}_train",) == cfg.DATASETS.TRAIN
    assert (f"{prefix}_val",) == cfg.DATASETS.TEST


def test_coco_leaves_are_there():
    models = ["faster_rcnn_R_50_FPN_1x", "faster_rcnn_R_50_FPN_3x", "faster_rcnn_R_101_FPN_3x"]
    models += ["faster_rcnn_X_101_32x8d_FPN_3x"]
    models += ["retinanet_R_50_FPN_1x", "retinanet_R_50_FPN_3x", "retinanet_R_101_FPN_3x"]
    assert sorted(f"COCO-Detection/{model}.yaml" for model in models) == COCO


@pytest.mark.parametrize("name", COCO)
def test_coco_leaf_is_the_zoo_model(name):
    ours, zoo = flat(setup_cfg(str(CONFIGS / name))), flat(model_zoo.get_config(name))
    ours = {key: value for key, value in ours.items() if not key.startswith("MODEL.ODAM.")}
    differing = {key for key in ours.keys() | zoo.keys() if ours.get(key) != zoo.get(key)}
    # MODEL.DEVICE: a machine without CUDA gets "cpu" from setup_cfg, "cuda" from Detectron2
    assert differing - {"MODEL.DEVICE"} == {"MODEL.META_ARCHITECTURE", "MODEL.WEIGHTS"}


@pytest.mark.parametrize("name", COCO)
def test_coco_leaf_names_the_trained_zoo_weights(name):
    weights = setup_cfg(str(CONFIGS / name)).MODEL.WEIGHTS
    address = "https://dl.fbaipublicfiles.com/detectron2/" + weights.removeprefix("detectron2://")
    assert address == model_zoo.get_checkpoint_url(name)


@pytest.mark.parametrize("name", CROWDSHAPES)
def test_crowdshapes_leaf_names_shipped_weights(name):
    weights = setup_cfg(str(CONFIGS / name)).MODEL.WEIGHTS
    assert weights == f"odam://{Path(name).with_suffix('.pth')}"
    assert Path(PathManager.get_local_path(weights)).stat().st_size <= 12e6


def test_odam_address_opens_the_file_itself():
    address = available_weights()[0]
    with PathManager.open(address, "rb") as file:
        assert file.read() == Path(PathManager.get_local_path(address)).read_bytes()
    assert PathManager.isfile(address)


@pytest.mark.parametrize("address", ["odam://nothing.pth", "odam://../handler.py", "odam://"])
def test_unknown_odam_address_lists_what_there_is(address):
    assert not PathManager.isfile(address)
    with pytest.raises(UserError, match=r"odam://CrowdShapes/\w+\.pth"):
        PathManager.get_local_path(address)


def test_odam_weights_cannot_be_overwritten():
    with pytest.raises(UserError, match="cannot be written"):
        PathManager.open(available_weights()[0], "wb")

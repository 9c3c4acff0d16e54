"""Every shipped LazyConfig can be built; those of the model zoo are the zoo's."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from torch import nn
from torch.overrides import TorchFunctionMode

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(
    str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.py") if "common" not in file.parts
)
OF_ZOO = [name for name in ALL if name.split("/")[0] in ("COCO-Detection", "new_baselines")]
OF_ZOO += [name for name in ALL if name.startswith("COCO-InstanceSegmentation/")]
SAME_MODEL = {name: name for name in OF_ZOO}
SAME_MODEL["ViTDet/mask_rcnn_vitdet_b.py"] = "common/models/mask_rcnn_vitdet.py"


@pytest.fixture(autouse=True)
def timm(monkeypatch):
    """Where timm is missing, the two layers that Detectron2 takes from it, as far as they show."""
    if importlib.util.find_spec("timm") is not None:
        return

    class Mlp(nn.Module):
        def __init__(self, in_features, hidden_features, act_layer, out_features=None):
            super().__init__()
            self.fc1 = nn.Linear(in_features, hidden_features)
            self.act = act_layer()
            self.fc2 = nn.Linear(hidden_features, out_features or in_features)

    layers = ModuleType("timm.models.layers")
    layers.Mlp, layers.DropPath = Mlp, lambda drop_prob: nn.Identity()
    for name, module in {
        "timm": ModuleType("timm"),
        "timm.models": ModuleType("timm.models"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "timm.models.layers", layers)


class RealNumbers(TorchFunctionMode):
    """On the meta device: Detectron2's transformers take the items of a ``linspace``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.linspace:
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def load(name):
    return LazyConfig.load(str(CONFIGS / name))


def built(cfg) -> nn.Module:
    """The model without its memory, in a fraction of a second."""
    with torch.device("meta"), RealNumbers():
        return instantiate(cfg.model)


def shapes(model) -> dict:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def millions(module) -> int:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6)


def test_configs_are_there():
    expected = {
        "COCO-Detection": ["fcos_R_50_FPN_1x", "retinanet_R_50_FPN_1x"],
        "COCO-InstanceSegmentation": ["mask_rcnn_R_50_FPN_1x"]
        + [f"mask_rcnn_regnet{x}_4gf_dds_fpn_1x" for x in "xy"],
        "MViT": ["mask_rcnn_mvitv2_t_FPN"],
        "Swin": ["cascade_mask_rcnn_swin_b", "mask_rcnn_swin_b_FPN", "mask_rcnn_swin_t_FPN"],
        "ViTDet": ["cascade_mask_rcnn_vitdet_b", "mask_rcnn_vitdet_b"],
        "new_baselines": [f"mask_rcnn_regnet{x}_4gf_dds_FPN_400ep_LSJ" for x in "xy"],
    }
    assert sorted(f"{f}/{name}.py" for f, names in expected.items() for name in names) == ALL


@pytest.mark.parametrize("name", ALL)
def test_every_part_can_be_built(name):
    cfg = load(name)
    model = built(cfg)
    assert type(model).__module__.startswith("detectron2."), "a plain model: every checkpoint fits"
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in model.parameters()
    )
    multiplier = instantiate(cfg.lr_multiplier)
    assert multiplier(0.5) == 1
    assert multiplier(0.999) == pytest.approx(0.01)
    formats = {instantiate(cfg.dataloader[s].mapper).image_format for s in ("train", "test")}
    assert formats == {getattr(model, "input_format", "BGR")}  # FCOS does not say
    # The means of ImageNet's channels: red is the highest.
    first, _, last = cfg.model.pixel_mean
    assert formats == {"RGB" if first > last else "BGR"}


@pytest.mark.parametrize("name", SAME_MODEL)
def test_model_is_the_one_of_the_zoo(name):
    zoo = model_zoo.get_config(SAME_MODEL[name])
    assert shapes(built(load(name))) == shapes(built(zoo))


@pytest.mark.parametrize("name", OF_ZOO)
def test_weights_are_the_trained_ones_where_the_zoo_has_them(name):
    cfg = load(name)
    try:
        expected = model_zoo.get_checkpoint_url(name)
    except RuntimeError:  # the zoo has none
        expected = model_zoo.get_config(name).train.init_checkpoint
    assert cfg.train.init_checkpoint == expected


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        # With the heads, by Detectron2's projects/MViTv2 and the authors' detection repository.
        ("MViT/mask_rcnn_mvitv2_t_FPN.py", "", 44),
        ("Swin/mask_rcnn_swin_t_FPN.py", "", 48),
        # Table 1 of the paper has 88 M, of which the classifier is 1024 x 1000.
        ("Swin/mask_rcnn_swin_b_FPN.py", "backbone.bottom_up", 87),
        ("Swin/cascade_mask_rcnn_swin_b.py", "backbone.bottom_up", 87),
        # Table 1 of Dosovitskiy et al., ICLR 2021: ViT-Base.
        ("ViTDet/cascade_mask_rcnn_vitdet_b.py", "backbone.net", 86),
    ],
)
def test_backbone_has_the_published_size(name, part, expected):
    assert millions(built(load(name)).get_submodule(part)) == pytest.approx(expected, abs=1)


CASCADES = [name for name in ALL if "/cascade" in name]


@pytest.mark.parametrize("name", CASCADES)
def test_cascade_has_three_box_heads_of_its_own(name):
    heads, single = (
        built(load(name)).roi_heads,
        built(load("ViTDet/mask_rcnn_vitdet_b.py")).roi_heads,
    )
    assert len(heads.box_head) == len(heads.box_predictor) == 3
    assert all(shapes(head) == shapes(single.box_head) for head in heads.box_head)
    assert len({id(parameter) for parameter in heads.box_head.parameters()}) == 3 * 14
    assert {predictor.bbox_pred.out_features for predictor in heads.box_predictor} == {4}
    assert shapes(heads.mask_head) == shapes(single.mask_head)

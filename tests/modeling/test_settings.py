"""Every key of ours acts or is refused, in one sentence that names it."""

import math
from dataclasses import FrozenInstanceError

import pytest
from detectron2.config import CfgNode, get_cfg
from torch import nn

from odam_d2 import ExplainSettings, add_odam_config
from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_number
from odam_d2.engine.checks import check_num_gpus, check_run
from odam_d2.engine.evaluators import check_evaluators
from odam_d2.errors import UserError
from odam_d2.modeling import fcos
from odam_d2.modeling.adapters import Decisions, Trace
from odam_d2.modeling.adapters.dense_records import DensePlaces
from odam_d2.modeling.attribution import DRise, GradientMethod
from odam_d2.modeling.fcos import ConfigurableFCOS
from odam_d2.modeling.losses import OdamTraining, build_odam_training
from odam_d2.modeling.nms import OdamNms, SoftNms
from odam_d2.modeling.settings import DRiseSettings

# What no key takes, whatever it is for; yacs itself lets None and lists through.
WRONG = [
    None,
    float("nan"),
    1e308,
    -1e308,
    10**30,
    -1,
    [],
    [None],
    [[1]],
    "no such thing",
    {"A": 1},
]
# Names of users, paths and lists may be anything, or nothing.
ANYTHING = {
    "MODEL.ODAM.LAYER": ["no such thing"],  # refused when the model is there
    "MODEL.ODAM.D_RISE.STATE_DIR": ["no such thing"],
    "MODEL.ODAM.D_RISE.SEED": [-1],
    "MODEL.ODAM.RISE.STATE_DIR": ["no such thing"],
    "MODEL.ODAM.RISE.SEED": [-1],
    "MODEL.ODAM.SMOOTH_GRAD.SEED": [-1],
    "MODEL.ODAM.D_CLOSE.STATE_DIR": ["no such thing"],
    "MODEL.ODAM.D_CLOSE.SEED": [-1],
    "MODEL.ODAM.VPS.STATE_DIR": ["no such thing"],
    "MODEL.ODAM.LAYER_CAM.LAYERS": [[]],  # by default
    "TEST.ODAM.EXPLANATION.FAITHFULNESS.SEED": [-1],
    "TEST.ODAM.EXPLANATION.FAITHFULNESS.PER_IMAGE": [-1],
    "TEST.ODAM.EVALUATORS": [[]],
    "TEST.ODAM.CAUSAL_RECOVERY.SEED": [-1],
    "TEST.ODAM.CAUSAL_RECOVERY.PER_IMAGE": [-1],
    "TEST.ODAM.CAUSAL_RECOVERY.AREAS": [[], None],  # no curve
    "TEST.ODAM.SANITY_CHECKS.SEED": [-1],
    "TEST.ODAM.SANITY_CHECKS.PER_IMAGE": [-1],
    "TEST.ODAM.SANITY_CHECKS.ORDERS": [[], None],  # all layers at once
    "TEST.ODAM.SANITY_CHECKS.OTHER_WEIGHTS": ["no such thing"],  # refused when the model is there
    "TEST.ODAM.SANITY_CHECKS.RANDOM_LABELS": ["no such thing"],
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": [1e308],
    "MODEL.FCOS.FOCAL_LOSS_ALPHA": [-1e308],
    "MODEL.FCOS.FOCAL_LOSS_GAMMA": [1e308],
    "MODEL.FCOS.NORM": [None],  # as ""
    "MODEL.ODAM.NMS.SOFT_SIGMA": [1e308],
    "MODEL.ODAM.NMS.NAME": [None],
    "MODEL.ODAM.LOSS.NAME": [None],
}


def config() -> CfgNode:
    """A config in which every key of ours is used: by one way of NMS or another."""
    cfg = get_cfg()
    add_odam_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_odam_fcos_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64  # little to build
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ODAM.LOSS.NAME = "OdamTrainLoss"
    cfg.TEST.ODAM.EVALUATORS = ["explanation", "causal_recovery", "sanity_checks"]
    return cfg


def keys(node: CfgNode, prefix: str) -> list[str]:
    found = []
    for key, value in node.items():
        below = isinstance(value, CfgNode)
        found += keys(value, f"{prefix}{key}.") if below else [prefix + key]
    return found


ALL = [
    *keys(config().MODEL.ODAM, "MODEL.ODAM."),
    *keys(config().TEST.ODAM, "TEST.ODAM."),
    *keys(config().MODEL.FCOS, "MODEL.FCOS."),
]


def use(cfg: CfgNode, key: str) -> None:
    """What the tools do with a config before they build a model."""
    if key.startswith("MODEL.FCOS"):
        ConfigurableFCOS.from_config(cfg)
        return
    for name in ("odam_nms", "soft_nms"):
        if key != "MODEL.ODAM.NMS.NAME":
            cfg.MODEL.ODAM.NMS.NAME = name
        ExplainSettings.from_config(cfg)
    build_odam_training(cfg)
    check_evaluators(cfg)


def complaint(key: str, value: object) -> str | None:
    """What is said about a value; None where it is taken."""
    cfg = config()
    try:
        cfg.merge_from_list([key, value])
        use(cfg, key)
    except (InputError, UserError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", ALL)
def test_wrong_values_are_refused_by_name(key):
    use(config(), key)
    for value in WRONG:
        said = complaint(key, value)
        if any(repr(value) == repr(one) for one in ANYTHING.get(key, [])):
            assert said is None
        else:
            assert said is not None, f"{key} was taken as {value!r}"
            assert key in said
            assert "\n" not in said


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": (None,)},
        {"targets": (1,)},
        {"score": None},
        {"smoothing_sigma": "1"},
        {"smoothing_sigma": True},
        {"chunk_mb": math.inf},
        {"layer": 4},
        {"record": 1},
        {"method": ["odam"]},
        {"targets": ("class",), "method": "d_rise", "score": "logit"},
        {"targets": ("class",), "method": "d_rise", "smoothing_sigma": 1.0},
    ],
)
def test_arguments_are_refused_too(settings):
    (name,) = {*settings} - {"targets"} - ({"method"} if len(settings) > 1 else set()) or {
        "targets"
    }
    with pytest.raises(InputError, match=rf"^{name} is"):
        ExplainSettings(**settings)


@pytest.mark.parametrize("name", ["num_masks", "grid", "seed", "check_every", "keep_prob"])
@pytest.mark.parametrize("value", ["1", None, 1.5, True, math.nan])
def test_d_rise_takes_numbers_of_its_kind(name, value):
    with pytest.raises(InputError, match=f"^{name} is"):
        DRiseSettings(**{name: value})


def test_ends_of_ranges():
    """By hand: closed and open ends, whole numbers."""
    check_number("K", 0, "x", 0, 1)
    check_number("K", 1, "x", 0, 1, whole=True)
    for value, more in ((0, {"above": True}), (1, {"below": True}), (0.5, {"whole": True})):
        with pytest.raises(InputError, match=f"^K is {value}; it must be x$"):
            check_number("K", value, "x", 0, 1, **more)


def test_ends_of_what_can_still_be_computed(monkeypatch):
    monkeypatch.setattr(fcos, "FCOSHead", lambda **_arguments: None)  # of a million classes
    cfg = config()
    cfg.MODEL.FCOS.NUM_CLASSES = 10**6
    assert ConfigurableFCOS.from_config(cfg)["num_classes"] == 10**6
    assert DRiseSettings(grid=1000).grid == 1000
    assert complaint("MODEL.FCOS.NUM_CLASSES", 10**6 + 1) is not None
    assert complaint("MODEL.ODAM.D_RISE.GRID", 1001) is not None


def test_defaults_of_arguments_are_those_of_the_config():
    cfg = config()
    assert ExplainSettings() == ExplainSettings.from_config(cfg)
    for entry in (SoftNms, OdamNms):
        assert vars(entry()) == vars(entry(cfg))
    of_config = vars(build_odam_training(cfg))
    for name, value in vars(OdamTraining(loss=nn.Identity())).items():
        if not name.startswith("_"):
            assert value == of_config[name], name


@pytest.mark.parametrize(
    "cls", [ExplainSettings, DRiseSettings, GradientMethod, DRise, Trace, DensePlaces, Decisions]
)
def test_what_threads_share_stays_as_it_was_checked(cls):
    thing = object.__new__(cls)
    with pytest.raises(FrozenInstanceError):
        thing.method = "another"


def test_long_values_are_told_in_short():
    with pytest.raises(InputError) as error:
        check_number("K", "x" * 10_000, "x", 0, 1)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(("key", "value"), [("METHOD", "grad_cam"), ("LAYER", "res4")])
def test_a_loss_is_of_odams_own_maps(key, value):
    class Args:
        eval_only, resume = False, False

    cfg = config()
    cfg.MODEL.ODAM[key] = value
    with pytest.raises(UserError, match=rf"MODEL\.ODAM\.{key} is '{value}', and the loss"):
        check_run(cfg, Args)


def test_fewer_gpus_than_none():
    with pytest.raises(UserError, match="--num-gpus is -1"):
        check_num_gpus(-1)

"""Every shipped config loads; those named as in Detectron2's model zoo are the zoo's."""

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

CONFIGS = Path(__file__).parents[2] / "configs"
ZOO = Path(model_zoo.__file__).parent / "configs"
ALL = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in ALL if not Path(name).name.startswith("Base-")]
CROWDSHAPES = [name for name in LEAVES if name.startswith("CrowdShapes/")]
OURS = [name for name in LEAVES if name.startswith(("CrowdShapes/", "BCCD/", "CrowdHuman/"))]
FROM_ZOO = [name for name in LEAVES if name not in OURS and (ZOO / name).exists()]

# No such YAML in the zoo: tests of their own below.
CASCADE = "COCO-Detection/cascade_rcnn_R_50_FPN_1x.yaml"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x.yaml"

# The zoo has configs, but no trained detectors, of these.
UNTRAINED = [
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml",
    "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml",
]

SIZES = ["R_50_C4_1x", "R_50_C4_3x", "R_101_C4_3x", "R_50_DC5_1x", "R_50_DC5_3x", "R_101_DC5_3x"]
FPN_SIZES = ["R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x", "X_101_32x8d_FPN_3x"]
MODELS = {
    "COCO-Detection/faster_rcnn": SIZES + FPN_SIZES,
    "COCO-Detection/fast_rcnn": ["R_50_FPN_1x"],
    "COCO-Detection/retinanet": ["R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x"],
    "COCO-InstanceSegmentation/mask_rcnn": SIZES + FPN_SIZES,
    "COCO-Keypoints/keypoint_rcnn": FPN_SIZES,
    "COCO-PanopticSegmentation/panoptic_fpn": ["R_50_1x", "R_50_3x", "R_101_3x"],
    "Misc/cascade_mask_rcnn": ["R_50_FPN_1x", "R_50_FPN_3x"],
    "Misc/mask_rcnn": ["R_50_FPN_1x_cls_agnostic", "R_50_FPN_3x_gn", "R_50_FPN_3x_syncbn"],
    "PascalVOC-Detection/faster_rcnn": ["R_50_C4", "R_50_FPN"],
}


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
def test_leaf_chooses_an_explaining_model(name):
    cfg = setup_cfg(str(CONFIGS / name))
    kinds = {"retinanet": "OdamRetinaNet", "panoptic": "OdamPanopticFPN", "fcos": "OdamFCOS"}
    kind = Path(name).name.split("_")[0]
    assert kinds.get(kind, "OdamRCNN") == cfg.MODEL.META_ARCHITECTURE
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.ODAM.TARGETS == ["class", "left", "top", "right", "bottom"]


@pytest.mark.parametrize("name", [*OURS, CASCADE, FCOS])
def test_leaf_chooses_its_data(name):
    """Those of the zoo's models are compared with the zoo."""
    cfg = setup_cfg(str(CONFIGS / name))
    folder = {"COCO-Detection": "coco_2017"}
    prefix = folder.get(Path(name).parent.name, Path(name).parent.name.lower())
    kinds = [prefix + ("_crowded" if "_crowded" in name else "")]
    kinds += [f"{prefix}_scattered"] if "_scattered" in name else []
    assert {f"{kind}_train" for kind in kinds} == set(cfg.DATASETS.TRAIN)
    assert tuple(f"{kind}_val" for kind in kinds) == cfg.DATASETS.TEST


def test_zoo_models_are_there():
    names = [f"{model}_{size}.yaml" for model, sizes in MODELS.items() for size in sizes]
    assert sorted(names) == FROM_ZOO
    assert sorted([*names, CASCADE, FCOS, *OURS]) == LEAVES


def differing(ours, zoo):
    """Keys of Detectron2's own whose values are not the same."""
    ours, zoo = flat(ours), flat(zoo)
    added = ("MODEL.ODAM.", "MODEL.FCOS.", "TEST.ODAM.")
    keys = {key for key in ours.keys() | zoo.keys() if not key.startswith(added)}
    # MODEL.DEVICE: a machine without CUDA gets "cpu" from setup_cfg, "cuda" from Detectron2
    return {key for key in keys - {"MODEL.DEVICE"} if ours.get(key) != zoo.get(key)}


@pytest.mark.parametrize("name", FROM_ZOO)
def test_leaf_is_the_zoo_model(name):
    ours, zoo = setup_cfg(str(CONFIGS / name)), model_zoo.get_config(name)
    weights = set() if name in UNTRAINED else {"MODEL.WEIGHTS"}
    assert differing(ours, zoo) == {"MODEL.META_ARCHITECTURE", *weights}


@pytest.mark.parametrize("name", [name for name in FROM_ZOO if name not in UNTRAINED])
def test_leaf_names_the_trained_zoo_weights(name):
    weights = setup_cfg(str(CONFIGS / name)).MODEL.WEIGHTS
    address = "https://dl.fbaipublicfiles.com/detectron2/" + weights.removeprefix("detectron2://")
    assert address == model_zoo.get_checkpoint_url(name)


def test_leaves_without_trained_weights():
    for name in (*UNTRAINED, CASCADE, FCOS):
        with pytest.raises(RuntimeError, match="not available"):
            model_zoo.get_checkpoint_url(name)
        weights = setup_cfg(str(CONFIGS / name)).MODEL.WEIGHTS
        assert weights == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def test_box_only_cascade_is_the_zoo_model_without_masks():
    zoo = model_zoo.get_config("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    changed = {"MODEL.META_ARCHITECTURE", "MODEL.MASK_ON"}
    assert differing(setup_cfg(str(CONFIGS / CASCADE)), zoo) == changed


def test_fcos_trains_as_the_lazy_config_of_the_zoo():
    """Its model is compared in tests/modeling/test_fcos.py."""
    cfg = setup_cfg(str(CONFIGS / FCOS))
    zoo = model_zoo.get_config(str(Path(FCOS).with_suffix(".py")))
    train, test = zoo.dataloader.train, zoo.dataloader.test
    resize = train.mapper.augmentations[0]
    schedule = zoo.lr_multiplier
    assert train.dataset.names == cfg.DATASETS.TRAIN[0]
    assert test.dataset.names == cfg.DATASETS.TEST[0]
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    assert (resize.max_size, train.mapper.image_format) == (cfg.INPUT.MAX_SIZE_TRAIN, "BGR")
    assert test.mapper.augmentations[0].short_edge_length == cfg.INPUT.MIN_SIZE_TEST
    assert cfg.INPUT.FORMAT == "BGR"
    assert (train.mapper.use_instance_mask, cfg.MODEL.MASK_ON) == (False, False)
    solver = cfg.SOLVER
    assert train.total_batch_size == solver.IMS_PER_BATCH
    optimizer = zoo.optimizer
    assert (optimizer.lr, optimizer.momentum) == (solver.BASE_LR, solver.MOMENTUM)
    assert optimizer.weight_decay == solver.WEIGHT_DECAY
    assert optimizer.params.weight_decay_norm == solver.WEIGHT_DECAY_NORM
    assert schedule.scheduler.milestones == [*solver.STEPS, solver.MAX_ITER]
    assert schedule.warmup_length * solver.MAX_ITER == pytest.approx(solver.WARMUP_ITERS)
    assert schedule.warmup_factor == solver.WARMUP_FACTOR
    assert zoo.train.init_checkpoint == cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("name", CROWDSHAPES)
def test_crowdshapes_leaf_names_shipped_weights(name):
    weights = setup_cfg(str(CONFIGS / name)).MODEL.WEIGHTS
    shipped = name.partition("_slim")[0] + "_slim"  # also of what trains on from there
    assert weights == f"odam://{shipped}.pth"
    assert Path(PathManager.get_local_path(weights)).stat().st_size <= 12e6


@pytest.mark.parametrize("name", [name for name in OURS if "_odam" in name])
def test_odam_leaf_is_the_plain_one_with_odam(name):
    """What is compared in docs/crowds.md differs in nothing else."""
    plain = name.replace("_odam_train", "").replace("_odam", "")
    ours, other = flat(setup_cfg(str(CONFIGS / name))), flat(setup_cfg(str(CONFIGS / plain)))
    changed = {key for key in ours if ours[key] != other[key]}
    assert ours["MODEL.ODAM.LOSS.NAME"] == "OdamTrainLoss"
    assert {key for key in changed if not key.startswith("MODEL.ODAM.")} == {"OUTPUT_DIR"}


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

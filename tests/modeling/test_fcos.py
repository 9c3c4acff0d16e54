"""FCOS from YAML is Detectron2's FCOS."""

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from oracle import RETINANET, SLIM, two_images, zoo_model

from benchmarks.untrained import scale_random_weights
from odam_d2 import add_odam_config
from odam_d2.core.errors import InputError
from odam_d2.engine import setup_cfg
from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.fcos import ConfigurableFCOS

CONFIG = Path(__file__).parents[2] / "configs" / "COCO-Detection" / "fcos_R_50_FPN_1x.yaml"

PLAIN = [
    "MODEL.META_ARCHITECTURE", "OdamFCOS", "MODEL.ODAM.TARGETS", [],
    "MODEL.BACKBONE.NAME", "build_odam_fcos_resnet_fpn_backbone",
    "MODEL.FCOS.SCORE_THRESH_TEST", 0.0,
]  # fmt: skip
NARROW = [*SLIM, "MODEL.FPN.OUT_CHANNELS", 32, *PLAIN]  # GroupNorm has 32 groups

SETTINGS = [
    "num_classes", "head_in_features", "center_sampling_radius", "focal_loss_alpha",
    "focal_loss_gamma", "test_score_thresh", "test_topk_candidates", "test_nms_thresh",
    "max_detections_per_image",
]  # fmt: skip


def slim_fcos(*opts):
    """It starts from the zoo's RetinaNet, whose backbone keys are those of its FCOS."""
    return zoo_model(RETINANET, opts=[*NARROW, *opts])


@torch.no_grad()
def spread_boxes(model):
    """Untrained, FCOS predicts boxes of no size, which are dropped; let them be 4 strides wide."""
    model.head.bbox_pred.bias.fill_(2)


def over(model):
    """Detectron2's own FCOS on the same modules, its settings left at its own defaults."""
    statistics = {
        name: getattr(model, name).flatten().tolist() for name in ("pixel_mean", "pixel_std")
    }
    return FCOS(backbone=model.backbone, head=model.head, num_classes=80, **statistics)


def annotated():
    """Two images of two sizes, one with two objects, one with one."""
    inputs = two_images()
    objects = [([[10.0, 10, 90, 100], [40, 60, 190, 120]], [3, 5]), ([[5.0, 8, 60, 150]], [79])]
    for x, (boxes, classes) in zip(inputs, objects, strict=True):
        size = tuple(x["image"].shape[-2:])
        x["instances"] = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes))
    return inputs


@torch.no_grad()
def test_detections_and_settings_are_those_of_the_zoo_model():
    """Those of our config, bit for bit, at full size."""
    torch.manual_seed(0)
    plain = instantiate(model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model).eval()
    scale_random_weights(plain)
    spread_boxes(plain)
    cfg = setup_cfg(str(CONFIG), ["MODEL.DEVICE", "cpu", "MODEL.ODAM.TARGETS", []])
    ours = build_model(cfg).eval()
    assert not ours.load_state_dict(plain.state_dict(), strict=True).missing_keys
    for name in SETTINGS:
        assert getattr(ours, name) == getattr(plain, name), name
    plain.test_score_thresh = ours.test_score_thresh = 0.0  # untrained scores are below 0.1
    inputs = two_images()
    for a, b in zip(plain(inputs), ours(inputs), strict=True):
        a, b = a["instances"], b["instances"]
        assert len(a) == 100
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert a.get_fields().keys() == b.get_fields().keys()


@torch.no_grad()
def test_explaining_is_set_as_for_other_models():
    """Targets from the config; the same detections; hooks of the model run once."""
    plain, model = slim_fcos(), slim_fcos("MODEL.ODAM.TARGETS", ["class", "top"])
    spread_boxes(plain)
    model.load_state_dict(plain.state_dict())
    calls, inputs = [], two_images()
    model.register_forward_hook(lambda *_: calls.append("after"))
    for a, b in zip(plain(inputs), model(inputs), strict=True):
        a, b = a["instances"], b["instances"]
        assert len(a) == len(b.odam_maps) == 12
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert b.odam_maps.targets == ("class", "top")
    assert calls == ["after"]


def test_losses_are_those_of_detectron2_and_reach_every_parameter():
    model = slim_fcos().train()
    losses = []
    for detector in (model, over(model).train()):
        with EventStorage():
            losses.append(detector(annotated()))
    assert losses[0].keys() == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    for name, loss in losses[0].items():
        assert loss > 0
        assert loss.isfinite()
        assert torch.equal(loss, losses[1][name])
    sum(losses[0].values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_an_image_without_objects_has_a_loss():
    model, inputs = slim_fcos().train(), annotated()[:1]
    inputs[0]["instances"] = inputs[0]["instances"][:0]
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert losses["loss_fcos_cls"] > 0
    assert losses["loss_fcos_loc"] == losses["loss_fcos_ctr"] == 0


@pytest.mark.parametrize("norm", ["", "BN", "SyncBN", "FrozenBN", "GN"])
@torch.no_grad()
def test_every_norm_builds_and_detects(norm):
    model = slim_fcos("MODEL.FCOS.NORM", norm, "MODEL.FCOS.NUM_CONVS", 2)
    spread_boxes(model)
    convolutions = [m for m in model.head.cls_subnet if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 2
    assert len(model.head.cls_subnet) == (6 if norm else 4)  # with the ReLUs
    assert len(model(two_images())[0]["instances"]) == 12


def test_keys_reach_the_model():
    """Each of them with a value that is not the default."""
    opts = {
        "NUM_CLASSES": 7, "IN_FEATURES": ["p3", "p4", "p5"], "CENTER_SAMPLING_RADIUS": 2.5,
        "FOCAL_LOSS_ALPHA": 0.5, "FOCAL_LOSS_GAMMA": 1.0, "SCORE_THRESH_TEST": 0.3,
        "TOPK_CANDIDATES_TEST": 50, "NMS_THRESH_TEST": 0.4, "PRIOR_PROB": 0.1,
    }  # fmt: skip
    model = slim_fcos(*(x for key, value in opts.items() for x in (f"MODEL.FCOS.{key}", value)))
    # detections per image are not a key of FCOS
    assert [getattr(model, name) for name in SETTINGS[:-1]] == list(opts.values())[:8]
    # an untrained class logit is log(p / (1 - p)): p = 0.1 gives log(1 / 9)
    assert model.head.cls_score.bias.detach().numpy() == pytest.approx(-2.1972246)
    assert model.head.cls_score.out_channels == 7


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FCOS.NUM_CONVS", 0, r"MODEL\.FCOS\.NUM_CONVS is 0; it must be 1 or more"),
        ("FCOS.NUM_CONVS", -1, r"MODEL\.FCOS\.NUM_CONVS is -1; it must be 1 or more"),
        ("FCOS.NUM_CLASSES", 0, r"MODEL\.FCOS\.NUM_CLASSES is 0"),
        ("FCOS.NORM", "groupnorm", r"MODEL\.FCOS\.NORM is 'groupnorm'; it must be '', 'GN'"),
        ("FPN.OUT_CHANNELS", 16, r"MODEL\.FCOS\.NORM 'GN' does not fit the 16 channels"),
        ("FCOS.IN_FEATURES", ["p2", "p3"], r"IN_FEATURES is \['p2', 'p3'\].* are p3, p4, p5"),
        ("FCOS.IN_FEATURES", [], r"MODEL\.FCOS\.IN_FEATURES is \[\]"),
        ("FCOS.IN_FEATURES", ["p4", "p3"], r"of strides \[16, 8\]; it must go from fine"),
        ("FPN.IN_FEATURES", ["res3", "res4"], r"MODEL\.FPN\.IN_FEATURES is .* have 'res5'"),
        ("FCOS.PRIOR_PROB", 1.0, r"MODEL\.FCOS\.PRIOR_PROB is 1\.0"),
        ("FCOS.CENTER_SAMPLING_RADIUS", 0.0, r"MODEL\.FCOS\.CENTER_SAMPLING_RADIUS is 0\.0"),
        ("FCOS.FOCAL_LOSS_ALPHA", 1.5, r"MODEL\.FCOS\.FOCAL_LOSS_ALPHA is 1\.5"),
        ("FCOS.FOCAL_LOSS_GAMMA", -1.0, r"MODEL\.FCOS\.FOCAL_LOSS_GAMMA is -1\.0"),
        ("FCOS.SCORE_THRESH_TEST", float("nan"), r"MODEL\.FCOS\.SCORE_THRESH_TEST is nan"),
        ("FCOS.TOPK_CANDIDATES_TEST", 0, r"MODEL\.FCOS\.TOPK_CANDIDATES_TEST is 0"),
        ("FCOS.NMS_THRESH_TEST", 2.0, r"MODEL\.FCOS\.NMS_THRESH_TEST is 2\.0"),
    ],
)
def test_a_bad_value_is_named(key, value, message):
    with pytest.raises(InputError, match=message):
        slim_fcos(f"MODEL.{key}", value)


def test_adding_keys_keeps_those_that_are_there():
    cfg = get_cfg()
    cfg.MODEL.FCOS = CfgNode({"NUM_CLASSES": 5, "NORM": "BN", "THEIRS": 1})
    add_odam_config(cfg)
    assert (cfg.MODEL.FCOS.NUM_CLASSES, cfg.MODEL.FCOS.NORM, cfg.MODEL.FCOS.THEIRS) == (5, "BN", 1)
    assert cfg.MODEL.FCOS.NUM_CONVS == 4
    cfg.MODEL.FCOS.NUM_CONVS = 2
    before = cfg.clone()
    cfg.freeze()
    add_odam_config(cfg)
    assert cfg == before


def test_the_model_without_explaining_can_be_built_from_a_config():
    cfg = model_zoo.get_config(RETINANET)
    add_odam_config(cfg)
    cfg.merge_from_list([*NARROW, "MODEL.DEVICE", "cpu"])
    plain = ConfigurableFCOS(cfg)
    assert plain.state_dict().keys() == build_model(cfg).state_dict().keys()


@pytest.mark.parametrize("shape", [(1, 1), (1, 0.75), (0.75, 1)])
@pytest.mark.parametrize("reach", [5, 63.75, 64, 70, 127.75, 128, 256, 511, 512, 700])
def test_a_given_box_is_read_where_it_would_be_trained(reach, shape):
    """On the level, and at the point, to which Detectron2 matches a true box of that size."""
    model, strides = slim_fcos(), [8, 16, 32, 64, 128]
    anchors = model.anchor_generator([torch.zeros(1, 1, 1536 // s, 2048 // s) for s in strides])
    # A level is trained on boxes that reach less than 8 strides; the last one on all others. The
    # centre is a point of it.
    expected = next((n for n, s in enumerate(strides) if reach < 8 * s), 4)
    centre = torch.tensor([7.5, 5.5]) * strides[expected]
    half = reach * torch.tensor(shape)
    boxes = Boxes(torch.cat([centre - half, centre + half])[None])
    ((level, index),) = build_adapter(model).nearest(boxes, anchors).tolist()
    assert level == expected
    assert torch.equal(anchors[level][index].get_centers()[0], centre)
    matched = model._match_anchors(boxes, anchors)[0].split([len(a) for a in anchors])
    assert matched[level].any()
    if reach not in (64, 128, 256, 512):  # then the points around the centre are matched
        assert matched[level][index] > 0

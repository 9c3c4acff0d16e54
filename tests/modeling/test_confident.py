"""
Scores near 1: float32 gives the map of float64, which is that of ``-(1 - p)``, 1 - p as the sum of
the other classes' probabilities, by plain autograd.
"""

import copy
import math

import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import RETINANET, SLIM, rcnn_maps, retinanet_maps, two_images, worst_error, zoo_model

from odam_d2 import explain, explain_boxes
from odam_d2.core.probabilities import loses_digits
from odam_d2.modeling.adapters import RetinaNetAdapter, register_adapter
from odam_d2.modeling.adapters.anchors import nearest_anchors

FPN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
CASES = {
    "fpn": (FPN, []),
    "sigmoids": (FPN, ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]),
    "c4": ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", []),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", []),
    "retinanet": (RETINANET, []),
    "fcos": (
        RETINANET,
        ["MODEL.META_ARCHITECTURE", "OdamFCOS", "MODEL.ODAM.TARGETS", [], "MODEL.FPN.OUT_CHANNELS",
         32, "MODEL.BACKBONE.NAME", "build_odam_fcos_resnet_fpn_backbone"],
    ),
}  # fmt: skip
LABEL, OTHER = 5, 3
TARGETS = ("class", f"class:{OTHER}", "left")
NETWORK = torch.tensor([[20.0, 30, 70, 120]])
PEAK = 1e-3  # of a map's peak
DOUBTS = [1e-2, 1e-7, 1e-12, 1e-20, 1e-34]


def build(case, dtype=torch.float32):
    name, opts = CASES[case]
    return zoo_model(name, opts=[*SLIM, *opts], dtype=dtype)


def image(dtype=torch.float32):
    return [{"image": two_images(dtype)[1]["image"]}]


def ask(model, targets=TARGETS, boxes=NETWORK, **kwargs):
    dtype = next(model.parameters()).dtype
    labels = torch.full((len(boxes),), LABEL)
    found = explain_boxes(model, image(dtype), [boxes.to(dtype)], [labels], targets, **kwargs)
    return found[0]["instances"]


@torch.no_grad()
def raise_logit(model, amount):
    """The logit of one class, everywhere, and FCOS's centerness."""
    if hasattr(model, "roi_heads"):
        predictors = model.roi_heads.box_predictor
        for predictor in (
            predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]
        ):
            predictor.cls_score.bias[LABEL] += amount
        return
    model.head.cls_score.bias.view(-1, model.num_classes)[:, LABEL] += amount
    if hasattr(model.head, "ctrness"):
        model.head.ctrness.bias += amount


def doubted(case, doubt):
    """A model in float32 whose 1 - score of the class at the box is about this, and its double."""
    model = build(case)
    logit = float(ask(model, ("class",), score="logit").scores[0].logit())
    raise_logit(model, -math.log(doubt) - logit)
    return model, copy.deepcopy(model).double()


def assert_same_maps(found, expected, tolerance=PEAK):
    a, b = (x.odam_maps.dense(80, 48).double() for x in (found, expected))
    peaks = b.amax(dim=(2, 3), keepdim=True)
    assert (peaks[:, :1] > 0).all()
    assert ((a - b).abs() <= tolerance * peaks).all()
    return a, b


@pytest.mark.parametrize("doubt", DOUBTS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_float32_gives_the_maps_of_float64(case, doubt):
    model, double = doubted(case, doubt)
    found, expected = ask(model), ask(double)
    assert found.odam_maps.values.dtype == torch.float32
    assert_same_maps(found, expected)
    # Of 1e-34, a map may be too small for float32; the other class, of 1e-36, has none there.
    held = expected.odam_maps.values.amax(dim=(2, 3)) >= torch.finfo(torch.float32).tiny
    assert (found.odam_maps.saturated == ~held)[:, [0, 2]].all()
    # What the score itself is stays as Detectron2 computes it.
    assert abs(float(found.scores) - (1 - doubt)) < 3 * doubt + 1e-6


@pytest.mark.parametrize("doubt", [1e-2, 1e-12, 1e-34])
@pytest.mark.parametrize("case", ["fpn", "c4", "retinanet"])
def test_float64_is_right(case, doubt, monkeypatch):
    """Against autograd through the complement, and for RetinaNet through the logit."""
    _, double = doubted(case, doubt)
    found = ask(double, ("class",))
    boxes, labels = [NETWORK.double()], [torch.tensor([LABEL])]
    if case == "retinanet":
        features = double.backbone(double.preprocess_image(image(torch.float64)).tensor)
        anchors = double.anchor_generator([features[name] for name in double.head_in_features])
        origins = [nearest_anchors(Boxes(boxes[0]), anchors)]
        ((row,),) = retinanet_maps(
            double, image(torch.float64), origins, labels, ["class"], "logit"
        )
        logit = float(ask(double, ("class",), score="logit").scores.logit())
        doubt = doubt if logit > 30 else 1 - 1 / (1 + math.exp(-logit))
        row = [(level, reference * doubt * (1 - doubt)) for level, reference in row]
    else:
        predict_probs = type(double.roi_heads.box_predictor).predict_probs

        def complements(self, predictions, proposals):
            every = predict_probs(self, predictions, proposals)
            return [-(p @ (1 - torch.eye(p.shape[1], dtype=p.dtype))) for p in every]

        monkeypatch.setattr(type(double.roi_heads.box_predictor), "predict_probs", complements)
        ((row,),) = rcnn_maps(double, image(torch.float64), boxes, labels, ["class"])
    # The bias that makes the doubt is a rounded float32: 1e-5 of it, and no more, for RetinaNet.
    assert worst_error(found.odam_maps, [row]) <= (1e-4 if case == "retinanet" else 1e-9)


@pytest.mark.parametrize("doubt", [1e-7, 1e-34])
@pytest.mark.parametrize("case", ["fpn", "retinanet"])
@pytest.mark.parametrize(
    "options",
    [
        {"layer": "res4"},
        {"method": "input_gradient"},
        {"method": "grad_cam"},
        {"method": "grad_cam_pp"},
        {"smoothing_sigma": 1.0},
    ],
    ids=lambda options: "_".join(str(value) for value in options.values()),
)
def test_other_methods(case, doubt, options):
    model, double = doubted(case, doubt)
    found, expected = (ask(m, ("class", "left"), **options) for m in (model, double))
    # A ReLU of the backbone that opens in one precision only moves single pixels of the image.
    loose = 0.05 if options.get("method") == "input_gradient" else 5 * PEAK
    assert_same_maps(found, expected, loose)


@given(count=st.integers(1, 6), seed=st.integers(0, 99), power=st.integers(2, 34))
@settings(max_examples=12, deadline=None)
def test_any_number_of_boxes(count, seed, power):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([96.0, 160.0])
    low, high = corners.amin(dim=1), corners.amax(dim=1) + 4
    boxes = torch.cat([low, high], dim=1)
    model, double = MODELS.setdefault("pair", (build("fpn"), build("fpn").double()))
    shift = power * math.log(10)
    for m in (model, double):
        raise_logit(m, shift)
    try:
        found, expected = (ask(m, boxes=boxes) for m in (model, double))
        assert_same_maps(found, expected)
    finally:
        for m in (model, double):
            raise_logit(m, -shift)


MODELS = {}


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_float32_cannot_hold_is_flagged(case):
    """1 - p = 1e-40. Float64 still holds it, and sides owe nothing to the score."""
    model, double = doubted(case, 1e-40)
    found, expected = ask(model).odam_maps, ask(double).odam_maps
    # Sigmoids do not compete: the other class is as unsure as before.
    competes = case in ("fpn", "c4", "cascade")
    assert found.saturated.tolist() == [[True, competes, False]]
    assert not expected.saturated.any()
    combined = ask(model, ("combined", "class", "left")).odam_maps
    assert combined.saturated.tolist() == [[True, True, False]]
    # Parts of "combined" are normalised, which needs no range.
    full = ask(double, ("combined", "class", "left")).odam_maps
    a, b = (x.select("combined").dense(80, 48).double() for x in (combined, full))
    assert (a - b).abs().max() <= PEAK
    assert not ask(model, score="logit").odam_maps.saturated.any()


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_detections_stay_and_have_the_maps(case):
    model, _ = doubted(case, 1e-12)
    with torch.no_grad():
        plain = model(image())[0]["instances"]
    found = explain(model, image(), ("class",))[0]["instances"]
    assert torch.equal(found.scores, plain.scores)
    assert torch.equal(found.pred_boxes.tensor, plain.pred_boxes.tensor)
    sure = (found.scores > 1 - 1e-6).nonzero()[:3, 0]
    assert len(sure)
    assert loses_digits(found.scores[sure]).all()
    assert (found.odam_maps.values[sure].amax(dim=(1, 2, 3)) > 0).all()
    assert not found.odam_maps.saturated[sure].any()


def test_similar_maps_are_similar_however_sure_the_detector_is():
    """Squares of 1e-30 are zero in float32."""
    boxes = torch.tensor([[20.0, 30, 70, 120], [22.0, 31, 72, 119], [40.0, 5, 60, 60]])
    model, double = doubted("fpn", 1e-30)
    a, b = (ask(m, ("class",), boxes=boxes).odam_maps.similarity() for m in (model, double))
    assert a[0, 1] > 0.5
    torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-3)


def test_a_way_of_ones_own_from_logits_to_scores():
    """It is differentiated as it is; where its rounding costs the map, the flag says so."""
    model = build("fpn")
    plain = model.roi_heads.box_predictor

    class Warm(type(plain)):
        def predict_probs(self, predictions, proposals):
            scores, deltas = predictions
            return super().predict_probs((scores / 3, deltas), proposals)

    plain.__class__ = Warm
    references = rcnn_maps(model, image(), [NETWORK], [torch.tensor([LABEL])], TARGETS)
    maps = ask(model).odam_maps
    assert worst_error(maps, references[0]) <= 1e-5
    assert maps.saturated.tolist() == [[False, False, False]]
    raise_logit(model, 3 * 20)
    assert ask(model).odam_maps.saturated.tolist() == [[True, False, False]]


def test_another_scores_of_a_dense_adapter():
    """A subclass of an adapter that says what scores are, and nothing of their derivative."""

    class Warm(RetinaNetAdapter):
        def scores(self, outputs, kind):
            return super().scores([outputs[0] / 3, outputs[1]], kind)

    class WarmNet(RetinaNet):
        def forward_inference(self, images, features, predictions):
            logits, deltas = predictions
            warm = [[x / 3 for x in logits], deltas]
            return super().forward_inference(images, features, warm)

    model, labels = build("retinanet"), [torch.tensor([LABEL])]
    maps, scores = {}, {}
    register_adapter(WarmNet)(Warm)
    for score, kind in (("logit", RetinaNet), ("probability", WarmNet)):
        model.__class__ = kind
        found = explain_boxes(model, image(), [Boxes(NETWORK)], labels, ("class",), score=score)
        found = found[0]["instances"]
        maps[score], scores[score] = found.odam_maps.values, found.scores
    p = scores["probability"]
    torch.testing.assert_close(maps["probability"], maps["logit"] * (p * (1 - p) / 3)[0])

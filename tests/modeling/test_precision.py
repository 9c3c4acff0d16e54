"""
Autocast, half precision and a float64 default: detections are the model's own, and maps those of
full precision.
"""

from contextlib import contextmanager

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from oracle import SLIM, two_images, zoo_model
from test_confident import CASES
from tiny_detr import TARGETS, TinyDETR, score_and_sides
from torch import nn
from torchvision.ops import boxes
from training_cases import MASK, PANOPTIC

from odam_d2 import explain, explain_boxes, explain_outputs
from odam_d2.modeling.nms import OdamNms
from odam_d2.modeling.precision import full_precision_copy, runs_in_half
from odam_d2.modeling.settings import DRiseSettings, RiseSettings, VpsSettings

FAMILIES = {
    **CASES,
    "retinanet_gn": (
        CASES["retinanet"][0],
        ["MODEL.RETINANET.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 32],
    ),
    "mask": (MASK, ["MODEL.ROI_MASK_HEAD.CONV_DIM", 8]),
    "panoptic": (PANOPTIC, ["MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]),
}
HALF = (torch.bfloat16, torch.float16)
METHODS = [
    {},
    {"smoothing_sigma": 1.0},
    {"layer": "res4"},
    {"method": "input_gradient"},
    {"method": "grad_cam", "smoothing_sigma": 1.0},
    {"score": "logit", "norm_statistics": "exact"},
]


@torch.no_grad()
def spread_scores(model):
    """Untrained, all scores would be equal to the last bit of bfloat16: let logits differ by 2."""
    dtype = next(model.parameters()).dtype
    features = model.backbone(model.preprocess_image(images(dtype)).tensor)
    logits, _ = model.head([features[name] for name in model.head_in_features])
    model.head.cls_score.weight *= 2 / torch.cat([x.flatten() for x in logits]).std()


# Of hundreds of detections, the best few are enough.
FEW = ["MODEL.FCOS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 25,
       "MODEL.FCOS.TOPK_CANDIDATES_TEST", 25, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
       "TEST.DETECTIONS_PER_IMAGE", 6]  # fmt: skip


def build(family, dtype=torch.float32):
    name, opts = FAMILIES[family]
    model = zoo_model(name, opts=[*SLIM, *FEW, *opts], dtype=dtype)
    if hasattr(getattr(model, "head", None), "ctrness"):
        model.head.bbox_pred.bias.data.fill_(2)  # untrained, boxes would have no size
    if family == "retinanet":
        spread_scores(model)
    return model


def images(dtype=torch.float32):
    return [{"image": x["image"].to(dtype)} for x in two_images()]


def ask(model, dtype=torch.float32, **kwargs):
    """Maps of two boxes in one image and one in another."""
    given = [torch.tensor([[20.0, 30, 70, 120], [5, 5, 60, 60]]), torch.tensor([[9.0, 20, 80, 99]])]
    classes = [torch.tensor([5, 3]), torch.tensor([7])]
    return [x["instances"] for x in explain_boxes(model, images(dtype), given, classes, **kwargs)]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.odam_maps.values.dtype == b.odam_maps.values.dtype == torch.float32
        assert a.scores.dtype == torch.float32
        assert torch.equal(a.odam_maps.values, b.odam_maps.values)
        assert torch.equal(a.odam_maps.origins, b.odam_maps.origins)
        assert torch.equal(a.scores, b.scores)
        assert a.odam_maps.strides.dtype == torch.float32


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_given_boxes_under_autocast_are_explained_as_without(family, dtype):
    model = build(family)
    expected = ask(model)
    with torch.autocast("cpu", dtype=dtype):
        found = ask(model)
        product = torch.ones(1, 1) @ torch.ones(1, 1)
    assert product.dtype == dtype  # autocast is on again
    assert_equal(found, expected)


@pytest.mark.parametrize("family", ["fpn", "c4", "retinanet", "fcos"])
@pytest.mark.parametrize("options", METHODS, ids=lambda options: "_".join(map(str, options)))
def test_methods_under_autocast(family, options):
    model = build(family)
    expected = ask(model, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ask(model, **options)
    assert_equal(found, expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_detections_under_autocast(family, dtype):
    """Those of the model under autocast; the maps near those without it where both found them."""
    model = build(family)
    plain = [x["instances"] for x in explain(model, images())]
    with torch.autocast("cpu", dtype=dtype):
        with torch.no_grad():
            detected = [x["instances"] for x in model(images())]
        found = [x["instances"] for x in explain(model, images())]
    cosines = []
    for a, b, exact in zip(found, detected, plain, strict=True):
        assert len(a) == len(b) > 0
        for name in ("scores", "pred_classes"):
            assert a.get(name).dtype == b.get(name).dtype
            assert torch.equal(a.get(name), b.get(name))
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert a.odam_maps.values.dtype == torch.float32
        iou = pairwise_iou(Boxes(a.pred_boxes.tensor.float()), exact.pred_boxes)
        iou *= a.pred_classes[:, None] == exact.pred_classes
        best, index = iou.max(dim=1)
        pairs = (best > 0.97).nonzero()[:, 0]
        matched = a.odam_maps[pairs], exact.odam_maps[index[pairs]]
        one, two = (maps.dense(40, 40).flatten(2) for maps in matched)
        shown = (one.amax(2) > 0) & (two.amax(2) > 0)
        cosines.append(torch.nn.functional.cosine_similarity(one, two, dim=2)[shown])
    cosines = torch.cat(cosines)
    assert len(cosines) >= 5
    # Proposals, and the level that a box is pooled from, may be others for single detections.
    assert cosines.quantile(0.1) > 0.9


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["fpn", "cascade", "c4", "retinanet", "retinanet_gn", "fcos"])
def test_parameters_of_half_precision(family, dtype):
    """Equal to a float32 model whose parameters have the same few bits."""
    half, rounded = build(family).to(dtype), build(family).to(dtype).float()
    before = {name: (tensor, tensor.clone()) for name, tensor in half.state_dict().items()}
    expected, found = ask(rounded), ask(half, dtype)
    assert_equal(found, expected)
    with torch.autocast("cpu", dtype=dtype):
        assert_equal(ask(half, dtype), expected)
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == before[name][1].dtype
        assert torch.equal(tensor, before[name][1])


@pytest.mark.parametrize("family", ["fpn", "cascade", "c4", "retinanet", "fcos"])
def test_detections_of_a_model_in_half_precision(family, monkeypatch):
    """With scores cast up for NMS, which torchvision does not have in half precision on a CPU."""
    batched_nms = boxes.batched_nms
    monkeypatch.setattr(boxes, "batched_nms", lambda b, s, *rest: batched_nms(b, s.float(), *rest))
    model, inputs = build(family).half(), images(torch.float16)
    with torch.no_grad():
        detected = model(inputs)
    for output, expected in zip(explain(model, inputs), detected, strict=True):
        found, expected = output["instances"], expected["instances"]
        assert len(found)
        assert found.scores.dtype == expected.scores.dtype
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert found.odam_maps.values.dtype == torch.float32
        assert (found.odam_maps.values.amax(dim=(2, 3)) > 0).float().mean() > 0.8


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_default_of_float64_changes_nothing(family):
    model = build(family)
    expected, plain = ask(model), explain(model, images())
    with default_dtype(torch.float64):
        found, again = ask(model), explain(model, images())
    assert_equal(found, expected)
    for a, b in zip(again, plain, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        a, b = a["instances"].odam_maps, b["instances"].odam_maps
        assert a.values.dtype == torch.float32
        assert a.strides.dtype == torch.float32
        torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-6 * float(b.values.max()))


@pytest.mark.parametrize("family", ["fpn", "c4", "cascade", "retinanet", "fcos"])
def test_a_model_in_float64_by_default(family):
    """As who works in float64 throughout does."""
    model = build(family, torch.float64)
    expected = ask(model, torch.float64)
    with default_dtype(torch.float64):
        found = ask(model, torch.float64)
    for a, b in zip(found, expected, strict=True):
        a, b = a.odam_maps.values, b.odam_maps.values
        assert a.dtype == torch.float64
        # Detectron2 makes anchors in the default dtype.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.max()))


@pytest.mark.parametrize("family", ["fpn", "retinanet", "fcos"])
def test_nms_with_maps_under_autocast(family):
    model = build(family)
    nms = OdamNms(iou_thresh=0.4, sim_thresh_high=0.9, sim_thresh_low=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = explain(model, images(), ("class",), nms=nms, record=True)
    for output in outputs:
        assert len(output["instances"])
        maps, candidates = output["instances"].odam_maps, output["candidates"].odam_maps
        assert maps.values.dtype == candidates.values.dtype == torch.float32
        assert len(maps) <= len(candidates)


MASKS = {
    "d_rise": DRiseSettings(num_masks=4, batch_size=2, grid=4),
    "rise": RiseSettings(num_masks=8, batch_size=2, cell=1 / 2),
    "vps": VpsSettings(regions=3),
}


@pytest.mark.parametrize("method", sorted(MASKS))
@pytest.mark.parametrize("family", ["fpn", "retinanet"])
def test_masks_under_autocast(family, method):
    model = build(family)
    settings = {"method": method, method: MASKS[method]}
    plain = explain(model, images()[:1], ("class",), **settings)[0]["instances"]
    with default_dtype(torch.float64):
        double = explain(model, images()[:1], ("class",), **settings)[0]["instances"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = explain(model, images()[:1], ("class",), **settings)[0]["instances"]
    assert half.odam_maps.values.dtype == double.odam_maps.values.dtype == torch.float32
    assert half.odam_maps.values.max() > 0
    atol = 1e-3 * float(plain.odam_maps.values.max())
    torch.testing.assert_close(
        double.odam_maps.values, plain.odam_maps.values, rtol=1e-3, atol=atol
    )


@pytest.mark.parametrize("dtype", HALF)
def test_the_general_way_under_autocast(dtype):
    torch.manual_seed(0)
    detr = TinyDETR().eval()
    values = score_and_sides(detr)
    expected = explain_outputs(detr, two_images(), values, "backbone", TARGETS)
    with torch.autocast("cpu", dtype=dtype):
        found = explain_outputs(detr, two_images(), values, "backbone", TARGETS)
    with default_dtype(torch.float64):
        double = explain_outputs(detr, two_images(), values, "backbone", TARGETS)
    for a, b, c in zip(found, expected, double, strict=True):
        assert a.values.dtype == c.values.dtype == torch.float32
        assert torch.equal(a.values, b.values)
        torch.testing.assert_close(c.values, b.values, rtol=1e-4, atol=1e-6)


def test_the_general_way_in_half_precision():
    """What the function computes is its own; the maps are float32, and so are their sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, 4, 1), nn.ReLU(), nn.Conv2d(64, 2, 3, 4, 1)).eval()

    def values(dtype):
        def of_batch(inputs):
            batch = torch.stack([x["image"] for x in inputs]).to(dtype)
            return [x[None] for x in model(batch).flatten(2).mean(dim=2)]

        return of_batch

    pictures = [{"image": torch.rand(3, 64, 96)}]
    expected = explain_outputs(model, pictures, values(torch.float32), "0", ("a", "b"))[0]
    model.bfloat16()
    found = explain_outputs(model, pictures, values(torch.bfloat16), "0", ("a", "b"))[0]
    assert found.values.dtype == torch.float32
    error = (found.values - expected.values).abs().amax(dim=(2, 3))
    assert (error < 0.05 * expected.values.amax(dim=(2, 3))).all()
    assert (found.values.bfloat16().float() != found.values).any()  # more than bfloat16's bits


def test_what_counts_as_half():
    x = torch.ones(2)
    assert not runs_in_half(x)
    assert not runs_in_half(x.double())
    assert runs_in_half(x.bfloat16())
    with torch.autocast("cpu", dtype=torch.float16):
        assert runs_in_half(x)
        with torch.autocast("cpu", enabled=False):
            assert not runs_in_half(x)
            assert runs_in_half(x.half())


class Counted:
    def __init__(self):
        self.calls = 0

    def hook(self, *_):
        self.calls += 1


def test_a_copy_in_full_precision_shares_what_it_can():
    counted = Counted()
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model.order = [model[2], model[0]]  # as Detectron2's FPN keeps its convolutions
    model[0].register_forward_hook(counted.hook)
    copied = full_precision_copy(model)
    assert copied[0].weight.dtype == torch.float32
    assert torch.equal(copied[0].weight, model[0].weight.float())
    assert model[0].weight.dtype == torch.bfloat16
    assert copied[2].weight is not model[2].weight
    assert copied[2].weight.data_ptr() == model[2].weight.data_ptr()
    assert copied[1].running_mean is model[1].running_mean
    assert copied.order[1] is copied[0]
    copied.eval()(torch.ones(1, 2))
    assert counted.calls == 1
    assert model.training
    assert full_precision_copy(model[2]) is model[2]

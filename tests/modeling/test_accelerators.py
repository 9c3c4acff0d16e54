"""
Everything runs on an accelerator, where tensors of the host and of the device do not mix, and gives
what the CPU gives. The device is pretended, so that these tests run anywhere.
"""

import copy

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.structures import Instances
from device_counts import FAMILIES, NARROW_HEADS
from oracle import SLIM, two_images, zoo_model
from pretend_device import DEVICE, pretend
from test_outputs_explainer import WithBoxes
from test_outputs_explainer import detr as tiny_detr
from tiny_detr import TARGETS, score_and_sides
from training_cases import labelled_images, losses_of, training_model

from odam_d2 import explain, explain_boxes, explain_outputs
from odam_d2.data.pictures import read_picture
from odam_d2.engine import ExplainingPredictor, load_weights, setup_cfg
from odam_d2.evaluation import (
    CrowdEvaluator,
    ExplanationEvaluator,
    ExplanationProtocol,
    KnownCauseEvaluator,
)
from odam_d2.evaluation.faithfulness import FaithfulnessSettings
from odam_d2.modeling.nms import Nms, OdamNms, SoftNms
from odam_d2.modeling.settings import (
    DCloseSettings,
    DRiseSettings,
    RiseSettings,
    SmoothGradSettings,
    VpsSettings,
)

FEW = ["TEST.DETECTIONS_PER_IMAGE", 6, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
       "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 6, "MODEL.FCOS.TOPK_CANDIDATES_TEST", 6]  # fmt: skip
BOXES = [torch.tensor([[20.0, 30, 70, 120], [-5, 5, 300, 60]]), torch.tensor([[9.0, 20, 80, 99]])]
CLASSES = [torch.tensor([5, 3]), torch.tensor([7])]
ONE_CLASS = [torch.zeros_like(labels) for labels in CLASSES]
SHIPPED = "configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml"

# Of the peak of a map: another order of summation.
ROUNDING = 1e-5


def build(family, *opts):
    name, changes = FAMILIES[family]
    return zoo_model(name, opts=[*SLIM, *NARROW_HEADS, *FEW, *changes, *opts])


def on_both(model, run):
    """What a function of a model returns on the CPU and, copied to the CPU, on the device."""
    with pretend():
        there = copy.deepcopy(model).to(DEVICE)
        found = run(there)
        assert all(of.device == DEVICE for of in tensors(found))
        found = to_host(found)
    return run(model), found


def tensors(results):
    """What lies on a device, of anything that a test returns."""
    if isinstance(results, torch.Tensor):
        yield results
    elif isinstance(results, dict):
        yield from tensors(list(results.values()))
    elif isinstance(results, (list, tuple)):
        for result in results:
            yield from tensors(result)
    elif isinstance(results, Instances):
        yield from tensors(results.get_fields())
    elif hasattr(results, "values"):
        yield results.values
        yield results.origins


def to_host(results):
    if isinstance(results, dict):
        return {key: to_host(value) for key, value in results.items()}
    if isinstance(results, (list, tuple)):
        return [to_host(result) for result in results]
    return results.to("cpu") if hasattr(results, "to") else results


def assert_same(found, expected, rtol=0):
    """Detections bit for bit, or up to a relative difference, and maps up to rounding."""
    assert len(found) == len(expected)
    for name, value in expected.get_fields().items():
        if name == "odam_maps":
            assert_same_maps(found.odam_maps, value)
        else:
            pair = (getattr(x, "tensor", x) for x in (found.get(name), value))
            of_maps = name == "suppressed_correlation"
            least = ROUNDING if of_maps else 0
            torch.testing.assert_close(*pair, rtol=max(rtol, least), atol=least, equal_nan=True)


def assert_same_maps(found, expected):
    assert found.targets == expected.targets
    for name in ("strides", "grid_sizes", "image_sizes", "levels", "saturated"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    # Windows may be of other sizes: what they show is compared.
    a, b = found.dense(40, 60), expected.dense(40, 60)
    assert b.any()
    peak = b.amax(dim=(2, 3), keepdim=True)
    assert ((a - b).abs() <= ROUNDING * peak).all()


def assert_same_results(found, expected, fields=("instances",), rtol=0):
    for a, b in zip(found, expected, strict=True):
        for field in fields:
            assert_same(a[field], b[field], rtol)


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_and_given_boxes(family):
    model = build(family)
    expected, found = on_both(model, lambda model: explain(model, two_images()))
    assert sum(len(x["instances"]) for x in expected) >= 8
    assert_same_results(found, expected)
    classes = ONE_CLASS if family == "keypoint" else CLASSES
    expected, found = on_both(model, lambda m: explain_boxes(m, two_images(), BOXES, classes))
    assert_same_results(found, expected)


@pytest.mark.parametrize("family", ["faster", "retinanet"])
def test_one_image_and_none_that_has_something(family):
    model = build(family, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99,
                  "MODEL.RETINANET.SCORE_THRESH_TEST", 0.99)  # fmt: skip
    expected, found = on_both(model, lambda model: explain(model, two_images()[:1]))
    assert len(found[0]["instances"]) == len(expected[0]["instances"]) == 0
    assert found[0]["instances"].odam_maps.targets == TARGETS


@pytest.mark.parametrize("family", ["faster", "retinanet"])
@pytest.mark.parametrize(
    "settings",
    [
        {"layer": "res4"},
        {"method": "input_gradient", "targets": ("class", "left")},
        {"method": "grad_cam"},
        {"method": "grad_cam_pp"},
        {"method": "smooth_grad", "smooth_grad": SmoothGradSettings(2)},
        {"method": "vps", "targets": ("class", "left"), "vps": VpsSettings(3, 12, batch_size=4)},
        {"method": "d_close", "d_close": DCloseSettings(4, levels=1, enlarge=0.3, batch_size=4)},
        {"method": "rise", "rise": RiseSettings(4, 1 / 2, 2, batch_size=2)},
        {"method": "d_rise", "targets": ("class",), "d_rise": DRiseSettings(4, 4, batch_size=2)},
        {"smoothing_sigma": 1.0, "score": "logit", "targets": ("class:3", "left", "combined")},
    ],
    ids=lambda settings: "_".join(map(str, settings.values()))[:20],
)
def test_methods(family, settings):
    expected, found = on_both(
        build(family), lambda model: explain(model, two_images(), **{"targets": TARGETS} | settings)
    )
    assert_same_results(found, expected)


@pytest.mark.parametrize("family", ["faster", "retinanet"])
@pytest.mark.parametrize("nms", [Nms(), SoftNms(), OdamNms()], ids=lambda nms: type(nms).__name__)
def test_another_nms_and_its_record(family, nms):
    model = build(family, "MODEL.RPN.POST_NMS_TOPK_TEST", 2)  # candidates: of every class
    expected, found = on_both(model, lambda m: explain(m, two_images(), nms=nms, record=True))
    assert_same_results(found, expected, ("instances", "candidates"))


@pytest.mark.parametrize("family", ["faster", "retinanet"])
def test_autocast(family):
    """Maps are of full precision; what was detected is of half, and so only nearly the CPU's."""
    model = build(family)
    (expected, *_), _ = on_both(model, lambda m: explain_boxes(m, two_images(), BOXES, CLASSES))
    with pretend(), torch.autocast("pretend", dtype=torch.bfloat16):
        model.to(DEVICE)
        (found, *_) = explain_boxes(model, two_images(), BOXES, CLASSES)
        assert (
            (
                model.backbone(model.preprocess_image(two_images()).tensor)[
                    "p6" if family == "retinanet" else "p5"
                ]
            ).dtype
            == torch.bfloat16
        )
        detected = explain(model, two_images())
    assert_same(to_host(found)["instances"], expected["instances"])
    assert all(len(x["instances"].odam_maps) == len(x["instances"]) > 0 for x in detected)


@pytest.mark.parametrize("case", ["fpn", "c4", "cascade", "retinanet", "fcos"])
def test_the_loss_on_heat_maps_forwards_and_backwards(case):
    model, inputs = training_model(case), labelled_images()

    def step(model):
        losses, _ = losses_of(model, inputs)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return dict(losses), gradients

    (losses, gradients), (losses_there, gradients_there) = on_both(model, step)
    assert losses["loss_odam"] > 0
    for name, loss in losses.items():
        torch.testing.assert_close(losses_there[name].detach(), loss.detach(), rtol=1e-4, atol=0)
    assert gradients.keys() == gradients_there.keys()
    # In float32, and with large features, because batch norm is frozen: products round otherwise.
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        assert (gradients_there[name] - gradient).norm() <= 1e-2 * (gradient.norm() + 0.01 * total)


def test_whatever_a_function_computes():
    model = tiny_detr()
    expected, found = on_both(
        model,
        lambda m: explain_outputs(m, images_of(m), score_and_sides(m), "backbone", TARGETS),
    )
    for a, b in zip(found, expected, strict=True):
        assert_same_maps(a, b)


def images_of(model):
    """TinyDETR leaves copying to its caller."""
    device = next(model.parameters()).device
    return [{"image": x["image"].to(device)} for x in two_images()]


def test_a_registered_explainer():
    model = tiny_detr(WithBoxes)
    expected, found = on_both(model, lambda m: explain(m, images_of(m), TARGETS))
    assert_same_results(found, expected, rtol=1e-5)  # torch fuses transformers on the CPU
    classes = [labels % 3 for labels in CLASSES]
    expected, found = on_both(model, lambda m: explain_boxes(m, images_of(m), BOXES, classes))
    assert_same_results(found, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def picture():
    """An image of CrowdShapes, as a loader gives it."""
    cfg = setup_cfg(SHIPPED, ["MODEL.DEVICE", "cpu"])
    loader = build_detection_test_loader(cfg, "crowdshapes_val", num_workers=0)
    return next(iter(loader))[0]


def shipped_model():
    cfg = setup_cfg(SHIPPED, ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    load_weights(model, cfg.MODEL.WEIGHTS)
    return model


def test_evaluators(picture):
    faithfulness = FaithfulnessSettings(per_image=1, steps=1)

    def evaluate(model):
        outputs = model([picture])
        results = {}
        protocol = ExplanationProtocol(faithfulness=faithfulness)
        for evaluator in (
            CrowdEvaluator("crowdshapes_val"),
            KnownCauseEvaluator("crowdshapes_val"),
            ExplanationEvaluator("crowdshapes_val", protocol=protocol, model=model),
        ):
            evaluator.reset()
            evaluator.process([picture], outputs)
            results |= evaluator.evaluate()
        return results

    expected, found = on_both(shipped_model(), evaluate)
    assert found.keys() == expected.keys() >= {"known_causes", "explanation-class"}
    for name, figures in expected.items():
        assert found[name] == pytest.approx(figures, rel=1e-4, nan_ok=True)
    assert expected["explanation-class"]["num_detections"] > 0


def test_the_demo_predicts(picture):
    image = read_picture(picture["file_name"])
    expected = ExplainingPredictor(setup_cfg(SHIPPED, ["MODEL.DEVICE", "cpu"]))
    with pretend():
        predictor = ExplainingPredictor(setup_cfg(SHIPPED, ["MODEL.DEVICE", str(DEVICE)]))
        assert next(predictor.detector.model.parameters()).device == DEVICE
        found, candidates = predictor(image)["instances"], predictor.candidates(image)
        assert found.scores.device == candidates.scores.device == DEVICE
        found, candidates = found.to("cpu"), candidates.to("cpu")
    assert_same(found, expected(image)["instances"])
    assert_same(candidates, expected.candidates(image))

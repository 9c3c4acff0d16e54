"""
Every map equals plain autograd, one (instance, target) at a time, on architectures of the zoo: two
image sizes in a batch, H != W, boxes over the border, of one pixel, larger than the image.
"""

import pytest
import torch
from detectron2.structures import Boxes
from oracle import (
    SLIM,
    TARGETS,
    detection_maps,
    detections_error,
    rcnn_maps,
    retinanet_maps,
    two_images,
    with_constant_statistics,
    worst_error,
    zoo_model,
)

from odam_d2 import explain, explain_boxes
from odam_d2.modeling.adapters import RCNNAdapter
from odam_d2.modeling.adapters.anchors import nearest_anchors
from odam_d2.modeling.attribution import gradients, pooled, windows
from odam_d2.modeling.attribution.head_maps import head_maps
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import preserved

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}

BOXES = [
    [[10, 10, 60, 100], [-30, -20, 40, 70], [150, 90, 230, 150], [5, 5, 6, 6], [0, 0, 200, 128]],
    [[20, 30, 70, 140]],
]
CLASSES = [[0, 5, 79, 3, 7], [2]]
FIRST_SCALE = [384 / 200, 2.0, 384 / 200, 2.0]  # output size over network size of image 0


def given_boxes(dtype):
    """Boxes at the network's input and at the output, and classes."""
    network = [torch.tensor(b, dtype=dtype) for b in BOXES]
    output = [network[0] * torch.tensor(FIRST_SCALE, dtype=dtype), network[1]]
    return network, output, [torch.tensor(c) for c in CLASSES]


def rcnn_references(model, inputs, network, classes, score, sigma=0.0):
    return rcnn_maps(model, inputs, network, classes, TARGETS, score, sigma)


def retinanet_references(model, inputs, network, classes, score, sigma=0.0):
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs).tensor)
    anchors = model.anchor_generator([features[name] for name in model.head_in_features])
    origins = [nearest_anchors(Boxes(boxes), anchors) for boxes in network]
    return retinanet_maps(model, inputs, origins, classes, TARGETS, score, sigma)


CASES = [
    ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", rcnn_references, []),
    ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", rcnn_references, []),
    ("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", rcnn_references, []),
    (
        "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        rcnn_references,
        ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
         "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", "MODEL.ROI_BOX_HEAD.NUM_CONV", 1,
         "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.NORM", "GN"],
    ),
    ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", retinanet_references, []),
    (
        "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
        retinanet_references,
        ["MODEL.RETINANET.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 32],
    ),
]  # fmt: skip
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
IDS = ["fpn", "c4", "dc5", "agnostic_conv_gn", "retinanet", "retinanet_gn"]


def check(model, references, dtype, score="probability", oracle=None, **settings):
    network, output, classes = given_boxes(dtype)
    inputs = two_images(dtype)
    expected = references(oracle or model, inputs, network, classes, score)
    for signed in (False, True):
        how = settings | {"score": score, "signed": signed}
        found = explain_boxes(model, inputs, output, classes, TARGETS, **how)
        for result, rows in zip(found, expected, strict=True):
            maps = result["instances"].odam_maps
            assert maps.signed == bool((maps.values < 0).any()) == signed
            assert worst_error(maps, rows) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize(("name", "references", "opts"), CASES, ids=IDS)
def test_given_boxes_on_slim_models(name, references, opts, score, dtype):
    model = zoo_model(name, dtype=dtype, opts=SLIM + opts)
    check(model, references, dtype, score, norm_statistics="exact")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_group_norm_with_constant_statistics(dtype):
    name, references, opts = CASES[-1]
    model = zoo_model(name, dtype=dtype, opts=SLIM + opts)
    check(model, references, dtype, oracle=with_constant_statistics(model))


@pytest.mark.parametrize(
    ("name", "references"),
    [CASES[0][:2], CASES[4][:2]],
    ids=["faster_rcnn_R_50_FPN", "retinanet_R_50_FPN"],
)
def test_given_boxes_at_full_width(name, references):
    """The zoo's own widths, where float32 has the most to add up."""
    check(zoo_model(name), references, torch.float32)


@pytest.mark.parametrize("chunk_mb", [0.001, 0.3])
@pytest.mark.parametrize(("name", "references"), [CASES[0][:2], CASES[4][:2]])
def test_chunks_do_not_change_maps(name, references, chunk_mb):
    model = zoo_model(name, dtype=torch.float64, opts=SLIM)
    check(model, references, torch.float64, chunk_mb=chunk_mb)


@pytest.mark.parametrize("name", [CASES[0][0], CASES[1][0], CASCADE, CASES[4][0]])
def test_detections(together, name):
    """
    Detections are explained where they came from: against Detectron2's own inference, end to end.
    """
    model = zoo_model(name, opts=SLIM)
    for image, signed in zip(two_images(), (False, True), strict=True):
        assert detections_error(model, image, signed=signed) <= 1e-5


def test_stages_of_a_cascade_on_different_levels(monkeypatch, together):
    """A stage that moves its box to another level of the pyramid: maps are added on the finest."""
    model = zoo_model(CASCADE, opts=SLIM)
    for predictor in model.roi_heads.box_predictor:
        predictor.bbox_pred.bias.data[2:] = 5.0  # grows the box, by exp(1), exp(1/2), exp(1/3)
    traces = []
    original = RCNNAdapter.trace_regions

    def record(self, *args):
        traces.append(original(self, *args))
        return traces[-1]

    monkeypatch.setattr(RCNNAdapter, "trace_regions", record)
    for image, signed in zip(two_images(), (True, False), strict=True):
        assert detections_error(model, image, signed=signed) <= 1e-5
    assert any(len(levels.unique()) > 1 for trace in traces for levels in trace.levels)


def test_autograd_is_an_equal_way():
    """What a family without a fast way gets, also where stages read different levels."""
    model = zoo_model(CASCADE, opts=SLIM)
    for predictor in model.roi_heads.box_predictor:
        predictor.bbox_pred.bias.data[2:] = 5.0
    image = two_images()[0]
    fast = explain(model, [image], signed=True)[0]["instances"].odam_maps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "head_maps", head_maps.dispatch(object))
        slow = explain(model, [image], signed=True)[0]["instances"].odam_maps
    for a, b in zip(
        fast.dense(32, 48).flatten(0, 1), slow.dense(32, 48).flatten(0, 1), strict=True
    ):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(
    ("name", "owner", "function", "read"),
    [
        # Outputs of the towers of classes and boxes, for each target.
        (CASES[4][0], windows, "_differentiated", [[0], [1]]),
        # Targets, for each of three stages.
        (CASCADE, pooled, "pooled_gradients", [[0], [0], [0, 1]]),
    ],
)
def test_only_what_a_target_reads_is_differentiated(monkeypatch, name, owner, function, read):
    """The class reads one tower, a side the other one or the last stage: the rest is None."""
    found, original = [], getattr(owner, function)

    def record(*args, **kwargs):
        found.append(original(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(owner, function, record)
    model = zoo_model(name, opts=SLIM)
    explain(model, two_images()[:1], ("class", "left"))
    if owner is pooled:
        assert [used for used, _ in found[0]] == read
    else:
        _, _, seeds = found[0]
        assert [list(of_target) for of_target in seeds] == read


def test_detections_of_a_batch():
    """Instances of one image must not be explained on another."""
    model = zoo_model(CASCADE, dtype=torch.float32, opts=SLIM)
    results = explain(model, two_images())
    for result, (detections, rows) in zip(
        results, detection_maps(model, two_images()), strict=True
    ):
        assert len(detections) == len(result["instances"])
        assert worst_error(result["instances"].odam_maps, rows) <= 1e-5


@pytest.mark.parametrize(("name", "references"), [CASES[0][:2], CASES[4][:2]])
def test_smoothing_equals_smoothing_the_full_gradient(name, references):
    """A window cut without the Gaussian's margin, or smoothed after the product, would differ."""
    model = zoo_model(name, dtype=torch.float64, opts=SLIM)
    network, output, classes = given_boxes(torch.float64)
    inputs = two_images(torch.float64)
    how = {"smoothing_sigma": 1.0, "signed": True}
    found = explain_boxes(model, inputs, output, classes, TARGETS, **how)
    expected = references(model, inputs, network, classes, "probability", sigma=1.0)
    for result, rows in zip(found, expected, strict=True):
        assert worst_error(result["instances"].odam_maps, rows) <= 1e-10


def test_combined_is_the_maximum_of_the_normalised_others(slim_model):
    _, output, classes = given_boxes(torch.float32)
    inputs = two_images()

    def maps(*targets):
        return explain_boxes(slim_model, inputs, output, classes, targets)[0]["instances"].odam_maps

    both = maps("left", "combined", "class")
    assert both.targets == ("left", "combined", "class")
    expected = both.select(["left", "class"]).normalized().values.amax(1)
    assert torch.equal(both.select("combined").values[:, 0], expected)
    alone = maps("combined")
    expected = maps("class", "left", "top", "right", "bottom").normalized().values.amax(1)
    assert torch.equal(alone.values[:, 0], expected)


DEGENERATE = [
    [[60, 50, 60, 50], [40, 20, 40, 90], [20, 70, 120, 70], [-50, -60, -10, -20]],
    [[96, 160, 96, 160], [95.5, 10, 130, 60]],
]


@pytest.mark.parametrize(("name", "references"), [CASES[0][:2], CASES[1][:2], CASES[4][:2]])
def test_boxes_without_area_or_outside(together, name, references):
    """A point, lines, a box that lies off the image, the last corner: each has its exact map."""
    model = zoo_model(name, dtype=torch.float64, opts=SLIM)
    inputs = two_images(torch.float64)
    network = [torch.tensor(boxes, dtype=torch.float64) for boxes in DEGENERATE]
    output = [network[0] * torch.tensor(FIRST_SCALE, dtype=torch.float64), network[1]]
    classes = [torch.tensor([0, 5, 79, 3]), torch.tensor([2, 7])]
    found = explain_boxes(model, inputs, output, classes, TARGETS)
    expected = references(model, inputs, network, classes, "probability")
    for result, rows, boxes in zip(found, expected, output, strict=True):
        maps = result["instances"].odam_maps
        assert torch.equal(result["instances"].pred_boxes.tensor, boxes.float())
        assert maps.values.isfinite().all()
        assert worst_error(maps, rows) <= BOUND[torch.float64]


@pytest.mark.parametrize("name", [CASES[0][0], CASES[1][0], CASCADE, CASES[4][0]])
def test_two_batches_explained_by_one_object(name):
    """Nothing of a batch is left for the next one, of another size and number of images."""
    model = zoo_model(name, opts=[*SLIM, "TEST.DETECTIONS_PER_IMAGE", 4])
    first, second = two_images()
    batches = [[first, second], [second], [first]]
    settings = ExplainSettings(targets=("class", "left"))
    with preserved(model) as model:
        explanation = Explanation.of(model, settings)
        found = [explanation.run(batch, lambda view, batch=batch: view(batch)) for batch in batches]
    for batch, results in zip(batches, found, strict=True):
        for ours, theirs in zip(results, explain(model, batch, settings.targets), strict=True):
            ours, theirs = ours["instances"], theirs["instances"]
            assert torch.equal(ours.scores, theirs.scores)
            assert torch.equal(ours.odam_maps.values, theirs.odam_maps.values)
            assert torch.equal(ours.odam_maps.origins, theirs.odam_maps.origins)

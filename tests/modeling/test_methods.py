"""
What ODAM is compared with, against plain autograd through Detectron2's own inference (in float32:
its RPN knows nothing else).
"""

import pytest
import torch
from oracle import FASTER_RCNN, RETINANET, SLIM, detections_error, two_images, zoo_model

from odam_d2 import explain, explain_boxes
from odam_d2.core.errors import InputError
from odam_d2.modeling.attribution import method_names
from odam_d2.modeling.attribution.position import PositionMethod
from odam_d2.modeling.settings import (
    DCloseSettings,
    DRiseSettings,
    RiseSettings,
    SmoothGradSettings,
    VpsSettings,
)

CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
CASCADE_BOXES = ["MODEL.MASK_ON", False, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6, 0.7)]


def plain_grad_cam(gradient, feature):
    total = torch.zeros_like(feature[0])
    for of_channel, values in zip(gradient, feature, strict=True):
        total += of_channel.mean() * values
    return total


def plain_grad_cam_pp(gradient, feature):
    total = torch.zeros_like(feature[0])
    for g, values in zip(gradient, feature, strict=True):
        below = 2 * g**2 + values.sum() * g**3
        alpha = torch.where(below == 0, torch.zeros_like(g), g**2 / below)
        total += (alpha * g.clamp(min=0)).sum() * values
    return total


def plain_centred(gradient, feature):
    total = torch.zeros_like(feature[0])
    for g, values in zip(gradient, feature, strict=True):
        total += g * (values - values.sum() / values.numel())
    return total


def plain_gradient_norm(gradient, feature):
    squares = torch.zeros_like(feature[0])
    for g in gradient:
        squares += g**2
    return squares**0.5


RULES = {
    "centred": plain_centred,
    "grad_cam": plain_grad_cam,
    "grad_cam_pp": plain_grad_cam_pp,
    "gradient_norm": plain_gradient_norm,
}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
@pytest.mark.parametrize("method", sorted(RULES))
def test_cams_equal_plain_autograd(method, name, number):
    model = zoo_model(name, opts=SLIM)
    image = two_images()[number]
    signed = number == 1 and method != "gradient_norm"  # which is never negative
    settings = {"method": method, "rule": RULES[method], "signed": signed}
    error = detections_error(model, image, limit=5, **settings)
    assert error <= 1e-4


@pytest.mark.parametrize("method", sorted(RULES))
def test_cams_on_a_layer_of_the_backbone(method):
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    module = (model.backbone.bottom_up.res4, 16, 0)
    settings = {"layer": "res4", "targets": ("class", "left", "top", "right", "bottom"),
                "signed": method != "gradient_norm"}  # fmt: skip
    error = detections_error(
        model,
        two_images()[1],
        limit=3,
        module=module,
        method=method,
        rule=RULES[method],
        **settings,
    )
    assert error <= 1e-4


def input_gradients(model, image):
    """Scores and boxes of Detectron2's inference, and for each score the gradient by the image."""
    images = model.preprocess_image([image])
    images.tensor = images.tensor.detach().requires_grad_()
    with torch.enable_grad():
        features = model.backbone(images.tensor)
        if hasattr(model, "roi_heads"):
            proposals, _ = model.proposal_generator(images, features, None)
            (found,), _ = model.roi_heads(images, features, proposals)
        else:
            features = [features[f] for f in model.head_in_features]
            (found,) = model.forward_inference(images, features, model.head(features))
    gradients = [
        torch.autograd.grad(score, images.tensor, retain_graph=True)[0][0] for score in found.scores
    ]
    return found, gradients


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_input_gradient_equals_plain_autograd(name):
    opts = [*SLIM, "TEST.DETECTIONS_PER_IMAGE", 4]
    model = zoo_model(name, opts=opts)
    image = {"image": two_images()[0]["image"]}
    (output,) = explain(model, [image], ("class",), method="input_gradient")
    maps = output["instances"].odam_maps
    found, gradients = input_gradients(model, image)
    boxes = found.pred_boxes.clone()
    boxes.clip(found.image_size)
    ours = output["instances"]
    distance = torch.cdist(ours.pred_boxes.tensor, boxes.tensor.detach(), p=1)
    distance += 1e6 * (ours.pred_classes[:, None] != found.pred_classes)
    assert distance.amin(dim=1).max() < 1e-2
    for row, number in enumerate(distance.argmin(dim=1).tolist()):
        largest = torch.zeros_like(gradients[number][0])
        for channel in gradients[number]:
            largest = torch.maximum(largest, channel.abs())
        error = (maps.values[row, 0] - largest).abs().max() / largest.max()
        assert error <= 1e-4
    height, width = image["image"].shape[-2:]
    # One cell for each pixel: rendered at the input's size, nothing is resampled.
    torch.testing.assert_close(maps.dense(height, width)[:, 0], maps.values[:, 0, :height, :width])


@pytest.mark.parametrize("method", method_names())
def test_every_method_explains_the_same_detections_and_gives_the_model_back(slim_model, method):
    plain = slim_model(two_images())
    before = [(m.training, len(m._forward_hooks)) for m in slim_model.modules()]
    few = {
        "d_rise": DRiseSettings(num_masks=3),
        "rise": RiseSettings(num_masks=3),
        "smooth_grad": SmoothGradSettings(num_samples=1),
        "d_close": DCloseSettings(num_masks=3, levels=2, segments=10),
        "vps": VpsSettings(regions=4, max_passes=20),
    }
    found = explain(slim_model, two_images(), ("class",), method=method, **few)
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours["instances"].scores == theirs["instances"].scores).all()
        boxes = ours["instances"].pred_boxes.tensor
        assert (boxes == theirs["instances"].pred_boxes.tensor).all()
        maps = ours["instances"].odam_maps
        assert maps.targets == ("class",)
        assert (maps.values >= 0).all()
        assert maps.values.isfinite().all()
        assert maps.image_sizes.unique(dim=0).shape[0] == 1
        fields = set(theirs["instances"].get_fields()) | {"odam_maps"}
        assert set(ours["instances"].get_fields()) == fields
    assert [(m.training, len(m._forward_hooks)) for m in slim_model.modules()] == before
    assert all(p.grad is None for p in slim_model.parameters())


SIGNED = ("centred", "g_came", "grad_cam", "grad_cam_pp", "integrated_gradients", "odam", "rise",
          "ss_grad_cam_pp")  # fmt: skip


@pytest.mark.parametrize("method", method_names())
def test_signed_maps_are_the_plain_ones_above_zero_or_refused(slim_model, method):
    """What is never negative has no evidence against; all others leave out the ReLU only."""
    how = {"method": method, "rise": RiseSettings(num_masks=8)}
    targets = ("class", "left")
    if method not in SIGNED:
        with pytest.raises(InputError, match=rf"method '{method}' makes maps without a sign"):
            explain(slim_model, two_images(), targets[:1], signed=True, **how)
        return
    for plain, signed in zip(
        explain(slim_model, two_images(), targets, **how),
        explain(slim_model, two_images(), targets, signed=True, **how),
        strict=True,
    ):
        plain, signed = plain["instances"].odam_maps, signed["instances"].odam_maps
        assert (plain.signed, signed.signed) == (False, True)
        assert torch.equal(signed.positive().values, plain.values)
        assert (signed.values < 0).any()


@pytest.mark.parametrize("method", method_names())
def test_no_detection_gives_no_map(method):
    model = zoo_model(FASTER_RCNN, opts=[*SLIM, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0])
    signed = method in SIGNED
    (output,) = explain(model, two_images()[:1], ("class",), method=method, signed=signed)
    assert len(output["instances"]) == len(output["instances"].odam_maps) == 0
    assert output["instances"].odam_maps.signed == signed


def test_methods_explain_given_boxes_too(slim_model):
    boxes, classes = [torch.tensor([[10.0, 20, 90, 100]])], [torch.tensor([3])]
    few = {"rise": RiseSettings(num_masks=8)}
    for method in ("grad_cam", "input_gradient", "rise"):
        (output,) = explain_boxes(
            slim_model, two_images()[:1], boxes, classes, ("class", "left"), method=method, **few
        )
        assert output["instances"].odam_maps.values[0].any()
    with pytest.raises(InputError, match="boxes need another method"):
        explain_boxes(slim_model, two_images()[:1], boxes, classes, ("class",), method="d_rise")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gradcam"}, "'gradcam'; it must be one of odam, box_blob, box_centre, "),
        ({"method": "d_rise", "targets": ("class", "left")}, "not 'left'"),
        ({"method": "input_gradient", "layer": "res4"}, "leave layer empty"),
        ({"method": "integrated_gradients", "layer": "res4"}, "leave layer empty"),
        ({"method": "smooth_grad", "layer": "res4"}, "leave layer empty"),
        ({"method": "rise", "layer": "res4"}, "layer is 'res4'; RISE differentiates nothing"),
        ({"method": "rise", "smoothing_sigma": 1.0}, "smoothing_sigma is 1.0; RISE"),
        ({"signed": 1}, "signed is 1; it must be"),
        ({"signed": True, "targets": ("class", "combined")}, "targets has 'combined'"),
        ({"signed": True, "method": PositionMethod(0.25)}, "makes maps without a sign"),
    ],
)
def test_what_cannot_be_is_told(slim_model, settings, message):
    with pytest.raises(InputError, match=message):
        explain(slim_model, two_images(), **settings)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_masks", 0), ("keep_prob", 1.0), ("settled", 0.0), ("batch_size", 0), ("grid", 0)],
)
def test_d_rise_settings_are_checked(field, value):
    with pytest.raises(InputError, match=f"{field} is {value}"):
        DRiseSettings(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_masks", 0),
        ("cell", 0),
        ("parts", 1),
        ("blur", 0),
        ("smoothing", -1),
        ("side_smoothing", -1),
    ],
)
def test_rise_settings_are_checked(field, value):
    with pytest.raises(InputError, match=f"{field} is {value}"):
        RiseSettings(**{field: value})

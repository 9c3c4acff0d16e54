"""Presets choose method and layer, for every family, and are refused beside them."""

import pytest
import torch
from detectron2.config import get_cfg
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from test_outputs_explainer import Registered

from odam_d2 import ExplainSettings, add_odam_config, explain
from odam_d2.core.errors import InputError
from odam_d2.modeling.layers import finest_layer
from odam_d2.modeling.settings import RiseSettings

OPTS = [*SLIM, "TEST.DETECTIONS_PER_IMAGE", 3]
TARGETS = ("left", "class", "bottom", "combined")
FEW = RiseSettings(num_masks=4)


@pytest.fixture(scope="module", params=[FASTER_RCNN, RETINANET])
def model(request):
    return zoo_model(request.param, opts=OPTS)


def maps_of(model, targets, **settings):
    return [x["instances"].odam_maps for x in explain(model, two_images(), targets, **settings)]


def test_faithful_is_rise(model):
    ours = maps_of(model, TARGETS, preset="faithful", rise=FEW)
    theirs = maps_of(model, TARGETS, method="rise", rise=FEW)
    for a, b in zip(ours, theirs, strict=True):
        assert a.targets == b.targets
        torch.testing.assert_close(a.values, b.values)


@pytest.mark.parametrize("signed", [False, True])
def test_gradient_is_of_sides_on_the_finest_layer_and_of_classes_on_what_the_head_reads(
    model, signed
):
    targets = TARGETS[: 3 if signed else 4]  # no maximum of signed maps
    sides = {"method": "centred", "layer": "res2", "smoothing_sigma": 1.5}
    found = zip(
        maps_of(model, targets, preset="gradient", signed=signed),
        maps_of(model, ("left", "bottom"), **sides, signed=signed),
        maps_of(model, ("class",), method="integrated_gradients", signed=signed),
        strict=True,
    )
    for ours, of_sides, of_class in found:
        assert len(ours) == 3
        assert ours.signed == bool((ours.values < 0).any()) == signed
        assert ours.strides.tolist() == [4.0] * 3
        values = ours.on_grid(4.0)
        for column, (maps, target) in enumerate(
            [(of_sides, "left"), (of_class, "class"), (of_sides, "bottom")]
        ):
            expected = maps.select(target).on_grid(4.0)[:, 0]
            assert expected.any()
            torch.testing.assert_close(values[:, column], expected)


def test_detections_are_those_of_the_model(model):
    plain = model(two_images())
    for result, before in zip(explain(model, two_images(), preset="gradient"), plain, strict=True):
        assert torch.equal(result["instances"].scores, before["instances"].scores)


def test_a_model_explained_by_its_outputs():
    model = Registered().eval()
    ours = maps_of(model, ("class", "left"), preset="gradient")
    theirs = maps_of(model, ("left",), method="centred", smoothing_sigma=1.5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.select("left").on_grid(16.0), b.on_grid(16.0))


@pytest.mark.parametrize("settings", [{"method": "odam"}, {"layer": "res4"}, {"layer": ""}])
def test_refused_beside_a_method_or_a_layer(model, settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"^preset is 'faithful', .* leave {name} out$"):
        explain(model, two_images(), preset="faithful", **settings)


@pytest.mark.parametrize(("key", "value"), [("METHOD", "grad_cam"), ("LAYER", "res4")])
def test_refused_in_configs(key, value):
    cfg = get_cfg()
    add_odam_config(cfg)
    cfg.MODEL.ODAM.PRESET = "gradient"
    ExplainSettings.from_config(cfg)
    cfg.MODEL.ODAM[key] = value
    message = rf"^MODEL.ODAM.PRESET is 'gradient', .* MODEL.ODAM.{key} is '{value}'"
    with pytest.raises(InputError, match=message):
        ExplainSettings.from_config(cfg)


def test_arguments_win_over_what_a_model_was_configured_with():
    model = zoo_model(FASTER_RCNN, opts=OPTS)
    model.odam = ExplainSettings(method="grad_cam", layer="res4", smoothing_sigma=1.0)
    plain = maps_of(model, ("class",), preset="gradient")
    model.odam = ExplainSettings(preset="faithful", rise=FEW)
    (masked, *_) = maps_of(model, ("class",))
    assert masked.grid_sizes[0].tolist() == [32, 50]  # 128 x 200 pixels, four a cell
    model.odam = ExplainSettings(preset="gradient")
    again = maps_of(model, ("class",))
    torch.testing.assert_close(again[0].values, plain[0].values)
    cam, _ = maps_of(model, ("class",), layer="res4")
    assert cam.strides.tolist() == [16.0] * 3  # on res4


def test_the_finest_layer_of_a_backbone(model):
    assert finest_layer(model.backbone) == "bottom_up.res2"

"""Presets choose method and layer, for every family, and are refused beside them."""

import dataclasses
import itertools
import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import Backbone
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from test_outputs_explainer import Registered
from torch import nn

from odam_d2 import ExplainSettings, add_odam_config, explain
from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import smooth
from odam_d2.modeling.layers import finest_layer, finest_layers
from odam_d2.modeling.settings import RiseSettings

OPTS = [*SLIM, "TEST.DETECTIONS_PER_IMAGE", 3]
TARGETS = ("left", "class", "bottom", "combined")
FEW = RiseSettings(num_masks=4)


@pytest.fixture(scope="module", params=[FASTER_RCNN, RETINANET])
def model(request):
    return zoo_model(request.param, opts=OPTS)


def maps_of(model, targets, **settings):
    return [x["instances"].odam_maps for x in explain(model, two_images(), targets, **settings)]


def test_faithful_shares_the_passes_of_rise(model, tmp_path):
    """What one has read the other does not read again; the maps are others."""
    settings = dataclasses.replace(FEW, state_dir=str(tmp_path))
    plain = maps_of(model, TARGETS, method="rise", rise=settings)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    ours = maps_of(model, TARGETS, preset="faithful", rise=settings)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert len(files) == 2
    again = maps_of(model, TARGETS, preset="faithful", rise=FEW)
    for a, b, rise in zip(ours, again, plain, strict=True):
        assert tuple(a.targets) == TARGETS
        torch.testing.assert_close(a.values, b.values, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(a.values, rise.values, rtol=0.1)


def smoothed(maps, instances, stride):
    """Signed maps on one grid, smoothed by 0.08 lengths of the box."""
    size = maps.image_sizes[0].tolist()
    scale = [read / shown for read, shown in zip(size, instances.image_size, strict=True)]
    boxes = instances.pred_boxes.tensor * torch.tensor([scale[1], scale[0]] * 2)
    result = maps.on_grid(stride)
    for n, t in itertools.product(*map(range, result.shape[:2])):
        left, top, right, bottom = boxes[n].tolist()
        width = max(min(right, size[1]) - max(left, 0), 8)
        height = max(min(bottom, size[0]) - max(top, 0), 8)
        result[n, t] = smooth(result[n, t], 0.08 * math.sqrt(width * height) / stride)
    return result


@pytest.mark.parametrize("signed", [False, True])
def test_gradient_is_centred_on_the_second_finest_layer_and_smoothed(model, signed):
    targets = TARGETS[: 3 if signed else 4]  # no maximum of signed maps
    found = explain(model, two_images(), targets, preset="gradient", signed=signed)
    centred = maps_of(model, TARGETS[:3], method="centred", layer="res3", signed=True)
    for result, maps in zip(found, centred, strict=True):
        ours = result["instances"].odam_maps
        assert len(ours) == 3
        assert ours.signed == signed
        assert ours.strides.tolist() == [4.0] * 3
        expected = smoothed(maps, result["instances"], 4.0)
        assert (expected < 0).any()
        largest = float(expected.abs().max())
        torch.testing.assert_close(
            ours.on_grid(4.0)[:, :3],
            expected if signed else expected.relu(),
            rtol=1e-4,
            atol=1e-5 * largest,
        )


def test_detections_are_those_of_the_model(model):
    plain = model(two_images())
    for result, before in zip(explain(model, two_images(), preset="gradient"), plain, strict=True):
        assert torch.equal(result["instances"].scores, before["instances"].scores)


def test_a_model_explained_by_its_outputs():
    model = Registered().eval()
    found = explain(model, two_images(), ("class", "left"), preset="gradient")
    centred = maps_of(model, ("class", "left"), method="centred", signed=True)
    for result, maps in zip(found, centred, strict=True):
        ours = result["instances"].odam_maps.on_grid(8.0)
        expected = smoothed(maps, result["instances"], 8.0).relu()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


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


def test_the_finest_layers_of_a_backbone(model):
    assert finest_layer(model.backbone) == "bottom_up.res2"
    assert finest_layers(model.backbone, 3) == [f"bottom_up.res{k}" for k in (2, 3, 4)]


def test_a_pyramid_that_begins_with_finer_maps_is_no_early_layer():
    """As that of ViTDet, which is made of one map; all stages before it are of one size."""

    class Pyramid(Backbone):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 4, 16, 16)
            self.block = nn.Conv2d(4, 4, 1)
            self.finer = nn.ConvTranspose2d(4, 4, 2, 2)
            self.coarser = nn.MaxPool2d(2)

        def forward(self, x):
            x = self.block(self.patches(x))
            return {"finer": self.finer(x), "same": x, "coarser": self.coarser(x)}

    assert finest_layers(Pyramid(), 2) == ["block"]

"""
Spatial Sensitive Grad-CAM++, G-CAME and LayerCAM, against their formulas in plain loops over
channels, on gradients by autograd through Detectron2's own heads.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import full_map, two_images
from plain_heads import CLASSES, FAMILIES, GIVEN, TARGETS, value_of

from odam_d2 import explain, explain_boxes
from odam_d2.core import cam
from odam_d2.core.errors import InputError
from odam_d2.modeling.attribution.g_came import GCameRule
from odam_d2.modeling.settings import ExplainSettings, GCameSettings, LayerCamSettings

BOUND = {torch.float32: 1e-3, torch.float64: 1e-9}


def plain_ss_grad_cam_pp(gradient, feature, stride):
    total = np.zeros(feature.shape[1:])
    for g, a in zip(gradient, feature, strict=True):
        if not g.any():
            continue
        seen = sum(a[place] for place in zip(*np.nonzero(g), strict=True))
        weight = 0.0
        for place in zip(*np.nonzero(g > 0), strict=True):
            below = 2 * g[place] ** 2 + seen * g[place] ** 3
            weight += g[place] ** 2 / below * g[place]
        total += weight * a * np.abs(g) / np.abs(g).max()
    return total


def plain_g_came(gradient, feature, stride):
    height, width = feature.shape[1:]
    total = np.zeros((height, width))
    for g, a in zip(gradient, feature, strict=True):
        for sign in (1, -1):
            part = np.maximum(sign * g, 0)
            weight = part.mean()
            if weight == 0:
                continue
            radius = math.floor((math.sqrt(height * width) - 1) / 2)
            sigma = max(1.0, abs(math.log(weight) * math.log(stride) * 3 / radius))
            # The first of those that are the largest but for rounding.
            least = (1 - math.sqrt(np.finfo(feature.dtype).eps)) * part.max()
            row, column = np.argwhere(part >= least)[0]
            around = np.empty((height, width))
            for v in range(height):
                for u in range(width):
                    around[v, u] = math.exp(-((v - row) ** 2 + (u - column) ** 2) / (2 * sigma**2))
            around = (around - around.min()) / (around.max() - around.min())
            total += sign * weight * around * a
    return total


def plain_layer_cam(gradient, feature, stride):
    return sum(np.maximum(g, 0) * a for g, a in zip(gradient, feature, strict=True))


def head_gradients(family, model, given):
    """For each box and target, of each level that it reads: number, gradient and feature."""
    with torch.no_grad():
        levels = family.features(model, model.preprocess_image([given]).tensor)
        places = family.places(model, levels, given["image"].shape[-2:])
    leaves = [level.requires_grad_() for level in levels]
    scores, boxes = family.decide(model, leaves, places)
    for n in range(2):
        for t, target in enumerate(TARGETS):
            value = value_of(scores, boxes, n, target)
            found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            read = [(number, g[0]) for number, g in enumerate(found) if g is not None and g.any()]
            ((number, gradient),) = read
            yield n, t, number, gradient.double().numpy(), leaves[number][0].detach().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("method", "rule"), [("ss_grad_cam_pp", plain_ss_grad_cam_pp), ("g_came", plain_g_came)]
)
def test_rules_equal_plain_loops(method, rule, name, dtype):
    family = FAMILIES[name]
    model = family.model(dtype)
    given = {"image": two_images(dtype)[0]["image"][:, :102]}
    (output,) = explain_boxes(model, [given], GIVEN, CLASSES, TARGETS, method=method)
    maps = output["instances"].odam_maps
    first = 4 if name in ("faster_rcnn", "cascade") else 8
    errors = []
    for n, t, level, gradient, feature in head_gradients(family, model, given):
        expected = rule(gradient, feature, first * 2**level).clip(min=0)
        assert int(maps.levels[n]) == level
        found = full_map(maps, n, t).double().numpy()
        assert expected.max() > 0
        errors.append(np.abs(found - expected).max() / expected.max())
    # In float32 what two places have may still differ by a little more than counts as equal.
    jumps = method == "g_came" and dtype == torch.float32
    assert np.quantile(errors, 0.5 if jumps else 1.0) <= BOUND[dtype]


def test_g_came_of_one_cell_is_the_formula_of_one_stage_detectors():
    """By hand: mean -log 1/6, of a 2 x 3 map; what is positive counts once."""
    gradient, feature = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    gradient[0, 1, 2] = 1.0
    found = cam.g_came(gradient, feature, stride=math.e, min_sigma=0.1)
    sigma = abs(math.log(1 / 6)) * 3 / 1  # floor((sqrt(6) - 1) / 2) is 0, and counts as one
    far = torch.tensor([[5.0, 2, 1], [4, 1, 0]])
    around = torch.exp(-far / (2 * sigma**2))
    around = (around - around.min()) / (1 - around.min())
    torch.testing.assert_close(found, around / 6, rtol=1e-5, atol=1e-6)
    opposite = cam.g_came(-gradient, feature, stride=math.e, min_sigma=0.1)
    torch.testing.assert_close(opposite, -found)


def test_g_came_knows_a_derivative_that_was_scaled():
    generator = torch.Generator().manual_seed(0)
    gradient, feature = torch.randn(2, 1, 4, 5, 6, generator=generator).double()
    plain = cam.g_came(gradient / 1024, feature, stride=8)
    scaled = cam.g_came(gradient, feature, torch.full((1, 1, 1, 1), 1 / 1024), stride=8)
    torch.testing.assert_close(scaled / 1024, plain)
    assert not torch.allclose(cam.g_came(gradient, feature, stride=8) / 1024, plain, rtol=1e-3)


@pytest.mark.parametrize("rule", [cam.ss_grad_cam_pp, cam.layer_cam, GCameRule()])
@pytest.mark.parametrize("stride", [1.0, 8.0])
def test_no_gradient_is_no_map(rule, stride):
    feature = torch.rand(3, 4, 5)
    settings = {"stride": stride} if isinstance(rule, GCameRule) else {}
    found = rule(torch.zeros_like(feature), feature, torch.zeros(1, 1, 1), **settings)
    assert torch.equal(found, torch.zeros(4, 5))


def captured_gradients(model, module, given, family, places):
    """For each box and target, gradient by the output of a module, and that output."""
    leaf = []

    def hook(_module, _args, output):
        leaf.append(output.detach().requires_grad_())
        return leaf[0]

    handle = module.register_forward_hook(hook)
    images = model.preprocess_image([given]).tensor
    scores, boxes = family.decide(model, family.features(model, images), places)
    handle.remove()
    feature = leaf[0][0].detach().numpy()
    for n in range(2):
        for t, target in enumerate(TARGETS):
            value = value_of(scores, boxes, n, target)
            (gradient,) = torch.autograd.grad(value, leaf[0], retain_graph=True)
            yield n, t, gradient[0].numpy(), feature


def on_grid(heat, ratio, size):
    """Linear between the centres of cells, on a grid that is so many times finer."""
    heat = torch.as_tensor(heat)[None, None]
    fine = F.interpolate(heat, scale_factor=ratio, mode="bilinear", align_corners=False)
    return fine[0, 0, : size[0], : size[1]].clamp(min=0)


@pytest.mark.parametrize("layers", [("res2", "res4", ""), (), ("res3",)])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_layer_cam_equals_the_plain_maximum(name, layers):
    family = FAMILIES[name]
    model = family.model(torch.float64)
    given = {"image": two_images(torch.float64)[0]["image"]}
    with torch.no_grad():
        levels = family.features(model, model.preprocess_image([given]).tensor)
        places = family.places(model, levels, given["image"].shape[-2:])
    parts = {}
    named = layers or ("res2", "")  # the finest stage of a ResNet
    finest = 4 if "res2" in named else 8
    size = (128 // finest, 200 // finest)
    for layer in filter(None, named):
        module, stride = getattr(model.backbone.bottom_up, layer), 2 ** int(layer[-1])
        for n, t, *both in captured_gradients(model, module, given, family, places):
            heat = on_grid(np.maximum(plain_layer_cam(*both, stride), 0), stride / finest, size)
            parts.setdefault((n, t), []).append(heat / heat.max())
    if "" in named:
        first = 4 if name in ("faster_rcnn", "cascade") else 8
        for n, t, level, *both in head_gradients(family, model, given):
            heat = np.maximum(plain_layer_cam(*both, None), 0)
            heat = on_grid(heat, first * 2**level / finest, size)
            parts[n, t].append(heat / heat.max())
    settings = {"method": "layer_cam", "layer_cam": LayerCamSettings(layers, gamma=3.0)}
    (output,) = explain_boxes(model, [given], GIVEN, CLASSES, TARGETS, **settings)
    maps = output["instances"].odam_maps
    assert maps.strides.tolist() == [finest, finest]
    for (n, t), (*shallow, deep) in parts.items():
        expected = deep
        for heat in shallow:
            expected = torch.maximum(expected, torch.tanh(3.0 * heat))
        torch.testing.assert_close(maps.values[n, t], expected, rtol=0, atol=1e-6)


def test_layer_cam_of_two_sizes_and_combined(slim_model):
    found = explain(slim_model, two_images(), ("left", "combined", "class"), method="layer_cam")
    for result in found:
        maps = result["instances"].odam_maps
        assert maps.targets == ("left", "combined", "class")
        both = maps.values[:, [0, 2]].amax(dim=1)
        torch.testing.assert_close(maps.values[:, 1], both)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerCamSettings(layers="res2"), "layers is 'res2'; it must be a list of names"),
        (lambda: LayerCamSettings(layers=[2]), r"layers is \[2\]; it must be a list"),
        (lambda: LayerCamSettings(gamma=0), "gamma is 0; it must be above 0"),
        (lambda: GCameSettings(min_sigma=0.0), "min_sigma is 0.0; it must be above 0"),
        (
            lambda: ExplainSettings(method="layer_cam", layer="res4"),
            "'layer_cam' has layers of its own, in layers; leave layer empty",
        ),
    ],
)
def test_wrong_settings_are_told(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_layer_that_is_not_there_is_told(slim_model):
    settings = LayerCamSettings(["res2", "res9"])
    with pytest.raises(InputError, match="there is no layer 'res9'; there are"):
        explain(slim_model, two_images(), ("class",), method="layer_cam", layer_cam=settings)

"""A model of nobody's family behind explain, explain_boxes and the tools."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from oracle import full_map, two_images
from test_methods import RULES
from tiny_detr import TARGETS, TinyDETR, gradient_and_feature, reference
from torch import nn

from odam_d2 import explain, explain_boxes
from odam_d2.core.errors import InputError
from odam_d2.modeling import (
    Decisions,
    OutputsAdapter,
    UnsupportedModelError,
    explainers,
    register_adapter,
)
from odam_d2.modeling.nms import OdamNms
from odam_d2.modeling.settings import DRiseSettings


class Registered(TinyDETR):
    """Has an adapter."""


class WithBoxes(TinyDETR):
    """Has an adapter that takes boxes."""


@register_adapter(Registered)
class RegisteredAdapter(OutputsAdapter):
    layer = "backbone"
    num_classes = 3

    def outputs(self, batched_inputs, results):
        found = [r["instances"] for r in self.model(batched_inputs)]
        return [
            Decisions(f.pred_classes, f.scores[:, None].expand(-1, 3), f.pred_boxes.tensor)
            for f in found
        ]


@register_adapter(WithBoxes)
class WithBoxesAdapter(RegisteredAdapter):
    def outputs_of_boxes(self, batched_inputs, boxes, classes):
        """Of the query whose box overlaps most."""
        found = []
        for scores, of_image, given, labels in zip(
            *self.model.raw(batched_inputs), boxes, classes, strict=True
        ):
            chosen = pairwise_iou(given, Boxes(of_image)).argmax(dim=1)
            found.append(Decisions(labels, scores[chosen], of_image[chosen]))
        return found


def detr(kind=Registered):
    torch.manual_seed(0)
    return kind().double()


def test_a_registered_adapter_works_with_explain():
    model, inputs = detr(), two_images(torch.float64)
    plain = model.eval()(inputs)
    for before, result in zip(plain, explain(model, inputs, [*TARGETS, "combined"]), strict=True):
        found = result["instances"]
        assert torch.equal(found.pred_boxes.tensor, before["instances"].pred_boxes.tensor)
        assert found.odam_maps.targets == (*TARGETS, "combined")
        assert len(found.odam_maps) == len(found) == 4
    expected = reference(model, inputs, 1, 2, 0)
    torch.testing.assert_close(full_map(found.odam_maps, 2, 0), expected)


@pytest.mark.parametrize("method", sorted(RULES))
def test_cams(method):
    model, inputs = detr(), two_images(torch.float64)
    signed = method != "gradient_norm"  # which is never negative
    found = explain(model, inputs, TARGETS, method=method, signed=signed)[1]["instances"].odam_maps
    assert found.signed == signed
    for instance, target in [(0, 0), (2, 3)]:
        expected = RULES[method](*gradient_and_feature(model, inputs, 1, instance, target))
        torch.testing.assert_close(full_map(found, instance, target), expected)


def test_input_gradient_needs_no_layer():
    model, inputs = detr(), two_images(torch.float64)
    found = explain(model, inputs, ("class",), method="input_gradient")[1]["instances"].odam_maps
    assert found.values.shape == (4, 1, 160, 224)
    with pytest.raises(InputError, match="leave layer empty"):
        explain(model, inputs, ("class",), method="input_gradient", layer="backbone.0")


def test_d_rise_masks_the_images():
    """It asks for no gradient: one map for each detection, whatever outputs does."""
    model, inputs = detr(), two_images(torch.float64)
    settings = DRiseSettings(num_masks=3, grid=4)
    for result in explain(model, inputs, ("class",), method="d_rise", d_rise=settings):
        maps = result["instances"].odam_maps
        assert len(maps) == len(result["instances"]) == 4
        assert maps.strides.tolist() == [4.0] * 4


def test_given_boxes_are_read_where_the_subclass_says():
    model, inputs = detr(WithBoxes).eval(), two_images(torch.float64)
    scores, boxes = model.raw(inputs)
    # The boxes of two queries: the first image is shown at another size than it has.
    height, width = inputs[0]["image"].shape[-2:]
    scale = boxes.new_tensor([384 / width, 256 / height] * 2)
    given = [boxes[0, [3]].detach() * scale, boxes[1, [5, 2]].detach()]
    classes = [torch.tensor([1]), torch.tensor([2, 0])]
    found = [r["instances"] for r in explain_boxes(model, inputs, given, classes, TARGETS)]
    assert [len(f.odam_maps) for f in found] == [1, 2]
    torch.testing.assert_close(found[0].scores, scores[0, [3], [1]].detach())
    torch.testing.assert_close(found[1].scores, scores[1, [5, 2], [2, 0]].detach())
    features = {}
    handle = model.backbone.register_forward_hook(lambda m, a, out: features.update(out=out))
    again = model.raw(inputs)[1]
    handle.remove()
    (gradient,) = torch.autograd.grad(-again[1, 2, 0], features["out"])
    expected = (gradient[1] * features["out"][1].detach()).sum(0).relu()
    torch.testing.assert_close(full_map(found[1].odam_maps, 1, 1), expected)


def test_boxes_are_refused_where_nobody_says_where_to_read_them():
    message = "unless RegisteredAdapter defines outputs_of_boxes"
    with pytest.raises(UnsupportedModelError, match=message):
        explain_boxes(detr(), two_images(), [torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "logit"}, "the score 'logit' is not known of this model; use 'probability'"),
        ({"nms": OdamNms()}, "its NMS cannot be replaced: leave nms at None"),
        ({"layer": "backbon"}, "no layer 'backbon'; there are backbone, transformer"),
        ({"targets": ("class:3",)}, "class:3"),
    ],
)
def test_what_the_adapter_cannot_follow_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        explain(detr(), two_images(torch.float64), **{"targets": ("class",), **settings})


def test_logits_are_explained_where_the_adapter_tells_them(monkeypatch):
    def outputs(self, batched_inputs, results):
        plain = RegisteredAdapter.outputs(self, batched_inputs, results)
        return [replace(x, logits=3 * x.probabilities) for x in plain]

    expected = explain(detr(), two_images(torch.float64), ("class",))[0]["instances"].odam_maps
    monkeypatch.setattr(WithBoxesAdapter, "outputs", outputs)
    model = detr(WithBoxes)
    found = explain(model, two_images(torch.float64), ("class",), score="logit")[0]["instances"]
    torch.testing.assert_close(found.odam_maps.values, 3 * expected.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [first_three(x) for x in found], r"decisions of \[3, 3\].* are \[4, 4\]"),
        (lambda found: [x.probabilities for x in found], "returned Tensor.*must return Decisions"),
        (lambda found: [x.detach() for x in found], "do not depend on layer 'backbone'"),
    ],
)
def test_outputs_that_do_not_fit_are_told(monkeypatch, change, message):
    outputs = RegisteredAdapter.outputs
    monkeypatch.setattr(RegisteredAdapter, "outputs", lambda *args: change(outputs(*args)))
    with pytest.raises(InputError, match=message):
        explain(detr(), two_images(torch.float64), TARGETS)


def first_three(decisions):
    return Decisions(decisions.classes[:3], decisions.probabilities[:3], decisions.boxes[:3])


class Old(TinyDETR):
    """Has an explainer of before there were adapters."""


def test_explainers_of_before_still_work():
    with pytest.warns(DeprecationWarning, match="use odam_d2.modeling.OutputsAdapter"):

        class OldExplainer(explainers.OutputsExplainer):
            layer = "backbone"
            num_classes = 3

            def outputs(self, batched_inputs, results):
                found = [r["instances"] for r in self.model(batched_inputs)]
                return [
                    self.select_values(
                        f.scores[:, None].expand(-1, 3), f.pred_boxes.tensor, f.pred_classes
                    )
                    for f in found
                ]

            def outputs_of_boxes(self, batched_inputs, boxes, classes):
                scores, found = self.model.raw(batched_inputs)
                return [
                    (self.select_values(s[: len(c)], b[: len(c)], c), s[range(len(c)), c])
                    for s, b, c in zip(scores, found, classes, strict=True)
                ]

    with pytest.warns(DeprecationWarning, match="use odam_d2.modeling.register_adapter"):
        explainers.register_explainer(Old)(OldExplainer)
    inputs = two_images(torch.float64)
    old, new = explain(detr(Old), inputs, TARGETS), explain(detr(), inputs, TARGETS)
    for before, after in zip(old, new, strict=True):
        expected = after["instances"].odam_maps.values
        torch.testing.assert_close(before["instances"].odam_maps.values, expected)
    given, classes = [torch.ones(2, 4)] * 2, [torch.tensor([1, 2])] * 2
    found = explain_boxes(detr(Old), inputs, given, classes, TARGETS)
    scores = detr(Old).eval().raw(inputs)[0]
    torch.testing.assert_close(found[1]["instances"].scores, scores[1, [0, 1], [1, 2]].detach())


class MyDETR(TinyDETR):
    """What the documentation calls so."""

    def __init__(self):
        super().__init__(classes=80)
        self.backbone = nn.Sequential()
        self.backbone.add_module("res4", nn.Conv2d(3, 8, 3, 4, 1))
        self.backbone.add_module("res5", nn.Conv2d(8, 16, 3, 4, 1))


def test_the_code_in_the_documentation_runs():
    text = (Path(__file__).parents[2] / "docs" / "your_own_head.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    torch.manual_seed(0)
    names = {"MyDETR": MyDETR, "detr": MyDETR().train(), "batched_inputs": two_images()[:1]}
    for block in blocks:
        exec(block, names)
    assert names["maps"][0].values.shape == names["cam"][0].values.shape == (4, 5, 8, 14)
    assert names["heat"].shape == (1, 1, 480, 640)
    assert names["pixels"][0].values.shape == (4, 5, 128, 224)
    explained = explain(names["detr"], names["batched_inputs"])[0]["instances"]
    torch.testing.assert_close(explained.odam_maps.values, names["maps"][0].values)
    assert len(names["found"][0]["instances"].odam_maps) == 1

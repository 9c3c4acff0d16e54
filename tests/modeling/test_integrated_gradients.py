"""Integrated gradients of the head against plain loops through Detectron2's own functions."""

import pytest
import torch
from oracle import FASTER_RCNN, RETINANET, SLIM, full_map, side_value, two_images, zoo_model
from plain_heads import CLASSES, GIVEN, decide_rcnn, decide_retinanet
from test_outputs_explainer import Registered

from odam_d2 import explain, explain_boxes
from odam_d2.core.errors import InputError

TARGETS = ("class", "left", "bottom")
STEPS = 8


def plain_maps(model, image, names, decide):
    """For each instance and target the signed maps of all levels, one step at a time."""
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([image]).tensor)
    levels = [features[name] for name in names]
    means = [level.mean(dim=(2, 3), keepdim=True) for level in levels]
    total = [[[0.0] * len(levels) for _ in TARGETS] for _ in range(2)]
    for step in range(STEPS):
        share = (step + 0.5) / STEPS
        leaves = [
            (mean + share * (level - mean)).requires_grad_()
            for mean, level in zip(means, levels, strict=True)
        ]
        scores, boxes = decide(model, leaves)
        for i in range(2):
            for t, target in enumerate(TARGETS):
                of_class = target == "class"
                value = scores[i, CLASSES[0][i]] if of_class else side_value(boxes[i], target)
                found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
                for number, gradient in enumerate(found):
                    if gradient is not None:
                        far = levels[number] - means[number]
                        total[i][t][number] += (gradient * far)[0].sum(dim=0) / STEPS
    return total


@pytest.mark.parametrize(
    ("name", "names", "decide"),
    [
        (FASTER_RCNN, ["p2", "p3", "p4", "p5"], decide_rcnn),
        (RETINANET, ["p3", "p4", "p5", "p6", "p7"], decide_retinanet),
    ],
)
def test_equal_to_plain_loops(name, names, decide):
    model = zoo_model(name, opts=SLIM)
    image = {"image": two_images()[0]["image"]}
    expected = plain_maps(model, image, names, decide)
    settings = {"method": "integrated_gradients", "signed": True}
    (output,) = explain_boxes(model, [image], GIVEN, CLASSES, TARGETS, **settings)
    maps = output["instances"].odam_maps
    for i in range(2):
        for t in range(len(TARGETS)):
            plain = expected[i][t][int(maps.levels[i])]
            error = (full_map(maps, i, t) - plain).abs().max() / plain.max()
            assert plain.max() > 0
            assert float(error) <= 1e-4


def test_a_probability_near_one_keeps_its_digits(slim_model):
    """Steps have exponents of their own: each step's is near one another way."""
    boxes, classes = [torch.tensor([[10.0, 20, 90, 100]])], [torch.tensor([3])]
    found = explain_boxes(
        slim_model, two_images()[:1], boxes, classes, ("class",), method="integrated_gradients"
    )
    maps = found[0]["instances"].odam_maps
    assert maps.values.isfinite().all()
    assert maps.values.any()


def test_a_model_without_a_head_is_refused():
    with pytest.raises(InputError, match="tells nothing of a head"):
        explain(Registered(), two_images(), ("class",), method="integrated_gradients")

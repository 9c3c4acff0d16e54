"""The general way: a DETR in miniature, whose head nobody has described."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from oracle import full_map, two_images
from torch import nn

from odam_d2 import explain, explain_boxes, explain_outputs
from odam_d2.core.errors import InputError
from odam_d2.core.targets import outward
from odam_d2.modeling.explainers import OutputsExplainer, UnsupportedModelError, register_explainer


class TinyDETR(nn.Module):
    """Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, very small."""

    device = torch.device("cpu")

    def __init__(self, queries=6, width=16, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 4, 1), nn.ReLU()
        )
        self.transformer = nn.Transformer(width, 2, 1, 1, 32, dropout=0.1, batch_first=True)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.class_embed = nn.Linear(width, classes + 1)
        self.bbox_embed = nn.Linear(width, 4)

    def raw(self, batched_inputs):
        """Probabilities (I, Q, K) and boxes (I, Q, 4) in pixels."""
        sizes = torch.tensor([x["image"].shape[-2:] for x in batched_inputs])
        height, width = (sizes.amax(dim=0) + 31) // 32 * 32
        images = self.queries.new_zeros(len(sizes), 3, height, width)
        for image, x in zip(images, batched_inputs, strict=True):
            image[:, : x["image"].shape[1], : x["image"].shape[2]] = x["image"] / 255
        tokens = self.backbone(images).flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(images), -1, -1)
        decoded = self.transformer(tokens, queries)
        centre, size = self.bbox_embed(decoded).sigmoid().chunk(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        boxes = boxes * sizes.flip(1).repeat(1, 2)[:, None]
        return self.class_embed(decoded).softmax(-1)[..., :-1], boxes

    def forward(self, batched_inputs):
        results = []
        for x, scores, boxes in zip(batched_inputs, *self.raw(batched_inputs), strict=True):
            best, label = scores.max(dim=1)
            found = Instances(
                tuple(x["image"].shape[-2:]),
                scores=best,
                pred_classes=label,
                pred_boxes=Boxes(boxes),
            )
            results.append({"instances": found[best.argsort(descending=True)[:4]]})
        return results


@pytest.fixture
def detr():
    torch.manual_seed(0)
    return TinyDETR().double()


def score_and_sides(detr):
    def outputs(batched_inputs):
        found = [r["instances"] for r in detr(batched_inputs)]
        return [torch.cat([f.scores[:, None], outward(f.pred_boxes.tensor)], 1) for f in found]

    return outputs


TARGETS = ("class", "left", "top", "right", "bottom")


def reference(detr, inputs, image, instance, target):
    """Plain autograd from one output to the backbone's output, by hand."""
    detr = detr.eval()
    features = {}
    handle = detr.backbone.register_forward_hook(lambda m, a, out: features.update(out=out))
    values = score_and_sides(detr)(inputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(values[image][instance, target], features["out"])
    return (gradient[image] * features["out"][image].detach()).sum(0).relu()


def test_equals_plain_autograd(detr):
    inputs = two_images(torch.float64)
    detr.train()  # the dropout of a model in training mode must not disturb, nor be lost
    found = explain_outputs(detr, inputs, score_and_sides(detr), "backbone", TARGETS)
    assert detr.training
    assert detr.transformer.training
    assert [len(maps) for maps in found] == [4, 4]
    for image, maps in enumerate(found):
        assert maps.targets == TARGETS
        assert maps.grid_sizes.tolist() == [[160 // 16, 224 // 16]] * 4
        assert maps.strides.tolist() == [16.0] * 4
        assert maps.image_sizes[0].tolist() == list(inputs[image]["image"].shape[-2:])
        for instance in range(4):
            for target in range(5):
                expected = reference(detr, inputs, image, instance, target)
                assert expected.max() > 0
                error = (full_map(maps, instance, target) - expected).abs().max()
                assert error <= 1e-10 * expected.max()


def test_one_value_for_each_instance(detr):
    inputs = two_images(torch.float64)
    maps = explain_outputs(
        detr, inputs, lambda x: [r["instances"].scores for r in detr(x)], "backbone"
    )
    whole = explain_outputs(detr, inputs, score_and_sides(detr), "backbone", TARGETS)
    assert maps[1].targets == ("output",)
    torch.testing.assert_close(maps[1].values[:, 0], whole[1].values[:, 0])


def test_images_without_instances(detr):
    inputs = two_images(torch.float64)

    def outputs(batched_inputs):
        return [v[:n] for v, n in zip(score_and_sides(detr)(batched_inputs), (0, 2), strict=True)]

    assert [len(m) for m in explain_outputs(detr, inputs, outputs, "backbone", TARGETS)] == [0, 2]


def test_no_instances_at_all(detr):
    inputs = two_images(torch.float64)
    nothing = lambda x: [v[:0] for v in score_and_sides(detr)(x)]  # noqa: E731
    assert [len(m) for m in explain_outputs(detr, inputs, nothing, "backbone", TARGETS)] == [0, 0]


@pytest.mark.parametrize(
    ("outputs", "layer", "targets", "message"),
    [
        (None, "backbon", TARGETS, "no layer 'backbon'; there are .*backbone"),
        (None, "transformer.encoder", TARGETS[:1], "5 values for each instance, and there are 1"),
        (None, "class_embed", TARGETS, "output of layer 'class_embed' .* is no feature map"),
        (lambda x: [torch.ones(2, 5)] * 2, "backbone", TARGETS, "layer 'backbone' did not run"),
        ("detached", "backbone", TARGETS, "do not depend on layer 'backbone'"),
        ("one", "backbone", TARGETS, "1 tensors for 2 images"),
        ("twice", "backbone", TARGETS, "'backbone' runs more than once"),
    ],
)
def test_wrong_use_gets_one_sentence_and_leaves_no_hook(detr, outputs, layer, targets, message):
    good = score_and_sides(detr)
    ways = {
        None: good,
        "detached": lambda x: [v.detach() for v in good(x)],
        "one": lambda x: good(x)[:1],
        "twice": lambda x: (good(x), good(x))[1],
    }
    with pytest.raises(InputError, match=message):
        explain_outputs(detr, two_images(torch.float64), ways.get(outputs, outputs), layer, targets)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detr.modules())


def test_a_registered_explainer_works_with_explain(detr):
    class Registered(TinyDETR):
        pass

    @register_explainer(Registered)
    class RegisteredExplainer(OutputsExplainer):
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

    detr.__class__ = Registered
    inputs = two_images(torch.float64)
    plain = detr.eval()(inputs)
    for before, result in zip(plain, explain(detr, inputs, [*TARGETS, "combined"]), strict=True):
        found = result["instances"]
        assert torch.equal(found.pred_boxes.tensor, before["instances"].pred_boxes.tensor)
        assert found.odam_maps.targets == (*TARGETS, "combined")
        assert len(found.odam_maps) == len(found) == 4
    expected = reference(detr, inputs, 1, 2, 0)
    torch.testing.assert_close(full_map(found.odam_maps, 2, 0), expected)
    with pytest.raises(UnsupportedModelError, match="explained by its outputs"):
        explain_boxes(detr, inputs, [torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)

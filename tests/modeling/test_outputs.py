"""The general way: a DETR in miniature, whose head nobody has described."""

import functools
import sys

import pytest
import torch
from oracle import full_map, two_images
from test_methods import RULES
from tiny_detr import TARGETS, TinyDETR, gradient_and_feature, reference, score_and_sides
from torch import nn

from odam_d2 import explain_outputs
from odam_d2.core.errors import InputError
from odam_d2.modeling.attribution.d_rise import DRise


@pytest.fixture
def detr():
    torch.manual_seed(0)
    return TinyDETR().double()


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


class Pyramid(nn.Module):
    """One trunk, two levels, an instance on each; and a layer of real size, 256 x 50 x 76."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"trunk": nn.Conv2d(3, 256, 3, 16, 1)})
        self.neck = nn.ModuleList([nn.Conv2d(256, 4, 1), nn.Conv2d(256, 4, 3, 2, 1)])
        self.head = nn.Linear(4, 2)

    def forward(self, batched_inputs):
        images = torch.stack([x["image"] for x in batched_inputs])
        trunk = self.body["trunk"](images).relu()
        levels = [level(trunk) for level in self.neck]
        return torch.stack([self.head(x.mean((2, 3))) for x in levels], dim=1)  # (I, 2, 2)


@pytest.fixture
def pyramid():
    torch.manual_seed(0)
    return Pyramid()


def images(*sizes):
    generator = torch.Generator().manual_seed(5)
    return [{"image": torch.rand(3, *size, generator=generator)} for size in sizes]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_of_real_size(pyramid, count, batch):
    """A 256 x 50 x 76 layer is differentiated one output at a time."""
    inputs = images(*[(800, 1216)] * batch)
    targets = ("first", "second")
    signed = count == 2
    found = explain_outputs(
        pyramid, inputs, lambda x: pyramid(x)[:, :count], "trunk", targets, signed=signed
    )
    trunk = pyramid.body["trunk"](torch.stack([x["image"] for x in inputs])).detach()
    trunk.requires_grad_()
    for image, maps in enumerate(found):
        assert maps.values.shape == (count, 2, 50, 76)
        assert maps.signed == signed
        for instance, target in [(0, 1), (count - 1, 0)]:
            level = pyramid.neck[instance](trunk.relu())
            value = pyramid.head(level.mean((2, 3)))[image, target]
            (gradient,) = torch.autograd.grad(value, trunk)
            expected = (gradient[image] * trunk[image].detach()).sum(0)
            expected = expected if signed else expected.relu()
            error = (maps.values[instance, target] - expected).abs().max()
            assert 0 <= error <= 1e-5 * expected.max()


def test_a_level_that_an_instance_does_not_read_is_told(pyramid):
    inputs = images((64, 96), (64, 96))
    message = r"2 of 4 instances do not depend on layer 'neck.1' \(0 of image 0, 0 of image 1;"
    with pytest.raises(InputError, match=message):
        explain_outputs(pyramid, inputs, pyramid, "neck.1", ("a", "b"))
    maps = explain_outputs(pyramid, inputs, lambda x: pyramid(x)[:, 1:], "neck.1", ("a", "b"))
    assert [of_image.values.shape for of_image in maps] == [(1, 2, 2, 3)] * 2


def test_a_saturated_score_is_flagged_and_not_taken_for_another_layers(pyramid):
    """A probability of exactly 1 has no gradient left; the other target of the instance has."""
    with torch.no_grad():
        pyramid.head.bias[0] = 200.0

    def scores(batched_inputs):
        return pyramid(batched_inputs).sigmoid()[:, 1:]

    for outputs, targets in [(scores, ("a", "b")), (lambda x: scores(x)[..., 0], ("a",))]:
        maps = explain_outputs(pyramid, images((64, 96)), outputs, "neck.1", targets)[0]
        assert maps.saturated.tolist() == [[True, False][: len(targets)]]
        assert not maps.select("a").values.any()


def test_layers_are_listed_for_a_model_that_is_no_backbone(pyramid):
    """Those that give maps, however deep, and not the lists around them or the head."""
    for layer, problem in [("res4", "no layer 'res4'"), ("head", "output of layer 'head' .* map")]:
        with pytest.raises(InputError, match=problem) as caught:
            explain_outputs(pyramid, images((64, 96)), pyramid, layer, ("a", "b"))
        assert str(caught.value).endswith("; there are body.trunk, neck.0, neck.1")
    with pytest.raises(InputError, match=r"no layer ''; there are body.trunk, neck.0"):
        explain_outputs(pyramid, images((64, 96)), pyramid, targets=("a", "b"))


class Guarded(Pyramid):
    """Somebody's inference, with gradients off in several ways."""

    @torch.no_grad()
    def decorated(self, batched_inputs):
        return self(batched_inputs)

    @torch.inference_mode()
    def in_inference_mode(self, batched_inputs):
        return self(batched_inputs)

    def block(self, batched_inputs):
        with torch.no_grad():
            zero = torch.zeros(1)  # no module runs here
        with torch.inference_mode():
            return self(batched_inputs) + zero

    @torch.no_grad()
    def postprocess(self, values):
        return values * 2

    def late(self, batched_inputs):
        return self.postprocess(self(batched_inputs))

    def off(self, batched_inputs):
        torch.set_grad_enabled(False)
        return self(batched_inputs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decorated", r"Guarded.decorated is decorated with @torch.no_grad: call "
         r"Guarded.decorated.__wrapped__"),
        ("late", r"Guarded.postprocess is decorated with @torch.no_grad.* in a subclass by "
         r"postprocess = Guarded.postprocess.__wrapped__"),
        ("block", "Guarded.block turns gradients off by torch.inference_mode"),
        ("in_inference_mode", "in_inference_mode is decorated with @torch.inference_mode: call"),
        ("off", "Guarded.off turns gradients off by torch.set_grad_enabled"),
    ],
)  # fmt: skip
def test_who_turns_gradients_off_is_named(name, message):
    model = Guarded()
    call = getattr(model, name)
    with pytest.raises(InputError, match=f"do not depend on layer 'trunk': .*{message}"):
        explain_outputs(model, images((64, 96)), call, "trunk", ("a", "b"))
    assert torch.is_grad_enabled()
    assert sys.getprofile() is None


def test_what_has_no_name_may_turn_gradients_off():
    model = Guarded()
    call = torch.no_grad()(functools.partial(model.forward))
    with pytest.raises(InputError, match=r"@torch.no_grad decorates, 'partial'.*__wrapped__"):
        explain_outputs(model, images((64, 96)), call, "trunk", ("a", "b"))


def test_the_way_out_of_no_grad_works():
    model, inputs = Guarded(), images((64, 96))
    expected = explain_outputs(model, inputs, model, "trunk", ("a", "b"))
    way_out = Guarded.decorated.__wrapped__
    found = explain_outputs(model, inputs, lambda x: way_out(model, x), "trunk", ("a", "b"))
    assert torch.equal(found[0].values, expected[0].values)


@pytest.mark.parametrize("method", sorted(RULES))
def test_cams_equal_plain_autograd(detr, method):
    inputs = two_images(torch.float64)
    maps = explain_outputs(detr, inputs, score_and_sides(detr), "backbone", TARGETS, method=method)
    for image, instance, target in [(0, 0, 0), (0, 3, 2), (1, 2, 4)]:
        expected = RULES[method](*gradient_and_feature(detr, inputs, image, instance, target))
        error = (full_map(maps[image], instance, target) - expected.relu()).abs().max()
        assert error <= 1e-10 * expected.max()


def test_input_gradients_equal_plain_autograd(detr):
    """By what the first convolution gets: the whole batch, padded."""
    inputs = two_images(torch.float64)
    maps = explain_outputs(
        detr, inputs, score_and_sides(detr), targets=TARGETS, method="input_gradient"
    )
    assert maps[1].grid_sizes.tolist() == [[160, 224]] * 4
    assert maps[1].strides.tolist() == [1.0] * 4

    class Leaf(nn.Identity):
        def forward(self, x):
            return x.requires_grad_()

    leaf = Leaf()
    detr.backbone.insert(0, leaf)
    for image, instance, target in [(0, 0, 0), (0, 3, 2), (1, 2, 4)]:
        gradient, _ = gradient_and_feature(detr, inputs, image, instance, target, leaf)
        expected = gradient.abs().amax(dim=0)
        torch.testing.assert_close(full_map(maps[image], instance, target), expected)
    assert not any(m._forward_pre_hooks for m in detr.modules())


def test_input_gradients_need_one_pass_of_images(detr):
    inputs = two_images(torch.float64)
    good = score_and_sides(detr)
    for outputs, message in [
        (lambda x: [good([one])[0] for one in x], "Sequential gets images more than once"),
        (lambda x: [torch.ones(1, 5)] * 2, "no module of TinyDETR got images"),
    ]:
        with pytest.raises(InputError, match=message):
            explain_outputs(detr, inputs, outputs, targets=TARGETS, method="input_gradient")
        assert not any(m._forward_pre_hooks for m in detr.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"score": "logit"},
            "no setting 'score'.*there are method, smoothing_sigma, signed, chunk_mb",
        ),
        ({"norm_statistics": "exact"}, "no setting 'norm_statistics'"),
        ({"nms": lambda x: x, "record": True}, "no setting 'nms', 'record'"),
        ({"class_names": ("a",)}, "no setting 'class_names'"),
        ({"chunk": 3}, "no setting 'chunk'"),
        ({"method": "d_rise"}, "cannot make the maps of 'd_rise'.*register an OutputsExplainer"),
        ({"method": DRise()}, "makes maps of gradients, and DRise is no such method: use explain"),
        ({"method": "input_gradient"}, "of the image itself; leave layer out, not 'backbone'"),
        ({"targets": ()}, "they must be names, one for each value"),
        ({"targets": (*TARGETS[:4], 3)}, "they must be names"),
        ({"targets": (*TARGETS[:4], "class")}, "each value needs a name of its own"),
        ({"targets": (*TARGETS[:4], "combined")}, "'combined' is made of others"),
    ],
)
def test_settings_that_cannot_apply_are_refused(detr, settings, message):
    inputs = two_images(torch.float64)
    with pytest.raises(InputError, match=message):
        explain_outputs(
            detr, inputs, score_and_sides(detr), "backbone", **{"targets": TARGETS, **settings}
        )


def test_outputs_that_are_no_tensors_are_told(detr):
    for returned in (3, [1.0, 2.0], None):
        with pytest.raises(InputError, match="it must return a list of tensors"):
            explain_outputs(detr, two_images(torch.float64), lambda _, x=returned: x, "backbone")


def test_nothing_has_to_run_for_no_instance(detr):
    inputs = two_images(torch.float64)
    found = explain_outputs(detr, inputs, lambda _: [torch.zeros(0, 2)] * 2, "backbone", ("a", "b"))
    assert [len(maps) for maps in found] == [0, 0]
    assert found[0].dense(4, 6).shape == (0, 2, 4, 6)

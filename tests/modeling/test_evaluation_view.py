"""A second object for each module of a model, in evaluation mode."""

import types
import weakref
from collections import OrderedDict, namedtuple
from functools import partial

import pytest
import torch
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from torch import nn

from odam_d2.modeling.evaluation_view import evaluation_view


class Block(nn.Module):
    """References of many kinds to modules that are registered somewhere in the model."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.again = self.norm  # one module in two places
        self.plain_list = [self.norm, [self.drop]]
        self.by_name = {"norm": self.norm}
        self.ordered = OrderedDict(drop=self.drop)
        self.pair = (self.drop, 3)
        self.either = {self.drop}
        self.method = self.drop.forward
        self.bound = partial(self.run, module=self.norm)
        self.numbers = [1, 2]
        object.__setattr__(self, "loose", nn.Dropout(0.5).train())  # not registered

    def run(self, x, module):
        return module(x)

    def forward(self, x):
        x = self.plain_list[1][0](self.plain_list[0](x))
        x = self.ordered["drop"](self.by_name["norm"](x))
        (dropped,) = self.either
        return self.bound(self.method(self.pair[0](dropped(self.again(x)))))


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        object.__setattr__(self.block, "parent", self)  # a child that knows its parent

    def forward(self, x):
        self.last = self.block(x)
        return self.last


@pytest.fixture
def parent():
    torch.manual_seed(0)
    model = Parent()
    model.block.norm.running_mean.uniform_()
    return model.train()


X = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def test_all_references_lead_to_the_second_modules(parent):
    """One that led back would drop out, or change the running statistics."""
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    view = evaluation_view(parent)
    found = view(X)
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert all(m.training for m in parent.modules())
    assert not any(m.training for m in view.modules())
    assert torch.equal(found, parent.eval()(X))
    block = view.block
    assert block.norm is block.again is block.plain_list[0] is block.by_name["norm"]
    assert block.parent is view
    assert type(block.ordered) is OrderedDict
    assert type(block) is Block
    assert block.numbers is parent.block.numbers
    assert block.loose.training, "model.eval() does not reach it either"


def test_parameters_are_shared_and_state_is_not(parent):
    view = evaluation_view(parent)
    for (name, ours), (other, theirs) in zip(
        view.state_dict(keep_vars=True).items(),
        parent.state_dict(keep_vars=True).items(),
        strict=True,
    ):
        assert name == other
        assert ours is theirs
    view(X)
    assert not hasattr(parent, "last")
    view.block.norm.register_buffer("more", torch.zeros(1))
    view.block.add_module("child", nn.ReLU())
    assert not hasattr(parent.block.norm, "more")
    assert not hasattr(parent.block, "child")


def test_hooks_of_the_model_run_and_those_of_the_view_are_its_own(parent):
    calls = []
    parent.block.norm.register_forward_hook(lambda module, *_: calls.append(module.training))
    view = evaluation_view(parent)
    handle = view.block.register_forward_pre_hook(lambda *_: calls.append("view"))
    view(X)
    assert calls == ["view", *[False] * 4]  # the norm runs four times
    assert not parent.block._forward_pre_hooks
    handle.remove()
    assert not view.block._forward_pre_hooks


def test_hooks_that_are_methods_of_modules_go_along(parent):
    """As those of lazy modules: the second module's method is called."""

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = 0
            self.register_forward_pre_hook(self.see)

        def see(self, module, _args):
            assert module is self
            self.seen += 1

        def forward(self, x):
            return x

    model = nn.Sequential(Hooked())
    view = evaluation_view(model)
    view(X)
    assert (view[0].seen, model[0].seen) == (1, 0)


def closure(model):
    norm = model.block.norm
    model.block.call = lambda x: norm(x)


def default(model):
    model.block.call = lambda x, norm=model.block.norm: norm(x)


def other_object(model):
    model.block.helper = types.SimpleNamespace(deep=[{"norm": model.block.norm}])


def weak(model):
    model.block.helper = weakref.ref(model.block.norm)


def named(model):
    model.block.helper = namedtuple("Helper", "norm")(model.block.norm)


def itself(model):
    model.block.plain_list.append(model.block.plain_list)


def slots(model):
    kind = type("Slotted", (nn.Identity,), {"__slots__": ("extra",)})
    model.block.slotted = kind()


def scripted(model):
    model.block.scripted = torch.jit.trace(nn.Sequential(nn.ReLU()), X)
    model.block.scripted.train()


def traced(model):
    model.block.graph = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))


def compiled(model):
    model.block.drop = torch.compile(model.block.drop, backend="eager")


@pytest.mark.parametrize(
    "change",
    [closure, default, other_object, weak, named, itself, slots, scripted, traced, compiled],
)
def test_what_cannot_be_copied_is_not(parent, change):
    change(parent)
    assert evaluation_view(parent) is None


def test_what_looks_like_it_and_can_be(parent):
    number, unit = 3, nn.Parameter(torch.ones(1))
    parent.block.call = lambda x: x * number
    parent.block.helper = types.SimpleNamespace(value=unit, others=[{"a": {1, 2}}])
    parent.block.helper.self = parent.block.helper  # a cycle without a module
    parent.block.scripted = torch.jit.trace(nn.Sequential(nn.ReLU()), X).eval()
    parent.block.parallel = nn.DataParallel(nn.Dropout(0.5))
    view = evaluation_view(parent)
    assert view.block.helper is parent.block.helper
    assert view.block.scripted is parent.block.scripted
    assert not view.block.parallel.module.training
    assert torch.equal(view.block.parallel(X), X)


def test_parametrized_modules():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))
    old = nn.utils.weight_norm(nn.Conv2d(3, 3, 1))
    model = nn.Sequential(conv, old).train()
    view = evaluation_view(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = view(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(found, model.eval()(X))


@pytest.mark.parametrize(
    "name",
    [
        FASTER_RCNN,
        RETINANET,
        "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
        "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    ],
)
def test_detectors_of_the_zoo_can_be_copied(name):
    model = zoo_model(name, opts=SLIM)
    expected = model(two_images())
    view = evaluation_view(model.train())
    assert {type(m) for m in view.modules()} == {type(m) for m in model.modules()}
    ids = {id(m) for m in model.modules()}
    assert not any(id(m) in ids for m in view.modules())
    with torch.no_grad():
        found = view(two_images())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)

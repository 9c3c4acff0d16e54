"""Copies of detectors whose layers are randomised."""

import pytest
import torch
from oracle import FASTER_RCNN, RETINANET, SLIM, zoo_model
from torch import nn

from odam_d2.modeling import randomisation
from odam_d2.modeling.randomisation import layers_top_down, own_copy, randomised, write_parameters

BACKBONE = [f"backbone.bottom_up.{name}" for name in ("res5", "res4", "res3", "res2", "stem")]
LAYERS = {
    FASTER_RCNN: [
        "roi_heads.box_predictor.cls_score, roi_heads.box_predictor.bbox_pred",
        "roi_heads.box_head.fc2",
        "roi_heads.box_head.fc1",
        "backbone",
        *BACKBONE,
    ],
    RETINANET: [
        "head.cls_score, head.bbox_pred",
        *(f"head.cls_subnet.{n}, head.bbox_subnet.{n}" for n in (6, 4, 2, 0)),
        "backbone, backbone.top_block",
        *BACKBONE,
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_from_what_decides_down_to_what_reads_the_image(name):
    """The two towers go side by side, stages as a whole; proposals are kept, so no RPN."""
    model = zoo_model(name, opts=SLIM)
    layers = layers_top_down(model)
    assert [layer.name for layer in layers] == LAYERS[name]
    found = [parameter for layer in layers for parameter in layer.parameters]
    assert len(set(found)) == len(found)
    rest = {parameter for parameter, _ in model.named_parameters()} - set(found)
    assert all(parameter.startswith("proposal_generator.") for parameter in rest)


def test_norms_and_scales_go_with_the_convolutions_that_they_follow():
    opts = [*SLIM, "MODEL.META_ARCHITECTURE", "OdamFCOS", "MODEL.FCOS.NUM_CONVS", 2,
            "MODEL.FPN.OUT_CHANNELS", 32]  # fmt: skip
    layers = layers_top_down(zoo_model(RETINANET, opts=opts))
    second = [f"head.{branch}_subnet.{part}" for branch in ("cls", "bbox") for part in (3, 4)]
    assert layers[0].name == "head.cls_score, head.bbox_pred, head.ctrness"
    assert layers[1].name == "head.cls_subnet.3, head.bbox_subnet.3"
    assert sorted({p.rpartition(".")[0] for p in layers[1].parameters}) == sorted(second)


def test_depth_is_that_of_the_longest_way():
    """
    A transposed weight counts; y reads b directly, and behind c; the norm is no layer of its own.
    """
    torch.manual_seed(0)
    a, b, c = (nn.Parameter(torch.randn(3, 3)) for _ in range(3))
    norm = nn.Parameter(torch.ones(3))
    x = torch.randn(2, 3, requires_grad=True)
    low = (x @ a.T).relu()
    middle = (low @ b) * norm
    total = (middle @ c.T + middle).sum()
    names = {id(p): n for n, p in {"a": a, "b": b, "c": c, "norm": norm}.items()}
    assert randomisation._depths(total, names) == {"c": 0, "norm": 1, "b": 1, "a": 2}


def test_a_copy_shares_nothing(slim_model):
    calls = []
    handle = slim_model.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        copied = own_copy(slim_model)
        copied.backbone.register_forward_hook(lambda *_: None)
        assert len(slim_model.backbone._forward_hooks) == 1
    finally:
        handle.remove()
    pairs = zip(slim_model.state_dict().items(), copied.state_dict().values(), strict=True)
    for (name, value), other in pairs:
        assert torch.equal(value, other), name
        assert value.data_ptr() != other.data_ptr(), name
    copied.backbone(torch.zeros(1, 3, 64, 96))
    assert calls == [1]  # a hook is a part of what the detector does
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_a_copy_is_in_full_precision():
    model = nn.Sequential(nn.Linear(2, 2)).half()
    assert own_copy(model)[0].weight.dtype == torch.float32
    assert model[0].weight.dtype == torch.float16
    assert own_copy(model.double())[0].weight.dtype == torch.float64


def test_values_are_put_in_random_order():
    """Every layer's draw is the same whatever is drawn after it, and another for each seed."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 7))
    parameters = dict(model.named_parameters())
    first = randomisation.Layer("1", ("1.weight", "1.bias"))
    second = randomisation.Layer("0", ("0.weight",))
    drawn = randomised(parameters, [first, second], 5)
    assert set(drawn) == {"1.weight", "1.bias", "0.weight"}
    for name, value in drawn.items():
        before = parameters[name].detach()
        assert value.shape == before.shape
        assert not torch.equal(value, before)
        assert torch.equal(value.flatten().sort().values, before.flatten().sort().values)
    again = randomised(parameters, [first], 5)
    assert torch.equal(again["1.weight"], drawn["1.weight"])
    other = randomised(parameters, [first], 6)
    assert not torch.equal(other["1.weight"], drawn["1.weight"])
    kept = parameters["0.bias"].detach().clone()
    write_parameters(model, drawn)
    assert torch.equal(parameters["0.weight"], drawn["0.weight"])
    assert torch.equal(parameters["0.bias"], kept)

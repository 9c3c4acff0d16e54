"""Weights that are not finite are refused by name: with them a detector finds nothing, silently."""

import pytest
import torch
from demo_tool import run as run_demo
from demo_tool import save_image
from torch import nn

from odam_d2.engine import load_weights
from odam_d2.engine.weights import checkpoint_errors
from odam_d2.errors import UserError

pytest_plugins = ["demo_tool"]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("0.weight", float("nan"), "1 of the 6 values of 0.weight"),
        ("0.bias", float("-inf"), "1 of the 3 values of 0.bias"),
        ("1.running_var", float("inf"), "1 of the 3 values of 1.running_var"),
    ],
)
def test_a_parameter_or_buffer_that_is_not_finite_is_named(name, value, words, tmp_path):
    weights = model().state_dict()
    weights[name].view(-1)[1] = value
    torch.save({"model": weights}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth' are not finite: {words}"):
        load_weights(model(), str(tmp_path / "w.pth"))


def test_large_values_and_integers_are_finite(tmp_path):
    weights = model().state_dict()
    weights["0.weight"].fill_(torch.finfo(torch.float32).max)
    torch.save({"model": weights}, tmp_path / "w.pth")
    load_weights(model(), str(tmp_path / "w.pth"))


def test_the_demo_does_not_count_no_maps_of_such_a_detector(tmp_path, capsys, slim):
    weights = tmp_path / "slim.pth"
    state = torch.load(weights, weights_only=True)
    state["model"]["backbone.fpn_lateral2.weight"].fill_(float("nan"))
    torch.save(state, weights)
    image = save_image(tmp_path / "image.png")
    arguments = ["--config-file", slim, "--input", image, "--output", tmp_path / "out"]
    status, _, err = run_demo(capsys, *arguments)
    assert status == 1
    assert "of backbone.fpn_lateral2.weight are NaN" in err[-1]


def test_memory_that_does_not_suffice_is_no_fault_of_the_file():
    with pytest.raises(MemoryError), checkpoint_errors("model.pth"):
        raise MemoryError

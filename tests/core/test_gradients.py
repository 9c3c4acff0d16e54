"""Batched autograd against one call for each output."""

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from odam_d2.core import gradients as gradients_module
from odam_d2.core.cam import grad_cam, odam
from odam_d2.core.errors import InputError
from odam_d2.core.gradients import batched_gradients, gradient_heat_maps, precise
from odam_d2.core.heatmap import smooth


class Halve(torch.autograd.Function):
    """Not vectorisable: its backward looks at a value, which vmap cannot know."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        Halve.calls += 1
        assert grad.abs().max().item() >= 0
        return grad / 2


@pytest.fixture
def head():
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(6, 5, 3, padding=1)).double()


@pytest.fixture
def features():
    torch.manual_seed(1)
    return torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True)


def outputs_of(head, features):
    """Seven outputs of two images, at different cells, and the image of each."""
    out = head(features)
    image = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    row, column = torch.arange(7) % 5, torch.arange(7) % 8
    return out[image, torch.arange(7) % 5, row, column] ** 2, image


def one_by_one(outputs, inputs):
    return torch.stack([torch.autograd.grad(y, inputs, retain_graph=True)[0] for y in outputs])


def collect(outputs, inputs, **kwargs):
    chunks = list(batched_gradients(outputs, inputs, **kwargs))
    covered = [i for index, _ in chunks for i in range(index.start, index.stop)]
    assert covered == list(range(len(outputs)))
    return torch.cat([g for _, g in chunks]), [len(g) for _, g in chunks]


# 2 x 4 x 5 x 8 float64 are 2560 bytes, and each output is counted four times that.
@pytest.mark.parametrize(
    ("max_bytes", "lengths"),
    [(1, [1] * 7), (2 * 4 * 2560, [2, 2, 2, 1]), (3 * 4 * 2560, [3, 3, 1]), (2**30, [7])],
)
def test_matches_one_by_one_in_chunks_that_fit(head, features, max_bytes, lengths):
    outputs, _ = outputs_of(head, features)
    ours, chunks = collect(outputs, features, max_bytes=max_bytes)
    assert chunks == lengths
    torch.testing.assert_close(ours, one_by_one(outputs, features), rtol=1e-12, atol=1e-14)


def test_large_inputs_on_the_cpu_go_one_by_one(head, features, monkeypatch):
    monkeypatch.setattr(gradients_module, "_CPU_BATCH_ELEMENTS", features.numel() - 1)
    outputs, _ = outputs_of(head, features)
    ours, chunks = collect(outputs, features)
    assert chunks == [1] * 7
    torch.testing.assert_close(ours, one_by_one(outputs, features), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [1, 7])
def test_outputs_are_chosen_with_gradients_off(head, features, monkeypatch, count):
    """Explaining runs under no_grad; one output, and outputs one by one, are chosen there."""
    monkeypatch.setattr(gradients_module, "_CPU_BATCH_ELEMENTS", features.numel() - 1)
    outputs = outputs_of(head, features)[0][:count]
    with torch.no_grad():
        ours, _ = collect(outputs, features)
    torch.testing.assert_close(ours, one_by_one(outputs, features), rtol=1e-12, atol=1e-14)


def test_operation_without_vectorised_backward_falls_back(head, features):
    outputs, _ = outputs_of(nn.Sequential(head, nn.Hardtanh(-9, 9)), features)
    outputs = Halve.apply(outputs)
    Halve.calls = 0
    ours, chunks = collect(outputs, features)
    assert chunks == [1] * 7
    assert Halve.calls == 1 + 7, "tried once, then never again"
    torch.testing.assert_close(ours, one_by_one(outputs, features), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("max_bytes", [1, 2**30])
def test_output_that_does_not_read_the_input_has_gradient_zero(features, max_bytes):
    other = torch.ones(3, dtype=torch.float64, requires_grad=True)
    ours, _ = collect(other * 2, features, max_bytes=max_bytes)
    assert ours.shape == (3, *features.shape)
    assert not ours.any()


def test_no_outputs(head, features):
    outputs, image = outputs_of(head, features)
    assert list(batched_gradients(outputs[:0], features)) == []
    assert gradient_heat_maps(outputs[:0], features, image[:0]).shape == (0, 5, 8)


def test_wrong_use_is_refused(head, features):
    outputs, _ = outputs_of(head, features)
    with pytest.raises(ValueError, match="must be a vector"):
        next(batched_gradients(outputs[None], features))
    with pytest.raises(InputError, match="no graph: the head runs under"):
        next(batched_gradients(outputs.detach(), features))


def test_grad_fields_and_graph_are_left_alone(head, features):
    outputs, image = outputs_of(head, features)
    parameter = next(head.parameters())
    parameter.grad = torch.full_like(parameter, 3.0)
    maps = gradient_heat_maps(outputs, features, image)
    assert not maps.requires_grad
    assert features.grad is None
    assert (parameter.grad == 3).all()
    assert all(p.grad is None for p in list(head.parameters())[1:])
    outputs.sum().backward()  # The graph is still there.


@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("max_bytes", [1, 30_000, 2**30])
def test_heat_maps_of_each_output_in_its_image(head, features, sigma, max_bytes):
    outputs, image = outputs_of(head, features)
    gradients = one_by_one(outputs, features)[torch.arange(7), image]
    expected = odam(smooth(gradients, sigma), features.detach()[image]).relu()
    ours = gradient_heat_maps(outputs, features, image, sigma, max_bytes=max_bytes)
    assert expected.any(dim=0).any()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    signed = gradient_heat_maps(outputs, features, image, sigma, signed=True)
    assert signed.min() < 0
    torch.testing.assert_close(signed.relu(), expected, rtol=1e-12, atol=1e-14)


def test_smoothing_happens_before_the_product_with_the_feature():
    feature, seed = torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 5, 7)
    seed[0, 0, 2, 2], feature[0, 0, 2, 3] = 1.0, 1.0
    feature.requires_grad_()
    outputs, image = (seed * feature).sum()[None], torch.zeros(1, dtype=torch.int64)
    assert gradient_heat_maps(outputs, feature, image).max() == 0
    smoothed = gradient_heat_maps(outputs, feature, image, sigma=1.0)
    assert smoothed.argmax() == 2 * 7 + 3
    assert (smoothed > 0).sum() == 1


def test_scale_is_that_of_each_output_in_any_chunk(head, features):
    """Every output's own factor, where chunks of vectorised passes hold several."""
    outputs, image = outputs_of(head, features)
    factors = torch.arange(1.0, 8, dtype=torch.float64)

    def rule(gradient, feature, scale):
        return (scale * gradient).sum(dim=1)

    expected = gradient_heat_maps(
        outputs, features, image, signed=True, rule=lambda g, _: g.sum(dim=1)
    )
    for max_bytes in (1, 2**14, 2**28):
        found = gradient_heat_maps(
            outputs, features, image, signed=True, max_bytes=max_bytes, rule=rule, scale=factors
        )
        torch.testing.assert_close(found, factors[:, None, None] * expected)


def test_a_method_weighs_smoothed_gradients(head, features):
    """Grad-CAM with the Gaussian: its weights are means of what is left inside the map."""
    outputs, image = outputs_of(head, features)
    found = gradient_heat_maps(
        outputs, features, image, sigma=1.5, signed=True, rule=grad_cam, max_bytes=1
    )
    for row, (output, at) in enumerate(zip(outputs, image.tolist(), strict=True)):
        (gradient,) = torch.autograd.grad(output, features, retain_graph=True)
        smoothed = gaussian_filter(
            gradient[at].numpy(), (0, 1.5, 1.5), mode="constant", radius=(0, 5, 5)
        )
        weights = torch.as_tensor(smoothed).mean(dim=(1, 2))
        expected = torch.einsum("c,chw->hw", weights, features[at].detach())
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    """All other dtypes stay."""
    x = torch.tensor([1.5, -2.0], dtype=dtype)
    assert precise(x).dtype == torch.float32
    assert precise(x).tolist() == [1.5, -2.0]
    for other in (torch.float32, torch.float64, torch.int64):
        same = x.to(other)
        assert precise(same) is same


@pytest.mark.parametrize("rule", [odam, grad_cam])
def test_maps_of_half_precision_lose_no_more_than_the_gradients(rule):
    """Gradients of bfloat16 are smoothed, weighed and added up in float32."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, 32, 6, 9, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(2, 32, 6, 9, generator=generator).bfloat16()
    outputs = (weight * features).flatten(1).sum(dim=1)
    image = torch.zeros(2, dtype=torch.int64)
    found = gradient_heat_maps(outputs, features, image, sigma=1.0, signed=True, rule=rule)
    values = features.detach().float()
    expected = rule(smooth(weight.float(), 1.0), values)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_cut_is_the_only_way_back():
    """Of two levels, each made of one input by a part of its own; some outputs read one alone."""
    inputs = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    made = [torch.tanh(inputs) * 2, Halve.apply(inputs) ** 3]

    def head(levels):
        fine, coarse = (level.flatten(1) for level in levels)
        return torch.cat([fine.exp()[0, :2], fine[0, :1] * coarse[0, :1]])

    leaves = [level.detach().requires_grad_() for level in made]
    cut = list(zip(made, leaves, strict=True))
    expected = torch.cat([gradients for _, gradients in batched_gradients(head(made), inputs)])
    Halve.calls = 0
    outputs = head(leaves)
    for of_outputs, through, passes in (((0, 2), cut[:1], 0), ((0, 3), cut, 3)):
        some = slice(*of_outputs)
        found = [x for _, x in batched_gradients(outputs[some], inputs, cut=through)]
        assert torch.allclose(torch.cat(found), expected[some], rtol=1e-12, atol=0)
        assert Halve.calls == passes

"""Derivatives of probabilities against exact arithmetic: Python's decimals with 120 digits."""

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odam_d2.core import probabilities
from odam_d2.core.cam import grad_cam_pp
from odam_d2.core.probabilities import linearised, loses_digits, rescaled

SIZE = st.floats(-80, 80, width=32)
ROWS = st.integers(2, 7).flatmap(
    lambda m: st.lists(st.lists(SIZE, min_size=m, max_size=m), min_size=1, max_size=4)
)


def exact_softmax(row, label):
    """Probability and its derivative by each logit, as fractions of sums of exponentials."""
    powers = [Decimal(x).exp() for x in row]
    p = [power / sum(powers) for power in powers]
    return p[label], [p[label] * ((j == label) - p[j]) for j in range(len(p))]


def exact_sigmoid(x):
    p = 1 / (1 + (-Decimal(x)).exp())
    return p, p * (1 - p)


def gradients(closed, logits):
    """
    2 ** exponent times the derivative of each value, as decimals: float32 could not hold them.
    """
    values, exponents = linearised(closed, logits)
    (found,) = torch.autograd.grad(values.sum(), logits)[:1]
    return [
        [Decimal(2) ** int(exponent) * Decimal(float(x)) for x in row]
        for row, exponent in zip(found, exponents, strict=True)
    ]


def assert_close(found, expected, tolerance=Decimal("1e-6")):
    peak = max(abs(x) for x in expected)
    assert all(abs(a - b) <= tolerance * peak for a, b in zip(found, expected, strict=True))


@given(ROWS, st.integers(0, 6), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_softmax(rows, label, dtype):
    label %= len(rows[0])
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    closed = probabilities.softmax(logits, torch.full((len(rows),), label))
    found = gradients(closed, [logits])
    with localcontext() as context:
        context.prec = 120
        for row, derivative, log in zip(rows, found, closed.log, strict=True):
            probability, expected = exact_softmax(row, label)
            assert float(log) == pytest.approx(float(probability.ln()), rel=1e-9)
            assert_close(derivative, expected)


@given(SIZE, SIZE)
@settings(max_examples=60, deadline=None)
def test_sigmoid_and_the_root_of_two(first, second):
    a = torch.tensor([[0.0, first]], requires_grad=True)
    b = torch.tensor([[second]], requires_grad=True)
    parts = probabilities.sigmoid(a, torch.tensor([1])), probabilities.sigmoid(b, torch.tensor([0]))
    root = probabilities.geometric_mean(parts)
    values, exponents = linearised(root, (a, b))
    by_a, by_b = torch.autograd.grad(values.sum(), (a, b))
    with localcontext() as context:
        context.prec = 120
        p, slope = exact_sigmoid(first)
        q, other = exact_sigmoid(second)
        (alone,) = gradients(parts[0], [a])
        assert_close(alone, [Decimal(0), slope])
        both = [Decimal(2) ** int(exponents) * Decimal(float(x)) for x in (by_a[0, 1], by_b[0, 0])]
        assert_close(both, [(q / p).sqrt() / 2 * slope, (p / q).sqrt() / 2 * other])
        assert float(root.log.exp()) == pytest.approx(float((p * q).sqrt()), rel=1e-9)


@given(ROWS, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_mean_over_stages(rows, stages):
    """Each stage with the same logits times another number: a sure one, and one that is not."""
    stage_rows = [[[x / (1 + 9 * s) for x in row] for row in rows] for s in range(stages)]
    logits = [torch.tensor(r, requires_grad=True, dtype=torch.float64) for r in stage_rows]
    labels, together = torch.zeros(len(rows), stages, dtype=torch.int64), torch.stack(logits, dim=1)
    closed = probabilities.mean(probabilities.softmax(together, labels))
    values, exponents = linearised(closed, [together.flatten(1)])
    found = torch.autograd.grad(values.sum(), logits)
    with localcontext() as context:
        context.prec = 120
        for i in range(len(rows)):
            exact = [exact_softmax(of_stage[i], 0) for of_stage in stage_rows]
            mean = sum(p for p, _ in exact) / stages
            assert float(closed.log[i].exp()) == pytest.approx(float(mean), rel=1e-9)
            factor = Decimal(2) ** int(exponents[i])
            derivative = [factor * Decimal(float(x)) for stage in found for x in stage[i]]
            assert_close(derivative, [x / stages for _, d in exact for x in d], Decimal("1e-9"))


def test_seeds_have_size_one():
    """So that no product of weights underflows in float32, whatever the probability."""
    logits = torch.tensor([[80.0, -80.0], [3.0, 2.0], [-300.0, 300.0]], requires_grad=True)
    values, exponents = linearised(probabilities.softmax(logits, torch.zeros(3).long()), [logits])
    (seeds,) = torch.autograd.grad(values.sum(), logits)
    assert (seeds.abs().amax(1) >= 1 - 1e-6).all()
    assert (seeds.abs().amax(1) < 2).all()
    assert exponents.tolist() == [-231, -3, -866]  # log2 of e^-160, of 0.197, and of e^-600


def test_rescaled_is_rounded_once():
    """A factor below float32's range, of a map above it: 2^100 2^-160 = 2^-60."""
    values = torch.full((1, 2, 1, 1), 2.0**100)
    values[0, 1] = 3
    maps, lost = rescaled(values, torch.tensor([[-160.0, -3.0]], dtype=torch.float64))
    assert maps.flatten().tolist() == [2.0**-60, 0.375]
    assert lost.tolist() == [[True, False]]
    assert values.flatten().tolist() == [2.0**100, 3]


@pytest.mark.parametrize(
    ("peak", "exponent", "flag"),
    [
        (1.0, -117, False),  # a logit of 81
        (1.0, -118, True),
        (2.0**-9, -117, False),  # 2^-126, the least normal number
        (2.0**-10, -117, True),
        (0.0, -117, False),  # no positive evidence: nothing is lost
        (2.0**-140, 0, False),  # a side of the box
    ],
)
def test_what_is_lost_in_float32(peak, exponent, flag):
    exponents = torch.tensor([[exponent]], dtype=torch.float64)
    assert rescaled(torch.full((1, 1, 2, 2), peak), exponents)[1].item() is flag
    assert not rescaled(torch.full((1, 1, 2, 2), peak).double(), exponents)[1]


def test_no_map_at_all():
    maps, lost = rescaled(torch.zeros(0, 2, 3, 3), torch.zeros(0, 2, dtype=torch.float64))
    assert (maps.shape, lost.shape) == ((0, 2, 3, 3), (0, 2))


def test_probabilities_without_digits():
    """1 - p is a multiple of 6e-8 in float32: a thousandth of it is lost below 6e-5."""
    p = torch.tensor([0.5, 1 - 1e-3, 1 - 1e-5, 1.0, 0.0, 1e-30, 1e-37])
    assert loses_digits(p).tolist() == [False, False, True, True, True, False, True]
    assert loses_digits(p.double()).tolist() == [False, False, False, True, True, False, False]


def test_grad_cam_pp_of_a_tiny_gradient():
    """Not linear in the gradient: its weights need the true size, 1e-33 here and 1 there."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(2, 3, 4, 5, generator=generator)
    feature = torch.rand(2, 3, 4, 5, generator=generator)
    scale = torch.tensor([2.0**-110, 0.25])[:, None, None, None]
    true = gradient.double() * scale
    expected = grad_cam_pp(true, feature.double()) / scale[:, 0]
    found = grad_cam_pp(gradient, feature, scale)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    # The rule of a gradient of size one is another one.
    assert not torch.allclose(found, grad_cam_pp(gradient, feature), rtol=0.01)

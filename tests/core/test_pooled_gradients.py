"""Gradients of pooled features against plain autograd, for heads that begin in many ways."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from odam_d2.core.pooled_gradients import copied_gradients, pooled_gradients

N, C, R, S, WIDTH = 3, 4, 2, 5, 6
FLAT = C * R * S


class Head(nn.Module):
    """A linear layer on flattened features, and one more; subclasses begin in another way."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Linear(FLAT, WIDTH), nn.Linear(FLAT, WIDTH)
        self.last = nn.Linear(WIDTH, 3)

    def begin(self, x):
        return self.first(x.flatten(1))

    def forward(self, x):
        return self.last(torch.tanh(self.begin(x)))


class Sequential(Head):
    def begin(self, x):
        return nn.Sequential(nn.Flatten(), nn.Dropout().eval(), self.first)(x)


class NoBias(Head):
    def begin(self, x):
        return F.linear(x.reshape(len(x), -1), self.first.weight)


class WeightNorm(Head):
    def __init__(self):
        super().__init__()
        weight_norm(self.first)


class ChannelsLast(Head):
    def begin(self, x):
        return super().begin(x.contiguous(memory_format=torch.channels_last))


class HookOnOutput(Head):
    def begin(self, x):
        hook = self.first.register_forward_hook(lambda _module, _args, output: output * 2)
        try:
            return super().begin(x)
        finally:
            hook.remove()


class InPlace(Head):
    def begin(self, x):
        return super().begin(x.relu_())


class HookOnInput(Head):
    def begin(self, x):
        hook = self.first.register_forward_pre_hook(lambda _module, args: (args[0] ** 2,))
        try:
            return super().begin(x)
        finally:
            hook.remove()


class BackwardHook(Head):
    """Which changes the gradient on its way."""

    def begin(self, x):
        hook = self.first.register_full_backward_hook(lambda _module, grad, _out: (grad[0] * 3,))
        try:
            return super().begin(x)
        finally:
            hook.remove()


class Transposed(Head):
    def begin(self, x):
        return self.first(x.transpose(1, 3).flatten(1))


class ReadTwice(Head):
    def begin(self, x):
        return super().begin(x) + self.first(x.flip(-1).flatten(1))


class TwoLinears(Head):
    def begin(self, x):
        x = x.flatten(1)
        return self.first(x) + self.other(x)


class SkipConnection(Head):
    def begin(self, x):
        return super().begin(x) + x.mean(dim=(1, 2, 3))[:, None]


class Gram(Head):
    """Both factors of a product are the feature itself."""

    def begin(self, x):
        x = x.flatten(1)
        return self.first((x @ x.t()).diagonal()[:, None] * torch.ones(FLAT, dtype=x.dtype))


class EachCell(Head):
    """A linear layer on the channels of each cell, or on the cells of each channel."""

    def begin(self, x):
        return F.linear(x.flatten(2), self.first.weight[:, : R * S]).mean(dim=1)


class Scaled(Head):
    def begin(self, x):
        return torch.addmm(self.first.bias, x.flatten(1), self.first.weight.t(), alpha=2)


class Convolution(Head):
    def begin(self, x):
        return super().begin(F.conv2d(x, torch.ones(C, 1, 1, 1, dtype=x.dtype), groups=C))


SPLIT = [Head, Sequential, NoBias, WeightNorm, ChannelsLast, HookOnOutput]
WHOLE = [InPlace, HookOnInput, BackwardHook, Transposed, ReadTwice, TwoLinears, SkipConnection,
         Gram, EachCell, Scaled, Convolution]  # fmt: skip


def leaves(count=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (N, C, R, S)
    return [
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(count)
    ]


def check(outputs, pooled, tolerance=1e-12):
    """Against one backward pass for each output and row."""
    for leaf, of_stage in zip(pooled, pooled_gradients(outputs, pooled), strict=True):
        expected = [torch.autograd.grad(output.sum(), leaf, retain_graph=True, allow_unused=True)[0]
                    for output in outputs]  # fmt: skip
        used = [number for number, gradient in enumerate(expected) if gradient is not None]
        if not used:
            assert of_stage is None
            continue
        assert of_stage[0] == used
        stacked = torch.stack([expected[number] for number in used], dim=1)
        torch.testing.assert_close(of_stage[1], stacked, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", SPLIT + WHOLE)
def test_heads_that_begin_in_many_ways(kind, frozen):
    torch.manual_seed(1)
    head = kind().double().requires_grad_(not frozen)
    (leaf,) = leaves()
    outputs = head(leaf.clone()).unbind(dim=1)
    calls = []
    leaf.register_hook(calls.append)
    check(outputs, [leaf])
    # Plain autograd, which the oracle is, comes to the leaf once for each output.
    assert len(calls) == len(outputs) if kind in SPLIT else len(calls) > len(outputs)


def test_single_precision_and_what_a_user_would_see():
    """No ``.grad`` is touched, and the graph is there to be used again."""
    head = Head()
    (leaf,) = leaves(dtype=torch.float32)
    outputs = head(leaf.clone()).unbind(dim=1)
    for _ in range(2):
        check(outputs, [leaf], 1e-5)
    assert leaf.grad is None
    assert all(parameter.grad is None for parameter in head.parameters())


def test_a_weight_that_is_not_contiguous():
    head = Head().double()
    head.first.weight = nn.Parameter(head.first.weight.detach().t().contiguous().t())
    (leaf,) = leaves()
    check(head(leaf.clone()).unbind(dim=1), [leaf])


def test_stages_that_some_outputs_do_not_read():
    """A cascade's scores are of all stages, its sides of the last; and here nobody reads one."""
    heads, pooled = [Head().double() for _ in range(3)], leaves(4)
    pooled_of_heads = [leaf.clone() for leaf in pooled[:3]]
    first, second, third = (head(x) for head, x in zip(heads, pooled_of_heads, strict=True))
    outputs = [third[:, 0], (first + second + third)[:, 1], third[:, 2], first[:, 0]]
    check(outputs, pooled)


def test_stages_that_share_their_head():
    head, pooled = Head().double(), leaves(2)
    first, second = (head(leaf.clone()) for leaf in pooled)
    check([first[:, 0] + second[:, 0], second[:, 1]], pooled)


def test_copies_for_each_output_give_the_same_in_one_pass():
    """
    Of two stages, of which an output reads one only, which is then zero; and of the last instance,
    of which nothing is differentiated.
    """
    heads, pooled = [Head().double() for _ in range(2)], leaves(3)
    first, second = (head(leaf.clone()) for head, leaf in zip(heads, pooled[:2], strict=True))
    expected = pooled_gradients([(first + second)[:-1, 1], second[:-1, 0]], pooled)
    copies = [x.detach()[:, None].expand(-1, 2, -1, -1, -1).requires_grad_() for x in pooled]
    calls = []
    copies[0].register_hook(calls.append)
    first, second = (head(x.flatten(0, 1)) for head, x in zip(heads, copies[:2], strict=True))
    found = copied_gradients([(first + second)[:, 1], second[:, 0]], copies, N - 1)
    assert len(calls) == 1
    assert found[2] is None
    for (targets, gradient), (used, of_used) in zip(found[:2], expected[:2], strict=True):
        assert targets == [0, 1]
        torch.testing.assert_close(gradient[:, used], of_used)
    assert not found[0][1][:, 1].any()
    assert not found[1][1][-1].any()

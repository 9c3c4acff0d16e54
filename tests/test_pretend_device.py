"""The device that is not there refuses what a GPU refuses, and counts what makes the host wait."""

import pytest
import torch
from pretend_device import DEVICE, PretendTensor, counted, pretend
from torch import nn


@pytest.fixture(autouse=True)
def device():
    with pretend():
        yield


def waits(run):
    """How often the host waits in a function, by what it waits for."""
    with counted() as counts:
        run()
    return dict(counts.waits)


def test_tensors_say_where_they_are():
    made = torch.zeros(2, 3, device=DEVICE)
    assert made.device == DEVICE
    assert isinstance(made, PretendTensor)
    for derived in (made + 1, made.T, made.new_ones(2), torch.zeros_like(made), made.sum()):
        assert derived.device == DEVICE
    assert made.cpu().device.type == "cpu"
    assert made.to("cpu", torch.float64).dtype == torch.float64
    assert torch.arange(3).device.type == "cpu"


def test_the_host_and_the_device_do_not_mix():
    made = torch.zeros(3, device=DEVICE)
    for mixed in (lambda: made + torch.zeros(3), lambda: torch.cat([torch.zeros(3), made])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="copy it to the host"):
        made.numpy()
    assert (made + torch.tensor(2.0)).tolist() == [2, 2, 2]  # a number


def test_a_host_that_waits_is_counted():
    x = torch.tensor([3.0, 1.0, 3.0], device=DEVICE)
    assert waits(lambda: x.sum().item()) == {"aten::_local_scalar_dense": 1}
    assert waits(lambda: bool((x > 0).all())) == {"aten::_local_scalar_dense": 1}
    assert waits(lambda: x.tolist()) == {"tolist": 1}
    assert waits(lambda: x.cpu()) == {"to the host": 1}
    assert waits(lambda: x.new_tensor([1, 2])) == {"from the host": 1}
    assert waits(lambda: torch.ones(3).to(DEVICE)) == {"from the host": 1}
    assert waits(lambda: x[[0, 1]]) == {"from the host": 1}
    assert waits(lambda: x[x > 2]) == {"aten::index by a mask": 1}
    assert waits(lambda: x.unique()).keys() == {"aten::_unique2"}
    assert waits(lambda: (x > 2).nonzero()) == {"aten::nonzero": 1}
    assert waits(lambda: torch.equal(x, x + 1)) == {"aten::equal": 1}
    repeats = torch.tensor([1, 2, 0], device=DEVICE)
    assert waits(lambda: x.repeat_interleave(repeats)) == {"aten::repeat_interleave": 1}


def test_a_host_that_need_not_wait_is_not_counted():
    x = torch.tensor([3.0, 1.0, 3.0], device=DEVICE)
    rows, repeats = x.argsort(), torch.tensor([1, 2, 0], device=DEVICE)

    def run():
        x[rows].add_(1)[0] = 2
        x[1:][:, None].T.flatten()
        x.repeat_interleave(repeats, output_size=3)
        torch.full_like(x, 7)[x > 2] = 0.0  # filled by a mask
        torch.where(x > 2, x, -1).topk(2)

    assert waits(run) == {}


def test_shapes_change_in_place():
    x = torch.arange(6.0, device=DEVICE)
    assert x.unsqueeze_(0).shape == (1, 6)
    assert x.t_().shape == (6, 1)
    assert x.squeeze_(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert (torch.ones(2, device=DEVICE) @ x.view(2, 3)).tolist() == [3, 5, 7]


def test_operations_are_counted_and_views_among_them():
    x = torch.zeros(4, device=DEVICE)
    with counted() as outer:
        (x + 1).view(2, 2)
        with counted() as inner:
            x.mul_(2)
    assert (outer.operations, outer.kernels) == (3, 2)
    assert (inner.operations, inner.kernels) == (1, 1)
    assert (outer - inner).operations == 2


def test_networks_run_forwards_and_backwards():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = torch.rand(2, 3, 8, 8)
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.to(DEVICE)(x.to(DEVICE)).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.device == parameter.grad.device == DEVICE
        assert torch.equal(parameter.grad.cpu(), gradient)


def test_autocast_lowers_products():
    x = torch.ones(2, 2, device=DEVICE)
    with torch.autocast("pretend", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert (x + x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32

"""Which towers windows can go through: any other would have wrong maps, not slow ones."""

import pytest
import torch
from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import nn

from odam_d2.modeling.adapters.towers import is_local

CONV = {"kernel_size": 3, "padding": 1}
PREDICTOR = nn.Conv2d(8, 4, 3, padding=1)


def tower(*modules):
    return nn.Sequential(nn.Conv2d(8, 8, **CONV), nn.ReLU(), *modules)


def local(chain, predictor=PREDICTOR, constant=False):
    return is_local(chain, [predictor], constant=constant)


@pytest.mark.parametrize("norm", [
    nn.BatchNorm2d(8), nn.SyncBatchNorm(8), NaiveSyncBatchNorm(8), FrozenBatchNorm2d(8),
    CycleBatchNormList(2, num_features=8),
])  # fmt: skip
def test_towers_that_are_local(norm):
    assert local(tower())
    assert local(nn.Sequential())  # the predictor reads the features themselves
    assert local(tower(nn.Conv2d(8, 8, 5, padding=2), norm, nn.ReLU()))


@pytest.mark.parametrize("change", [
    {"kernel_size": (3, 5)},  # padding of 1 keeps the rows, and not the columns
    {"kernel_size": 4, "padding": 2},
    {"padding": 0},
    {"padding": "same"},
    {"padding_mode": "reflect"},
    {"padding_mode": "circular"},
    {"stride": 2},
    {"stride": (1, 2)},
    {"dilation": 2},
    {"groups": 2},
], ids=str)  # fmt: skip
def test_convolutions_of_another_geometry(change):
    """In the tower, and as predictor: one condition at a time is not met."""
    conv = nn.Conv2d(8, 8, **{**CONV, **change})
    assert not local(tower(conv, nn.ReLU()))
    assert not local(tower(), conv)


class Twice(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OtherConv(nn.Conv2d):
    pass


class Skip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def conv():
    return nn.Conv2d(8, 8, **CONV)


@pytest.mark.parametrize("modules", [
    (conv(),),
    (nn.ReLU(),),
    (nn.BatchNorm2d(8), nn.ReLU()),
    (conv(), nn.BatchNorm2d(8)),
    (conv(), nn.ReLU(), nn.BatchNorm2d(8)),
    (conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU()),
    (conv(), nn.LeakyReLU()),
    (conv(), nn.Dropout(), nn.ReLU()),
    (OtherConv(8, 8, **CONV), nn.ReLU()),
    (conv(), Twice(8), nn.ReLU()),
    (conv(), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()),
    (conv(), nn.InstanceNorm2d(8), nn.ReLU()),
    (conv(), CycleBatchNormList(2, nn.InstanceNorm2d, num_features=8), nn.ReLU()),
    (conv(), CycleBatchNormList(2, Twice, num_features=8), nn.ReLU()),
], ids=lambda x: "-".join(type(m).__name__ for m in x))  # fmt: skip
def test_other_chains(modules):
    assert not local(tower(*modules))


def test_group_norm_is_local_with_constant_statistics_only():
    chain = tower(conv(), nn.GroupNorm(2, 8), nn.ReLU())
    assert not local(chain)
    assert local(chain, constant=True)
    assert local(tower(conv(), nn.BatchNorm2d(8), nn.ReLU()), constant=True)
    assert not local(tower(conv(), nn.LayerNorm([8, 4, 4]), nn.ReLU()), constant=True)


def test_more_than_the_modules_in_a_row():
    assert not local(Skip(*tower()))
    assert not is_local(nn.Identity(), [PREDICTOR], constant=False)
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        hook = f"register_{kind}_hook"
        for hooked in (0, 1):
            chain = tower()
            getattr(chain[hooked], hook)(lambda *_: None)
            assert not local(chain)
        chain = tower()
        getattr(chain, hook)(lambda *_: None)
        assert not local(chain)
        predictor = nn.Conv2d(8, 4, 1)
        getattr(predictor, hook)(lambda *_: None)
        assert not local(tower(), predictor)
    chain = tower()
    chain[1].forward = torch.abs
    assert not local(chain)

import torch

from odam_d2.core.targets import outward


def test_outward_grows_when_the_box_grows():
    box = torch.tensor([10.0, 20.0, 30.0, 50.0])
    larger = box + torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert (outward(larger) - outward(box)).tolist() == [1, 1, 1, 1]
    assert outward(torch.stack([box, larger]))[0].tolist() == [-10, -20, 30, 50]

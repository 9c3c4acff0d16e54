"""Masks and levels of D-CLOSE, against torch's own resizing and plain loops."""

import pytest
import torch
import torch.nn.functional as F

from odam_d2.core.d_close import cascade, segment_mask


@pytest.mark.parametrize("enlarge", [0.0, 0.7, 2.2])
def test_a_mask_is_cut_out_of_what_was_enlarged(enlarge):
    labels = torch.arange(6).view(2, 3).repeat_interleave(5, 0).repeat_interleave(4, 1)
    mask = segment_mask(labels, 0.5, enlarge, torch.Generator().manual_seed(4))
    assert mask.shape == (10, 12)
    generator = torch.Generator().manual_seed(4)
    seen = (torch.rand(6, generator=generator) < 0.5).float()
    assert 0 < seen.sum() < 6
    more = int(enlarge * 10), int(enlarge * 12)
    whole = F.interpolate(
        seen[labels][None, None], (10 + more[0], 12 + more[1]), mode="bilinear", align_corners=False
    )[0, 0]
    top, left = (int(torch.randint(x + 1, (), generator=generator)) for x in more)
    expected = whole[top : top + 10, left : left + 12]
    torch.testing.assert_close(mask, expected, rtol=1e-5, atol=1e-5)


def test_as_many_segments_are_seen_as_asked_for():
    labels, generator = torch.arange(10_000).view(100, 100), torch.Generator().manual_seed(0)
    assert abs(float(segment_mask(labels, 0.2, 0.0, generator).mean()) - 0.2) < 0.02


def test_levels_are_put_together_from_the_finest_on():
    """By hand: means (0, 2, 4) and (1, 0, 0), the finer; scaled 0, 1/2, 1 and 1, 0, 0."""
    sums = torch.tensor([[[[0.0, 4, 8]]], [[[3.0, 0, 0]]]]).double()
    densities = torch.tensor([[[2.0, 2, 2]], [[3.0, 0, 1]]]).double()
    found = cascade(sums, densities)
    # (1, 0, 0) + (0, 1/2, 1), times (0, 1/2, 1)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.25, 1.0]]]).double())
    flat = cascade(torch.ones(2, 1, 1, 3), torch.ones(2, 1, 3))
    assert torch.equal(flat, torch.zeros(1, 1, 3))  # says nothing

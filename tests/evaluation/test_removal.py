"""What is removed from a picture, and what takes its place; H != W."""

import cv2
import numpy as np
import pytest
import torch

from odam_d2.evaluation.removal import REMOVALS, Patch, Removal

SIZE = (40, 56)


def part(y1, x1, y2, x2, size=SIZE):
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def test_a_part_is_dilated_and_centred():
    patch = Patch.of_part(part(10, 20, 15, 27), SIZE)
    assert patch.area == (5 + 4) * (7 + 4)
    assert patch.centre == (12, 23)
    assert (patch.at(patch.centre, SIZE) == part(8, 18, 17, 29)).all()
    assert (patch.at((20, 30), SIZE) == part(16, 25, 25, 36)).all()
    # Over the border it is cut off, and does not come in again on the other side.
    assert (patch.at((0, 55), SIZE) == part(0, 50, 5, 56)).all()
    assert Patch.of_part(np.zeros(SIZE, np.uint8), SIZE) is None


def test_a_part_is_dilated_at_the_size_of_the_input():
    patch = Patch.of_part(part(10, 20, 15, 27), (80, 112))
    assert (patch.at(patch.centre, (80, 112)) == part(18, 38, 32, 56, (80, 112))).all()


def test_a_share_of_a_box():
    patch = Patch.of_box(torch.tensor([4.0, 8, 36, 24]), 0.25)
    assert (patch.at((20, 30), SIZE) == part(18, 26, 22, 34)).all()
    assert Patch.of_box(torch.tensor([4.0, 8, 5, 9]), 0.25).area == 1


def picture():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", REMOVALS)
def test_only_what_is_masked_changes(kind):
    image, other = picture(), picture().flip(2)
    mask = part(10, 20, 20, 30).astype(bool)
    before = image.clone()
    found = Removal(image, other)(mask, kind)
    where = torch.as_tensor(mask)
    assert torch.equal(found[:, ~where], image.float()[:, ~where])
    assert (found[:, where] - image[:, where]).abs().mean() > 20
    assert torch.equal(image, before)
    assert torch.equal(Removal(image, other)(np.zeros(SIZE, bool), kind), image.float())


def test_each_fill_by_its_definition():
    image, other = picture(), picture().flip(2)
    mask = part(2, 20, 12, 33).astype(bool)
    where, removal = torch.as_tensor(mask), Removal(image, other)
    assert torch.equal(removal(mask, "other")[:, where], other.float()[:, where])
    mean = image.float().mean(dim=(1, 2))
    torch.testing.assert_close(removal(mask, "mean")[:, where], mean[:, None].expand(3, 130))
    whole = cv2.inpaint(image.permute(1, 2, 0).numpy(), mask.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    assert torch.equal(removal(mask, "inpaint"), torch.as_tensor(whole).permute(2, 0, 1).float())

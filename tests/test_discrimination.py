"""Overlapping detections in one picture: groups, colours, the matrix, and the demo's flag."""

import numpy as np
import torch
from blob_maps import blob_detections
from demo_tool import files_in, links, run, save_image

from odam_d2.visualization import discrimination
from odam_d2.visualization.crops import crop_around
from odam_d2.visualization.discrimination import (
    COLORS,
    draw_discrimination,
    draw_groups,
    overlapping_groups,
)

pytest_plugins = ["demo_tool"]
SIZE = (120, 200)
NAMES = ["a", "b"]


def test_groups_by_hand():
    boxes = torch.tensor([
        [0.0, 0, 10, 10],  # 0 overlaps 1 by 5 x 10 of 15 x 10
        [5, 0, 15, 10],  # 1 overlaps 2 likewise: all three are one group
        [10, 0, 20, 10],
        [100, 0, 110, 10],  # alone
        [50, 50, 60, 60],  # a pair, with a smaller one inside: 1 / 4
        [50, 50, 55, 55],
    ])  # fmt: skip
    assert overlapping_groups(boxes, 0.2) == [[0, 1, 2], [4, 5]]
    assert overlapping_groups(boxes, 0.3) == [[0, 1, 2]]
    assert overlapping_groups(boxes, 1 / 3) == []  # above, not at
    assert overlapping_groups(boxes[:0], 0.1) == []


def picture():
    return np.full((*SIZE, 3), 80, np.uint8)


def tinted_at(boxes, x, y):
    """The colour at a place of the image, (x, y) in its pixels."""
    found = blob_detections(SIZE, boxes, targets=("class",))
    heats = found.odam_maps.normalized().dense(*SIZE)[:, 0].numpy()
    boxes = found.pred_boxes.tensor.numpy()
    drawn = discrimination._tinted(picture(), heats, boxes)
    x1, y1, x2, y2 = crop_around(boxes[0], boxes.reshape(-1, 2), SIZE)
    place = (y - y1) / (y2 - y1) * drawn.shape[0], (x - x1) / (x2 - x1) * drawn.shape[1]
    return drawn[int(place[0]), int(place[1])].astype(float)


def glowing(*colors):
    """A grey of 80, dimmed, with the colours of maps at their peaks."""
    return np.minimum(255, 0.42 * 80 + 0.85 * sum(np.array(color) for color in colors))


def test_each_map_has_its_colour_and_they_mix():
    apart = [[20, 20, 80, 100], [90, 20, 150, 100]]  # peaks in their middles
    np.testing.assert_allclose(tinted_at(apart, 50, 60), glowing(COLORS[0]), atol=12)
    np.testing.assert_allclose(tinted_at(apart, 120, 60), glowing(COLORS[1]), atol=12)
    np.testing.assert_allclose(tinted_at(apart, 85, 95), 0.42 * 80, atol=3)  # nobody's
    same = [[20, 20, 80, 100], [20, 20, 80, 100]]
    np.testing.assert_allclose(tinted_at(same, 50, 60), glowing(*COLORS[:2]), atol=12)


def test_the_matrix_says_how_maps_correlate(monkeypatch):
    given = []
    monkeypatch.setattr(discrimination, "_draw_matrix", lambda *args: given.append(args[-1]))
    found = blob_detections(SIZE, [[20, 20, 80, 100], [40, 20, 100, 100]])
    before = picture()
    draw_discrimination(before, found, NAMES)
    np.testing.assert_allclose(given[0], found.odam_maps.similarity("class").numpy(), atol=1e-6)
    assert (before == 80).all()
    only = blob_detections(SIZE, [[20, 20, 80, 100], [40, 20, 100, 100]], targets=("left",))
    draw_discrimination(before, only, NAMES)
    np.testing.assert_allclose(given[1], only.odam_maps.similarity("left").numpy(), atol=1e-6)


def test_odd_groups_are_drawn():
    boxes = [[-5.0, -5, 30, 30], [0, 0, 31, 31], [10, 10, 11, 11], [180, 90, 230, 140]]
    found = blob_detections(SIZE, boxes)
    found.odam_maps.values[1] = 0
    assert draw_discrimination(picture(), found, NAMES).dtype == np.uint8
    assert draw_discrimination(picture(), found[:1], NAMES).ndim == 3
    many = blob_detections(SIZE, [[20.0 + i, 20, 80, 100] for i in range(11)])
    few = draw_discrimination(picture(), many[: len(COLORS)], NAMES)
    more = draw_discrimination(picture(), many, NAMES)
    assert more.shape[1] == few.shape[1]
    assert more.shape[0] > few.shape[0]  # a line that says how many are not shown
    assert draw_groups(picture(), found[[0, 3]], NAMES, 0.1) is None
    assert draw_groups(picture(), found[:0], NAMES, 0.1) is None
    single = draw_groups(picture(), many, NAMES, 0.1)
    assert (single == more).all()


def test_the_demo_draws_groups(tmp_path, capsys, fake):
    image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
    fake.boxes = [[5.0, 5, 35, 30], [15.0, 5, 45, 30]]  # IoU 20 / 40
    status, _, err = run(capsys, "--input", image, "--output", out, "--discriminate")
    assert status == 0, err
    assert "street/groups.png" in files_in(out)
    assert "street/groups.png" in links(out / "index.html")
    status, _, err = run(capsys, "--input", image, "--output", out)
    assert status == 0, err
    assert "street/groups.png" not in files_in(out)


def test_no_group_is_said(tmp_path, capsys, fake):
    image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
    fake.boxes = [[5.0, 5, 35, 30], [15.0, 5, 45, 30]]
    status, text, err = run(capsys, "--input", image, "--output", out, "--discriminate", "0.6")
    assert status == 0, err
    assert "no detections overlap by an IoU above 0.6" in text + str(err)
    assert "street/groups.png" not in files_in(out)
    status, _, err = run(capsys, "--input", image, "--output", out, "--discriminate", "1.5")
    assert status == 1
    assert "--discriminate is 1.5; it must be in [0, 1)" in str(err)

"""Overlapping detections in one picture: groups, colours, the matrix, and the demo's flag."""

import itertools

import numpy as np
import pytest
import torch
from blob_maps import blob_detections
from demo_tool import files_in, links, run, save_image
from PIL import ImageDraw

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


def rows(boxes, iou_thresh):
    return [group.tolist() for group in overlapping_groups(boxes, iou_thresh)]


def test_groups_by_hand():
    boxes = torch.tensor([
        [0.0, 0, 10, 10],  # 0 overlaps 1 by 5 x 10 of 15 x 10
        [5, 0, 15, 10],  # 1 overlaps 2 likewise: all three are one group
        [10, 0, 20, 10],
        [100, 0, 110, 10],  # alone
        [50, 50, 60, 60],  # a pair, with a smaller one inside: 1 / 4
        [50, 50, 55, 55],
    ])  # fmt: skip
    assert rows(boxes, 0.2) == [[0, 1, 2], [4, 5]]
    assert rows(boxes, 0.3) == [[0, 1, 2]]
    assert rows(boxes, 1 / 3) == []  # above, not at
    assert rows(boxes, 0) == [[0, 1, 2], [4, 5]]  # 0 and 2 only touch
    assert rows(boxes[[0, 2]], 0) == []
    assert rows(boxes[[4, 5, 0, 1]], 0.2) == [[0, 1], [2, 3]]  # the best detection's first
    assert rows(boxes[:0], 0.1) == []


def picture():
    return np.full((*SIZE, 3), 80, np.uint8)


def tinted_at(boxes, x, y):
    """The colour at a place of the image, (x, y) in its pixels."""
    found = blob_detections(SIZE, boxes, targets=("class",))
    heats = found.odam_maps.normalized().dense(*SIZE)[:, 0].numpy()
    boxes = found.pred_boxes.tensor.numpy()
    drawn = discrimination._tinted(picture(), heats, boxes, ["", ""], 420)
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


@pytest.fixture
def written(monkeypatch):
    """All texts that are drawn, in their order."""
    texts, text = [], ImageDraw.ImageDraw.text

    def record(self, place, string, *args, **kwargs):
        texts.append(string)
        return text(self, place, string, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def test_the_matrix_says_how_maps_correlate(written):
    boxes = [[20, 20, 80, 100], [26, 20, 86, 100], [45, 20, 105, 100]]
    found = blob_detections(SIZE, boxes, classes=[0, 1, 0], scores=[0.5, 0.9, 0.7])
    before = picture()
    for target, options in [("class", {}), ("left", {"target": "left"})]:
        written.clear()
        draw_discrimination(before, found, NAMES, **options)
        similarity = found.odam_maps.similarity(target)
        assert similarity[0, 1] != similarity[0, 2]
        order = [1, 2, 0]  # by score
        expected = [f"{value:.2f}" for value in similarity[order][:, order].flatten().tolist()]
        assert [text for text in written if text[1:2] == "." and len(text) == 4] == expected
        assert {f"correlation of the {target} maps", "b 0.90", "a 0.70", "a 0.50"} <= set(written)
    assert (before == 80).all()
    only = blob_detections(SIZE, boxes, targets=("left", "top"))
    written.clear()
    draw_discrimination(before, only, NAMES)
    assert "correlation of the left maps" in written


def test_numbers_are_those_of_the_detections(written):
    apart, pair = [[150.0, 20, 190, 60]], [[20.0, 20, 80, 100], [30, 20, 90, 100]]
    found = blob_detections(SIZE, [*apart, *pair])
    draw_groups(picture(), found, NAMES, 0.1)
    assert {"1", "2"} <= set(written)
    assert "0" not in written


def test_numbers_are_not_on_one_another():
    rng = np.random.default_rng(0)
    for size in [(420, 300), (300, 690)]:
        corners = rng.uniform(0, [size[1], size[0]], (8, 2))
        for places in (corners, corners[[0] * 8], corners * [1, 0], corners + 400):
            centres = np.array(discrimination._free_places(places, size))
            assert (centres >= 13).all()
            assert (centres <= np.array(size[::-1]) - 13).all()
            for one, other in itertools.combinations(centres, 2):
                assert abs(one - other).max() >= 26


def test_odd_groups_are_drawn(written):
    boxes = [[-5.0, -5, 30, 30], [0, 0, 31, 31], [10, 10, 11, 11], [180, 90, 230, 140]]
    found = blob_detections(SIZE, boxes)
    found.odam_maps.values[1] = 0
    assert draw_discrimination(picture(), found, NAMES).dtype == np.uint8
    assert {"a 0.90", "a 0.89 · no positive evidence"} <= set(written)
    draw_discrimination(picture(), found, ["endless " * 20])
    assert any(text.endswith("… 0.90") for text in written)
    assert draw_discrimination(picture(), found[:1], NAMES).ndim == 3
    many = blob_detections(SIZE, [[20.0 + i, 20, 80, 100] for i in range(11)])
    written.clear()
    draw_discrimination(picture(), many[: len(COLORS)], NAMES)
    assert not any("more" in text for text in written)
    more = draw_discrimination(picture(), many, NAMES)
    assert "and 3 more, not shown" in written
    assert "8" not in written  # the best eight are 0 to 7
    assert draw_groups(picture(), found[[0, 3]], NAMES, 0.1) is None
    assert draw_groups(picture(), found[:0], NAMES, 0.1) is None
    single = draw_groups(picture(), many, NAMES, 0.1)
    assert (single == more).all()


def test_of_many_groups_it_is_said_how_many_are_missing(written):
    boxes = [
        [x + d, y, x + d + 20, y + 20] for x in (5.0, 60, 120) for y in (5, 60) for d in (0, 5)
    ]
    found = blob_detections(SIZE, boxes)
    draw_groups(picture(), found, NAMES, 0.1)
    assert "and 2 more groups, not shown" in written
    written.clear()
    draw_groups(picture(), found, NAMES, 0.1, max_groups=6)
    assert not any("more" in text for text in written)


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
    assert "street/groups.png" not in links(out / "index.html")


@pytest.mark.parametrize("value", ["1.5", "1", "-0.1", "nan"])
def test_a_bad_overlap_is_one_sentence(value, tmp_path, capsys, fake):
    image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
    status, _, err = run(capsys, "--input", image, "--output", out, "--discriminate", value)
    assert status == 1
    assert err == [f"error: --discriminate is {value}; it must be in [0, 1)"]
    assert not out.exists()


def test_the_demo_falls_back_to_the_first_target(tmp_path, capsys, fake, written):
    image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
    fake.boxes = [[5.0, 5, 35, 30], [15.0, 5, 45, 30]]
    status, _, err = run(capsys, "--input", image, "--output", out, "--targets", "top", "left",
                         "--discriminate", "0.3")  # fmt: skip
    assert status == 0, err
    assert "correlation of the top maps" in written

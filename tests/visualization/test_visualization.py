"""Pixel facts of the pictures."""

import cv2
import numpy as np
import pytest
import torch
from blob_maps import blob_detections, blob_maps
from detectron2.structures import Boxes, Instances

from odam_d2.core.targets import SIDES
from odam_d2.structures.heat_colors import colorize
from odam_d2.visualization import (
    blend_heat,
    contact_sheet,
    draw_box,
    draw_detections,
    draw_explanation,
    fit_canvas,
    overlay,
)
from odam_d2.visualization.crops import crop_around, draw_crop_rows, draw_crops
from odam_d2.visualization.overlay import ACCENT, describe_target
from odam_d2.visualization.suppressed import draw_suppressed, suppressed_pairs
from odam_d2.visualization.text import draw_label

HEIGHT, WIDTH = 60, 100
BOX = (20.0, 10.0, 70.0, 40.0)
BORDER_BOXES = {
    "left": (0, 20, 12, 40),
    "top": (40, 0, 60, 9),
    "right": (90, 20, 100, 40),
    "bottom": (40, 50, 60, 60),
    "whole": (0, 0, 100, 60),
    "beyond": (-20, -10, 130, 90),
    "one pixel": (99, 59, 100, 60),
    "outside": (150, 80, 170, 90),
}


def grey(value=100, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), value, np.uint8)


def noise(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def extent(mask):
    """(x1, y1, x2, y2) of the true pixels, ends exclusive."""
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009, at full severity, of linear RGB.
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


class TestBlendHeat:
    def test_strongest_colour_is_where_the_map_peaks(self):
        # Row 8, column 21 of a stride-4 map is centred at pixel (x, y) = (86, 34), between the
        # pixels 85 and 86, 33 and 34.
        heat = blob_maps((HEIGHT, WIDTH), [[(86, 34)]], ["class"]).dense(HEIGHT, WIDTH)[0, 0]
        out = blend_heat(grey(), heat).astype(int)
        y, x = np.nonzero(out.sum(axis=2) == out.sum(axis=2).max())
        assert sorted(set(x)) == [85, 86]
        assert sorted(set(y)) == [33, 34]
        # 0.8 of inferno's last colour (252, 254.6, 164.5), 0.2 of the softened grey, 92.
        np.testing.assert_allclose(out[34, 86], (220.0, 222.1, 150.0), atol=0.6)

    def test_without_evidence_the_picture_stays(self):
        heat = np.zeros((HEIGHT, WIDTH), np.float32)
        heat[30, 50] = 3
        out = blend_heat(grey(), heat)
        others = np.delete(out.reshape(-1, 3), 30 * WIDTH + 50, axis=0)
        assert (others == 92).all()  # 100 (1 - 0.2 x 100 / 255)

    def test_only_ratios_within_the_map_count(self):
        heat = np.random.default_rng(1).random((HEIGHT, WIDTH))
        image = noise()
        assert (blend_heat(image, heat) == blend_heat(image, 1e-6 * heat)).all()
        assert (blend_heat(image, heat) == blend_heat(image, torch.from_numpy(heat))).all()

    def test_zero_map_is_finite(self):
        assert (blend_heat(grey(), np.zeros((HEIGHT, WIDTH))) == 92).all()

    def test_two_colours_for_what_is_above_and_below_zero(self):
        heat = np.zeros((HEIGHT, WIDTH), np.float32)
        heat[30, 50], heat[10, 20], heat[40, 70] = 3, -6, 6
        out = blend_heat(grey(), heat, signed=True)
        # 0.8 of the ends of the colours, 0.2 of the softened grey, 92.
        np.testing.assert_allclose(out[10, 20], (154.4, 182.4, 222.4), atol=0.6)
        np.testing.assert_allclose(out[40, 70], (222.4, 198.4, 106.4), atol=0.6)
        red, _, blue = out[30, 50].astype(int)
        assert red > blue + 50  # half as strong, and not in the other colour
        assert (out[0] == 92).all()
        assert (blend_heat(grey(), -heat, signed=True)[10, 20] == out[40, 70]).all()
        # Without a sign nothing is seen of what lies below zero.
        assert (blend_heat(grey(), np.minimum(heat, 0)) == 92).all()

    @pytest.mark.parametrize("deficiency", sorted(DEFICIENCIES))
    def test_colour_blind_eyes_tell_for_from_against(self, deficiency):
        """
        At the same strength: by 25 or more in CIELAB, ten times what is just noticed. Red and green
        of the same lightness would fail, and so would one colour for weak values of both kinds.
        """
        for strength in (0.25, 0.5, 1.0):
            shades = colorize(np.array([-strength, strength]), signed=True) / 255
            linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
            linear = (linear @ np.array(DEFICIENCIES[deficiency]).T).clip(0, 1)
            seen = np.where(
                linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
            )
            lab = cv2.cvtColor(seen[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
            assert np.linalg.norm(lab[0] - lab[1]) > 25

    def test_sizes_must_agree(self):
        with pytest.raises(ValueError, match=r"\(100, 60\) over an image of \(60, 100\)"):
            blend_heat(grey(), np.zeros((WIDTH, HEIGHT)))


class TestDrawBox:
    @pytest.mark.parametrize("side", SIDES)
    def test_explained_side_is_where_the_box_side_is(self, side):
        accent = (draw_box(grey(), BOX, side=side, width=1) == ACCENT).all(axis=2)
        x1, y1, x2, y2 = extent(accent)
        # Three pixels thick, just outside the box, and as long as the box with its line.
        expected = {
            "left": (17, 7, 20, 43),
            "top": (17, 7, 73, 10),
            "right": (70, 7, 73, 43),
            "bottom": (17, 40, 73, 43),
        }
        assert (x1, y1, x2, y2) == expected[side]
        assert accent.sum() == (x2 - x1) * (y2 - y1)

    def test_lines_leave_the_inside_visible(self):
        out = draw_box(grey(), BOX, width=2)
        assert (out[11:39, 21:69] == 100).all()
        assert (out[8:10, 20:70] == 255).all()
        assert (out[10:40, 18:20] == 255).all()

    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("name", BORDER_BOXES)
    def test_every_side_is_visible_at_the_border(self, name, side):
        accent = (draw_box(grey(), BORDER_BOXES[name], side=side, width=1) == ACCENT).all(axis=2)
        x1, y1, x2, y2 = extent(accent)
        assert min(x2 - x1, y2 - y1) == 3
        if name in ("whole", "beyond"):
            at = {"left": x1 == 0, "top": y1 == 0, "right": x2 == WIDTH, "bottom": y2 == HEIGHT}
            assert at[side]


class TestDrawLabel:
    def plate(self, box, image=None, **options):
        image = grey(255) if image is None else image
        out = draw_label(image, "left side", box, size=11, color=(0, 0, 200), **options)
        return extent((out != image).any(axis=2))

    @pytest.mark.parametrize("name", BORDER_BOXES)
    def test_whole_label_is_inside_the_image(self, name):
        x1, y1, x2, y2 = self.plate((100, 100, 200, 200), grey(255, 300, 300))
        size = (x2 - x1, y2 - y1)
        x1, y1, x2, y2 = self.plate(BORDER_BOXES[name])
        assert (x2 - x1, y2 - y1) == size

    def test_above_the_box_where_there_is_room_else_below(self):
        assert self.plate((10, 30, 50, 50))[3] == 30
        assert self.plate((10, 5, 50, 30))[1] == 30

    def test_keeps_away_from_the_evidence(self):
        heat = np.zeros((HEIGHT, WIDTH))
        heat[:30] = 1
        assert self.plate((10, 30, 50, 40), avoid=heat)[1] == 40

    def test_long_text_is_cut_to_the_image(self):
        text = "an endless name of a class"
        out = draw_label(grey(255), text, (0, 30, 5, 35), size=11, color=(0, 0, 200))
        x1, y1, x2, y2 = extent((out != 255).any(axis=2))
        assert x1 == 0
        assert 80 < x2 <= WIDTH
        # The cut text keeps its margin: the plate's last two columns are plain.
        assert len(np.unique(out[y1:y2, x2 - 2 : x2].reshape(-1, 3), axis=0)) == 1

    def test_no_label_where_not_a_letter_fits(self):
        image = grey(255, 8, 6)
        assert (draw_label(image, "left side", (1, 1, 3, 3)) == image).all()

    def test_grows_with_the_image(self):
        def height(*size):
            box = (0.3 * size[1], 0.5 * size[0], 0.6 * size[1], 0.8 * size[0])
            out = draw_label(grey(255, *size), "x", box)
            _, y1, _, y2 = extent((out != 255).any(axis=2))
            return y2 - y1

        assert height(60, 80) >= 15
        assert height(1200, 1600) > 3 * height(240, 320)


def test_nothing_is_drawn_in_place():
    image = noise()
    instances = blob_detections((HEIGHT, WIDTH), [BOX])
    before, maps = image.copy(), instances.odam_maps.values.clone()
    heat = instances.odam_maps.dense(HEIGHT, WIDTH)[0, 0].numpy()
    kept = heat.copy()
    blend_heat(image, heat)
    draw_box(image, BOX, side="left")
    draw_label(image, "x", BOX)
    draw_detections(image, [BOX])
    draw_explanation(image, heat, BOX, "left", "star", 0.9)
    draw_crops(image, instances, 0, 64)
    contact_sheet(image, instances, ["star"])
    fit_canvas(image, instances)
    assert (image == before).all()
    assert (heat == kept).all()
    assert (instances.odam_maps.values == maps).all()
    assert instances.pred_boxes.tensor.tolist() == [list(BOX)]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("class", "class: star 0.97"),
        ("class:moon", "class: moon? · star 0.97"),
        ("left", "left side · star 0.97"),
        ("combined", "combined · star 0.97"),
    ],
)
def test_describe_target(target, text):
    assert describe_target(target, "star", 0.9741) == text
    assert describe_target(target, "star", 0.9741, saturated=True) == f"{text} · score saturated"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_explanation_of_a_lost_map_says_so(value, monkeypatch):
    """And not that there is no evidence: nobody knows."""
    labels = []

    def record(image, text, *_, **__):
        labels.append(text)
        return image

    monkeypatch.setattr(overlay, "draw_label", record)
    heat = np.full((240, 400), value)
    for saturated in (True, False):
        draw_explanation(grey(100, 240, 400), heat, BOX, "class", "star", 1.0, saturated)
    evidence = "" if value else " · no positive evidence"
    assert labels == ["class: star 1.00 · score saturated", f"class: star 1.00{evidence}"]


def test_explanation_marks_the_side_of_side_targets_only():
    image, heat = grey(100, 240, 400), np.ones((240, 400))
    box = (100, 80, 300, 200)
    marked = [
        (draw_explanation(image, heat, box, target, "star", 0.9)[:, 302:306] == ACCENT)
        .all(axis=2)
        .sum()
        for target in ("class", "right")
    ]
    assert marked[0] < 20  # at most the stripe of the label
    assert marked[1] > 120


def test_numbers_of_equal_boxes_do_not_hide_one_another():
    out = draw_detections(grey(255, 120, 160), [(20, 20, 140, 100)] * 2, 12)
    for color in ((255, 196, 37), (76, 201, 240)):
        mask = (out == color).all(axis=2).astype(np.uint8)
        # Wider than any line: the plate around the number.
        assert cv2.erode(mask, np.ones((3, 3))).any()


class TestCrops:
    def test_window_shows_box_and_points_inside_the_image(self):
        generator = np.random.default_rng(0)
        for _ in range(200):
            size = tuple(generator.integers(5, 300, 2).tolist())
            limits = np.array([size[1], size[0]])
            corners = np.sort(generator.random((2, 2)), axis=0) * limits
            points = generator.random((3, 2)) * limits
            x1, y1, x2, y2 = crop_around(corners.reshape(-1), points, size)
            assert 0 <= x1 < x2 <= size[1]
            assert 0 <= y1 < y2 <= size[0]
            shown = np.concatenate([corners, points])
            assert (shown >= (x1, y1)).all()
            assert (shown <= (x2, y2)).all()

    def test_one_pixel_box_has_surroundings(self):
        x1, y1, x2, y2 = crop_around((0, 0, 1, 1), np.zeros((0, 2)), (200, 300))
        assert (x1, y1, x2, y2) == (0, 0, 24, 24)

    @pytest.mark.parametrize("size", [(60, 100), (480, 700)])
    def test_peak_is_at_its_place_in_the_crop(self, size):
        scale = size[0] / 60
        # The centre of the box, (46, 26), is the centre of a cell.
        box = [scale * value for value in (20, 10, 72, 42)]
        instances = blob_detections(size, [box], targets=("class", "left"))
        crops = draw_crops(grey(100, *size), instances, 0, 160)
        points = scale * np.array([[46, 26], [20, 26]])
        x1, y1, x2, _ = crop_around(box, points, size)
        zoom = 160 / (x2 - x1)
        left, top, right, bottom = ((np.array(box) - (x1, y1, x1, y1)) * zoom).astype(int)
        inside = crops["class"][top + 8 : bottom - 8, left + 8 : right - 8].astype(int).sum(axis=2)
        y, x = np.nonzero(inside == inside.max())
        expected = (points[0] - (x1, y1)) * zoom
        # The map's cells are 4 pixels; half a cell off would be 2 pixels.
        assert abs(x.mean() + left + 8.5 - expected[0]) < max(1, zoom)
        assert abs(y.mean() + top + 8.5 - expected[1]) < max(1, zoom)
        assert crops[""].shape == crops["class"].shape == crops["left"].shape

    def test_evidence_far_from_the_box_is_shown(self):
        instances = blob_detections((90, 300), [(20, 60, 40, 80)], targets=("class",))
        instances.odam_maps = blob_maps((90, 300), [[(202, 22)]], ["class"])
        crop = draw_crops(grey(100, 90, 300), instances, 0, 160)["class"]
        # 0.8 of inferno's last colour and 0.2 of the grey; lines are white.
        assert (abs(crop.astype(int) - (220, 222, 150)).max(axis=2) < 12).any()

    def test_zero_map_says_so(self):
        instances = blob_detections((HEIGHT, WIDTH), [BOX], targets=("class",))
        shown = draw_crops(grey(), instances, 0, 160)["class"]
        instances.odam_maps.values.zero_()
        silent = draw_crops(grey(), instances, 0, 160)["class"]
        # The middle of the picture is inside the box, away from its lines.
        middle = np.s_[silent.shape[0] // 2 - 8 : silent.shape[0] // 2 + 8, 40:120]
        assert (shown[middle] < 200).any(axis=2).all()
        assert (silent[middle] > 200).all(axis=2).sum() > 30

    def test_evidence_against_is_shown_and_looked_for(self):
        """A map below zero, far from the box, is no empty one where it is signed."""
        instances = blob_detections((90, 300), [(20, 60, 40, 80)], targets=("class",))
        maps = blob_maps((90, 300), [[(202, 22)]], ["class"])
        instances.odam_maps = maps._replace(values=-maps.values, signed=True)
        crop = draw_crops(grey(100, 90, 300), instances, 0, 160)["class"]
        # 0.8 of the light blue and 0.2 of the softened grey.
        assert (abs(crop.astype(int) - (154, 182, 222)).max(axis=2) < 12).any()
        assert not (crop > 230).all(axis=2)[:, 40:].any()  # no words
        picture = draw_explanation(
            grey(100, 90, 300), instances.odam_maps.dense(90, 300)[0, 0], (20, 60, 40, 80),
            "class", "star", 0.9, signed=True,
        )  # fmt: skip
        assert (abs(picture.astype(int) - (154, 182, 222)).max(axis=2) < 12).any()

    def test_lost_map_says_so(self):
        """In other words, and also where there is something to draw."""
        instances = blob_detections((HEIGHT, WIDTH), [BOX], targets=("class", "left"))
        instances.odam_maps.values.zero_()
        silent = draw_crops(grey(), instances, 0, 160)
        instances.odam_maps.saturated[0, 0] = True
        lost = draw_crops(grey(), instances, 0, 160)
        assert (lost["left"] == silent["left"]).all()
        # The middle of the picture is inside the box, away from its lines.
        middle = np.s_[silent[""].shape[0] // 2 - 8 : silent[""].shape[0] // 2 + 8, 40:120]
        assert (lost["class"][middle] > 200).all(axis=2).sum() > 30
        assert (lost["class"][middle] != silent["class"][middle]).any()
        instances.odam_maps.values += 1
        over = draw_crops(grey(), instances, 0, 160)["class"]
        instances.odam_maps.saturated[0, 0] = False
        plain = draw_crops(grey(), instances, 0, 160)["class"]
        changed = (over != plain).any(axis=2)
        assert changed.sum() > 30
        assert not changed[: len(changed) // 2].any()  # below, to leave the map visible


class TestContactSheet:
    def test_each_method_has_a_row_of_the_same_window(self):
        """The second method's peak is far from the box, and both rows show it."""
        image, name = noise(240, 320), "gradient"
        instances = blob_detections((240, 320), [(10, 10, 60, 60)], targets=("class", "top"))
        far = blob_maps((240, 320), [[(202, 22), (202, 22)]], ["class", "top"])
        by_method = {"odam": instances.odam_maps, name: far}
        sheet = contact_sheet(image, instances, ["star"], cell=100, by_method=by_method)
        picture, scaled = fit_canvas(image, instances)
        rows = draw_crop_rows(picture, scaled[0], 0, 100, [maps[0] for maps in by_method.values()])
        tops = []
        for row in rows:
            assert len({crop.shape for crop in row.values()}) == 1
            match = cv2.matchTemplate(sheet, row["top"], cv2.TM_SQDIFF)
            y, x = np.unravel_index(match.argmin(), match.shape)
            assert (sheet[y : y + len(row["top"]), x : x + row["top"].shape[1]] == row["top"]).all()
            tops.append((y, x))
        assert tops[1][0] - tops[0][0] == 108  # a cell and a gap
        assert tops[1][1] == tops[0][1]
        assert rows[0]["class"].shape == rows[1]["class"].shape
        alone = contact_sheet(image, instances, ["star"], cell=100)
        assert sheet.shape[0] - alone.shape[0] == 108

    def test_rows_are_detections_and_columns_targets(self):
        image = noise(240, 320)
        boxes = [(10, 10, 90, 90), (150, 100, 300, 220)]
        instances = blob_detections((240, 320), boxes, targets=("class", "top"))
        sheet = contact_sheet(image, instances, ["star"], cell=100)
        places = []
        picture, scaled = fit_canvas(image, instances)
        for number in range(2):
            for crop in draw_crops(picture, scaled[number], number, 100).values():
                match = cv2.matchTemplate(sheet, crop, cv2.TM_SQDIFF)
                y, x = np.unravel_index(match.argmin(), match.shape)
                assert (sheet[y : y + crop.shape[0], x : x + crop.shape[1]] == crop).all()
                places.append((y, x))
        rows, columns = np.array(places).reshape(2, 3, 2).transpose(2, 0, 1)
        assert (rows[0] == rows[0, 0]).all()
        assert (rows[1] - rows[0] >= 100).all()
        assert (np.diff(columns) >= 100).all()
        assert (columns[0] == columns[1]).all()

    def test_number_of_rows_is_bounded(self):
        instances = blob_detections((HEIGHT, WIDTH), [BOX] * 30)
        short = contact_sheet(grey(), instances, ["star"], max_rows=2, cell=50)
        long = contact_sheet(grey(), instances, ["star"], max_rows=5, cell=50)
        assert long.shape[0] - short.shape[0] == 3 * 58

    @pytest.mark.parametrize("name", BORDER_BOXES)
    def test_any_box(self, name):
        instances = blob_detections((HEIGHT, WIDTH), [BORDER_BOXES[name]], targets=("class",))
        assert contact_sheet(grey(), instances, ["star"]).dtype == np.uint8

    @pytest.mark.parametrize("size", [(1, 1), (2, 3000), (3000, 2)])
    def test_any_image(self, size):
        instances = blob_detections(size, [(0, 0, *size[::-1])], targets=("class",))
        sheet = contact_sheet(grey(9, *size), instances, ["star"])
        assert sheet.shape[1] < 2000

    def test_no_detection(self):
        instances = blob_detections((HEIGHT, WIDTH), [])
        sheet = contact_sheet(grey(), instances, ["star"], title="empty.jpg")
        assert sheet.shape[0] < 600


class TestFitCanvas:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [((60, 100), (300, 500)), ((500, 400), (500, 400)), ((4000, 3000), (1600, 1200))],
    )
    def test_sizes_and_boxes(self, size, expected):
        box = (0, 0, size[1] / 2, size[0] / 4)
        instances = blob_detections((60, 100), [BOX])
        instances = type(instances)(size, **instances.get_fields())
        instances.pred_boxes.tensor[0] = torch.tensor(box)
        picture, scaled = fit_canvas(np.zeros((*size, 3), np.uint8), instances)
        assert picture.shape[:2] == expected == scaled.image_size
        box = scaled.pred_boxes.tensor[0].tolist()
        assert box == pytest.approx([0, 0, expected[1] / 2, expected[0] / 4])


def suppressed_candidates():
    """Three candidates on one object; the second and third were suppressed by the first."""
    boxes = Boxes(torch.tensor([[20.0, 10, 60, 50], [22, 10, 62, 50], [35, 10, 75, 50]]))
    candidates = Instances((80, 120), pred_boxes=boxes)
    candidates.scores = torch.tensor([0.9, 0.8, 0.7])
    candidates.pred_classes = torch.tensor([0, 0, 0])
    candidates.kept = torch.tensor([True, False, False])
    candidates.suppressed_by = torch.tensor([-1, 0, 0])
    candidates.suppressed_iou = torch.tensor([float("nan"), 0.9, 0.45])
    candidates.suppressed_correlation = torch.tensor([float("nan"), 0.99, 0.8])
    candidates.odam_maps = blob_maps((80, 120), [[(40, 30)], [(42, 30)], [(55, 30)]], ["class"])
    return candidates


def test_suppressed_pairs_are_those_one_would_ask_about():
    """0.7 times 0.55 is more than 0.8 times 0.1."""
    candidates = suppressed_candidates()
    assert suppressed_pairs(candidates, 8) == [(2, 0), (1, 0)]
    assert suppressed_pairs(candidates, 1) == [(2, 0)]
    assert suppressed_pairs(candidates[:1], 8) == []


def test_suppressed_picture_has_a_row_for_each_pair():
    image = np.full((80, 120, 3), 90, dtype=np.uint8)
    before = image.copy()
    one = draw_suppressed(image, suppressed_candidates(), ["robot"], max_pairs=1)
    two = draw_suppressed(image, suppressed_candidates(), ["robot"], max_pairs=2)
    assert two.shape[0] - one.shape[0] == 198
    assert np.array_equal(one[:232], two[:232])
    assert np.array_equal(image, before)
    # The suppressed box is drawn in its own colour, the other one solid.
    assert (two == np.array([76, 201, 240])).all(axis=2).sum() > 100
    assert (two == np.array([255, 196, 37])).all(axis=2).sum() > 300
    nothing = draw_suppressed(image, suppressed_candidates()[:1], ["robot"])
    assert nothing.shape[1] == one.shape[1]

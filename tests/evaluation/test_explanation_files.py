"""Results of the explanation evaluator: means, standard errors, tables and plots by hand."""

import json

import pytest
from matplotlib import pyplot as plt

from odam_d2.evaluation import explanation_files
from odam_d2.evaluation.explanation_files import (
    compare_methods,
    summarize,
    table,
    write_results,
)

# Two detections; the second has no deletion, and its ODI is not defined.
ROWS = [
    {"image_id": 1, "object": 0, "target": "class", "score": 0.9, "pointing_mask": 1.0,
     "odi_box": 0.25, "compactness": 0.5, "deletion": 0.5, "insertion": 0.75,
     "deletion_curve": [1.0, 0.5, 0.0], "insertion_curve": [0.0, 1.0, 1.0]},
    {"image_id": 1, "object": 1, "target": "class", "score": 0.8, "pointing_mask": 0.5,
     "odi_box": None, "compactness": 1.0},
    {"image_id": 1, "object": 0, "target": "left", "score": 0.9, "pointing_mask": 0.25},
]  # fmt: skip
OTHER = [
    {"target": "class", "pointing_mask": 0.5, "deletion": 0.25, "insertion": 0.5,
     "deletion_curve": [1.0, 0.0, 0.0], "insertion_curve": [0.0, 0.5, 1.0]},
    {"target": "class", "pointing_mask": 0.0, "deletion": 0.5, "insertion": 0.5,
     "deletion_curve": [1.0, 0.5, 0.5], "insertion_curve": [0.0, 0.5, 1.0]},
]  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, which are closed here only."""
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(explanation_files.plt, "close", drawn.append)
        yield drawn
    for figure in drawn:
        plt.close(figure)


def test_means_are_over_what_is_defined():
    results = summarize(ROWS, 7)
    assert results["explanation-class"] == {
        "pointing_mask": 75, "odi_box": 25, "compactness": 0.75, "deletion": 50, "insertion": 75,
        "num_detections": 2, "num_images": 7, "num_curves": 1,
    }  # fmt: skip
    assert results["explanation-left"] == {
        "pointing_mask": 25, "num_detections": 1, "num_images": 7,
    }  # fmt: skip


def test_files_by_hand(tmp_path):
    """Standard errors: of 100 and 50 the deviation is 50 / sqrt(2), and of their mean 25."""
    results = summarize(ROWS, 7)
    write_results(tmp_path / "new", {"method": "odam"}, results, ROWS)
    content = json.loads((tmp_path / "new/results.json").read_text())
    assert content["settings"] == {"method": "odam"}
    assert content["results"] == results
    errors = content["standard_errors"]
    assert errors["explanation-class"] == {
        "pointing_mask": pytest.approx(25), "compactness": pytest.approx(0.25),
    }  # fmt: skip
    assert errors["explanation-left"] == {}  # one value has none
    lines = (tmp_path / "new/detections.csv").read_text().splitlines()
    columns = "image_id,object,target,score,pointing_mask,odi_box,compactness,deletion,insertion"
    assert lines == [columns, "1,0,class,0.9,1.0,0.25,0.5,0.5,0.75", "1,1,class,0.8,0.5,,1.0,,",
                     "1,0,left,0.9,0.25,,,,"]  # fmt: skip
    assert (tmp_path / "new/explanation.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []  # none stays in memory


def test_a_table_has_a_line_for_each_method(tmp_path):
    results = {"odam": summarize(ROWS, 7), "plain": summarize(OTHER, 7)}
    assert table(results, "explanation-class").splitlines() == [
        "| method | pointing_mask ↑ | odi_box ↓ | compactness ↓ | deletion ↓ | insertion ↑ "
        "| detections | curves |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| odam | 75.0 | 25.0 | 0.75 | 50.0 | 75.0 | 2 | 1 |",
        "| plain | 25.0 |  |  | 37.5 | 50.0 | 2 | 2 |",
    ]
    assert table(results, "explanation-left").splitlines()[2:] == ["| odam | 25.0 | 1 | 0 |"]
    page = compare_methods(tmp_path / "new", results, {"odam": ROWS, "plain": OTHER})
    text = page.read_text()
    assert text.startswith("### explanation-class\n\n" + table(results, "explanation-class"))
    assert "### explanation-left\n\n" + table(results, "explanation-left") in text
    assert json.loads((tmp_path / "new/methods.json").read_text()) == results
    assert (tmp_path / "new/methods.png").stat().st_size > 5000


def test_bars_are_means_with_their_errors(tmp_path, figures):
    compare_methods(tmp_path, {}, {"odam": ROWS, "plain": OTHER})
    axis = figures[0].axes[0]
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert names == ["pointing\nmask ↑", "odi\nbox ↓", "deletion ↓", "insertion ↑"]
    bars = [bar for bar in axis.patches if bar.get_height()]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    # Of both methods side by side about the metric's place; only odam has an ODI.
    expected = [(-0.2, 75), (0.8, 25), (1.8, 50), (2.8, 75), (0.2, 25), (2.2, 37.5), (3.2, 50)]
    found = list(zip(centres, (bar.get_height() for bar in bars), strict=True))
    assert found == [pytest.approx(pair) for pair in expected]
    assert len({bar.get_facecolor() for bar in bars}) == 2
    # The error of the first mean is 25, of one value it is nothing.
    drawn = [c.errorbar for c in axis.containers if getattr(c, "errorbar", None)]
    first, second = (error.lines[2][0].get_segments()[0][:, 1] for error in drawn[:2])
    assert first.tolist() == pytest.approx([50, 100])
    assert second.tolist() == pytest.approx([25, 25])
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["odam", "plain"]
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylim()[1] > 100


def test_curves_are_means_over_detections(tmp_path, figures):
    """From no pixel to all of the box's; the band is one standard error to either side."""
    compare_methods(tmp_path, {}, {"odam": ROWS, "plain": OTHER})
    deletion, insertion = figures[0].axes[1:]
    assert (deletion.get_title(), insertion.get_title()) == ("deletion", "insertion")
    odam, plain = deletion.get_lines()
    assert odam.get_xdata().tolist() == [0, 0.5, 1]
    assert odam.get_ydata().tolist() == [1, 0.5, 0]
    assert plain.get_ydata().tolist() == [1, 0.25, 0.25]
    assert odam.get_color() != plain.get_color()
    assert insertion.get_lines()[1].get_ydata().tolist() == [0, 0.5, 1]
    # Of 0 and 0.5 the error of the mean is 0.25, of two ones it is 0.
    of_odam, of_plain = (band.get_paths()[0].vertices for band in deletion.collections)
    assert {tuple(v) for v in of_odam.round(6).tolist()} == {(0, 1), (0.5, 0.5), (1, 0)}
    assert {tuple(v) for v in of_plain.round(6).tolist()} == {
        (0, 1), (0.5, 0), (0.5, 0.5), (1, 0), (1, 0.5),
    }  # fmt: skip
    assert deletion.get_ylim()[1] > 1


def test_what_has_no_class_map_is_drawn_by_its_first_target(tmp_path, figures):
    rows = [{"target": "left", "pointing_mask": 0.25}, {"target": "top", "pointing_mask": 1.0}]
    compare_methods(tmp_path, {}, {"odam": rows, "nothing": []})
    assert len(figures[0].axes) == 1  # no curves
    bars = [bar.get_height() for bar in figures[0].axes[0].patches if bar.get_height()]
    assert bars == [25]

"""Confusion of classes counted by hand, precision over recall by pycocotools' own rule, tables."""

import csv
import io
import json

import numpy as np
import pytest
import torch

from odam_d2.analysis.ap_costs import AnalysedImage, fixed_ap, precision_recall
from odam_d2.analysis.confusion import confusion_matrix
from odam_d2.analysis.error_types import sort_detections
from odam_d2.analysis.figures import FILES, ClassFigures, mean_precision

NAMES = ["ant", "bee", "cat"]


def analysed(detections, objects):
    """An image of (x, class, score) and (x, class), boxes of 10 pixels that begin at x."""

    def boxes(rows):
        return torch.tensor([[x, 0, x + 10, 10] for x, *_ in rows], dtype=torch.float32).view(-1, 4)

    parts = {
        "boxes": boxes(detections),
        "scores": torch.tensor([score for *_, score in detections]),
        "classes": torch.tensor([k for _, k, _ in detections], dtype=torch.int64),
        "objects": boxes(objects),
        "labels": torch.tensor([k for _, k in objects], dtype=torch.int64),
        "ignore": torch.zeros(0, 4),
    }
    return AnalysedImage(**parts, findings=sort_detections(**parts))


IMAGE = analysed(
    [(0, 0, 0.9), (0, 1, 0.8), (1, 0, 0.7), (100, 2, 0.9), (300, 2, 0.9), (200, 1, 0.2)],
    [(0, 0), (100, 1), (200, 1), (400, 2)],
)


def test_confusion_by_hand():
    """
    The ant is found, taken for a bee as well, and found twice; a bee is taken for a cat; the other
    one is found below the threshold, so counts as not found; a cat where there is nothing.
    """
    counts = confusion_matrix([IMAGE, IMAGE], len(NAMES), confidence=0.5)
    expected = [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 1, 0]]
    assert counts.tolist() == (2 * np.array(expected)).tolist()
    everything = confusion_matrix([IMAGE], len(NAMES), confidence=0.0)
    assert everything[1].tolist() == [0, 1, 1, 0]


def test_precision_is_that_of_ap():
    images = [IMAGE, analysed([(0, 0, 0.3)], [(50, 0), (0, 0)])]
    precision = precision_recall(images, 3)
    present = precision[:, :, 0][precision[:, :, 0] > -1]
    assert 100 * present.mean() == pytest.approx(fixed_ap(images, 3))


def test_precision_over_recall_by_hand():
    """Right, wrong, right, of two objects and one that is large: sizes are of the objects."""
    image = analysed([(0, 0, 0.9), (500, 0, 0.8), (100, 0, 0.7)], [(0, 0), (100, 0)])
    precision = precision_recall([image], 2)
    assert precision.shape == (101, 2, 4)
    expected = np.where(np.arange(101) <= 50, 1.0, 2 / 3)
    np.testing.assert_allclose(precision[:, 0, 0], expected)
    np.testing.assert_allclose(precision[:, 0, 1], expected)  # all are small
    assert (precision[:, 0, 2:] == -1).all()
    assert (precision[:, 1] == -1).all()
    average = mean_precision(precision)
    assert average[0, 0] == pytest.approx(100 * expected.mean())
    assert np.isnan(average[1]).all()


@pytest.mark.parametrize("detections", [[], [(0, 0, 0.9)]])
def test_nothing_found_and_nothing_there(detections):
    assert (precision_recall([analysed(detections, [])], 2) == -1).all()
    found = precision_recall([analysed([], [(0, 1)])], 2)
    assert (found[:, 1, 0] == 0).all()
    assert (found[:, 0] == -1).all()


def test_tables_hold_the_figures():
    figures = ClassFigures(NAMES, confusion_matrix([IMAGE], 3, 0.5), precision_recall([IMAGE], 3))
    files = figures.files()
    assert tuple(files) == FILES
    for name in FILES:
        assert (files[name][:4] == b"\x89PNG") == name.endswith(".png")
    table = list(csv.reader(io.StringIO(files["confusion.csv"].decode())))
    assert table[0][1:] == [*NAMES, "(background)"]
    assert [[int(x) for x in row[1:]] for row in table[1:]] == figures.confusion.tolist()
    rows = list(csv.DictReader(io.StringIO(files["precision_recall.csv"].decode())))
    ants = [
        float(row["precision"]) for row in rows if (row["class"], row["size"]) == ("ant", "all")
    ]
    np.testing.assert_allclose(ants, figures.precision[:, 0, 0], atol=1e-4)
    record = json.loads(json.dumps(figures.record()))
    assert record["AP_by_class"]["ant"]["large"] is None
    assert record["AP_by_class"]["ant"]["all"] == pytest.approx(100 * np.mean(ants), abs=0.01)


@pytest.mark.parametrize("classes", [0, 1, 40])
def test_plots_of_few_and_many_classes(classes):
    names = [f"a class with a long name {k}" for k in range(classes)]
    counts = np.eye(classes + 1, dtype=np.int64)
    files = ClassFigures(names, counts, np.full((101, classes, 4), 0.5)).files()
    assert len(files["confusion.png"]) > 2000

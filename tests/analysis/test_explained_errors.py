"""What is said about each kind of error, and beside which maps, of a detector that is made up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blob_maps import blob_detections, blob_maps
from detectron2.structures import Boxes, Instances

from odam_d2.analysis import explained_errors, report
from odam_d2.analysis.ap_costs import AnalysedImage
from odam_d2.analysis.error_types import Finding
from odam_d2.analysis.explained_errors import explain_errors
from odam_d2.analysis.report import counts
from odam_d2.modeling.nms import Nms
from odam_d2.visualization.panels import BoxStyle

SIZE = (48, 64)
NAMES = ["ant", "bee", "cow"]
OBJECTS = [[8.0, 8, 28, 28], [36, 10, 60, 40]]
BOXES = [[8.0, 8, 28, 28], [10, 8, 30, 28], [36, 10, 60, 40]]
LABELS, CLASSES, SCORES = [0, 2], [0, 0, 1], [0.9, 0.75, 0.6]
# Of the second object's class and on it: 1 with an IoU of exactly 1/2, and 2, which is better.
# 0 is of another class, 3 too far off: 12 of 24 + 24 - 12 columns, a third.
CANDIDATES = [[36.0, 10, 60, 40], [36, 10, 60, 25], [36, 10, 60, 34], [48, 10, 72, 40]]
CANDIDATE_CLASSES, CANDIDATE_SCORES = [1, 2, 2, 2], [0.6, 0.1, 0.2, 0.5]


def analysed(*findings):
    return AnalysedImage(
        boxes=torch.tensor(BOXES), scores=torch.tensor(SCORES), classes=torch.tensor(CLASSES),
        objects=torch.tensor(OBJECTS), labels=torch.tensor(LABELS), ignore=torch.zeros(0, 4),
        findings=findings,
    )  # fmt: skip


def blobs(boxes, targets):
    """A map of another class has its blob 8 pixels to the right of the class map's."""
    found = blob_detections(SIZE, boxes, targets=targets)
    points = [[((x1 + x2) / 2 + 8 * (":" in t), (y1 + y2) / 2) for t in targets]
              for x1, y1, x2, y2 in boxes]  # fmt: skip
    found.odam_maps = blob_maps(SIZE, points, targets)
    return found


@pytest.fixture
def candidates():
    found = Instances(SIZE, pred_boxes=Boxes(CANDIDATES))
    found.scores = torch.tensor(CANDIDATE_SCORES)
    found.pred_classes = torch.tensor(CANDIDATE_CLASSES)
    found.kept = torch.tensor([True, False, False, True])
    found.suppressed_by = torch.tensor([-1, -1, 0, -1])
    found.odam_maps = blobs(CANDIDATES, ("class",)).odam_maps
    return found


@pytest.fixture
def asked(monkeypatch, candidates):
    """The made-up detector in the place of ``explain``; what it was asked for."""
    calls = []

    def explain(model, inputs, targets, **options):
        calls.append((tuple(targets), options))
        if options.get("record"):
            return [{"candidates": candidates}]
        return [{"instances": blobs(BOXES, tuple(targets))}]

    def explain_boxes(model, inputs, boxes, classes, targets, **options):
        found = blobs(boxes[0].tolist(), tuple(targets))
        found.scores = 0.25 * torch.ones(len(boxes[0]))
        assert classes[0].tolist() == [LABELS[OBJECTS.index(box)] for box in boxes[0].tolist()]
        return [{"instances": found}]

    monkeypatch.setattr(explained_errors, "explain", explain)
    monkeypatch.setattr(explained_errors, "explain_boxes", explain_boxes)
    return calls


def explained(finding, *others, model=None):
    (error,) = explain_errors(model, {}, analysed(finding, *others), [finding], NAMES)
    return error


def peak(heat):
    """(x, y) of a map's peak in pixels."""
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    return x, y


MISSED = Finding("missed", None, 1, 0.5)


@pytest.mark.parametrize(
    ("kept", "by", "fate"),
    [
        (False, 0, "suppressed by one of 0.60"),
        (False, 1, "suppressed by one of 0.10"),
        (False, -1, "dropped"),
        (True, -1, "kept, and counted for another object"),
    ],
)
def test_what_became_of_a_missed_object(asked, candidates, kept, by, fate):
    candidates.kept[2], candidates.suppressed_by[2] = kept, by
    error = explained(MISSED)
    assert error.facts == ["best candidate: 0.20", fate, "score at the true box 0.25"]
    assert error.numbers == {
        "score_at_object": 0.25, "candidate_score": pytest.approx(0.2), "candidate": fate,
    }  # fmt: skip
    first, second = error.maps
    assert (first.box.tolist(), second.box.tolist()) == (CANDIDATES[2], OBJECTS[1])
    assert (first.of_truth, second.of_truth) == (False, True)
    assert (first.caption, second.caption) == (
        "why the best candidate, 0.20", "cow, asked at the true box: 0.25",
    )  # fmt: skip
    torch.testing.assert_close(first.heat, candidates.odam_maps[2].dense(*SIZE)[0, 0])


def test_a_candidate_at_an_iou_of_half_is_there(asked, candidates):
    candidates.pred_classes[2] = 0
    assert explained(MISSED).numbers["candidate_score"] == pytest.approx(0.1)
    candidates.pred_boxes.tensor[1, 3] -= 0.5  # a little less than half of the object
    error = explained(MISSED)
    assert error.facts == ["no candidate of its class there", "score at the true box 0.25"]
    assert error.numbers == {"score_at_object": 0.25}
    assert [m.of_truth for m in error.maps] == [True]


def test_candidates_are_those_of_the_configured_nms(asked):
    configured = Nms()
    for model, nms in (
        (None, None), (SimpleNamespace(odam=None), None),
        (SimpleNamespace(odam=SimpleNamespace(nms=None)), None),
        (SimpleNamespace(odam=SimpleNamespace(nms=configured)), configured),
    ):  # fmt: skip
        explained(MISSED, model=model)
        targets, options = asked[-1]
        assert (targets, options["record"]) == ((), True)
        assert isinstance(options["nms"], Nms)
        assert nms is None or options["nms"] is nms
    explained(Finding("background", 2, None, 0.0))
    assert len(asked) == 2 * 4 + 1  # candidates are asked for where something was missed


def test_a_duplicate_without_a_kept_one(asked):
    """Of the object nothing counts as correct; what is correct is another object's."""
    finding = Finding("duplicate", 1, 0, 0.8)
    error = explained(finding, Finding("correct", 2, 1, 0.9))
    assert (error.facts, error.numbers, len(error.maps)) == (["IoU with the object 0.80"], {}, 1)


def test_a_duplicate_and_the_kept_one(asked):
    """The boxes share 18 of 20 + 20 - 18 columns; the blobs are two pixels apart."""
    finding = Finding("duplicate", 1, 0, 0.8)
    others = Finding("correct", 2, 1, 0.9), Finding("both", 2, 0, 0.3), Finding("correct", 0, 0, 1)
    error = explained(finding, *others)
    assert error.numbers["iou_with_kept"] == pytest.approx(18 / 22)
    assert 0.9 < error.numbers["correlation"] < 1
    correlation = f"{error.numbers['correlation']:.2f}"
    assert error.facts == ["IoU with the object 0.80", "IoU with the kept one 0.82",
                           f"correlation of the maps {correlation}"]  # fmt: skip
    assert [m.box.tolist() for m in error.maps] == [BOXES[1], BOXES[0]]
    assert [m.caption for m in error.maps] == ["why the duplicate", "why the kept one, 0.90"]


@pytest.mark.parametrize("kind", ["classification", "both"])
def test_the_wrong_class_and_the_true_one(asked, kind):
    error = explained(Finding(kind, 2, 1, 0.7))
    assert set(asked[0][0]) == {"class", "left", "top", "right", "bottom", "class:2"}
    first, second = (m.heat.double().flatten().numpy() for m in error.maps)
    cosine = float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert 0.3 < cosine < 0.9
    assert error.numbers == {"true_class": "cow", "correlation": pytest.approx(cosine)}
    assert error.facts == ["it is cow", "IoU with the object 0.70",
                           f"correlation of the maps {cosine:.2f}"]  # fmt: skip
    assert [m.caption for m in error.maps] == ["why bee (predicted)", "what speaks for cow (true)"]
    (x, y), (x_true, y_true) = (peak(m.heat) for m in error.maps)
    assert x_true - x == pytest.approx(8, abs=2)
    assert (abs(x - 48) < 3, abs(y - 25) < 3, abs(y_true - 25) < 3) == (True, True, True)
    assert [m.side for m in error.maps] == [None, None]


def test_nothing_is_there(asked):
    error = explained(Finding("background", 2, None, 0.0))
    assert error.facts == ["no object there"]
    assert [(m.caption, m.of_truth) for m in error.maps] == [("why bee", False)]


@pytest.mark.parametrize(
    ("finding", "title", "heading", "boxes"),
    [
        (Finding("localisation", 2, 1, 0.3), "both boxes", "bee 0.60", ["true", "found"]),
        (Finding("background", 2, None, 0.0), "found box", "bee 0.60", ["found"]),
        (MISSED, "true box", "cow, missed", ["true"]),
    ],
)
def test_found_and_true_boxes_are_told_apart(asked, monkeypatch, finding, title, heading, boxes):
    """What was found and what is true have a colour each, in all panels and in the words."""
    given = []
    monkeypatch.setattr(report, "draw_panels", lambda *args: given.append(args))
    error = explained(finding)
    _, words = report.draw_error(np.zeros((*SIZE, 3), np.uint8), analysed(finding), error, NAMES)
    _, panels, lines = given[0]
    colors = {"found": report._FOUND, "true": report._TRUE}
    place = {"found": BOXES[2], "true": OBJECTS[1]}
    assert (panels[0].title, panels[0].heat) == (title, None)
    assert [(b.box, b.color, b.dashed, b.side) for b in panels[0].boxes] == [
        (place[name], colors[name], name == "true", None) for name in boxes
    ]
    assert [p.title for p in panels[1:]] == [m.caption for m in error.maps]
    for panel, of_map in zip(panels[1:], error.maps, strict=True):
        (style,) = panel.boxes
        color = colors["true" if of_map.of_truth else "found"]
        assert style == BoxStyle(of_map.box.tolist(), color, of_map.of_truth, of_map.side)
        assert panel.heat is of_map.heat
    assert lines[0] == (heading, colors["true" if finding.kind == "missed" else "found"])
    assert [fact for fact, _ in lines[1:]] == list(error.facts)
    assert words == "; ".join([heading, *error.facts])


def test_kinds_are_counted():
    """A score of exactly the confidence counts as confident, and so does what was missed."""
    image = analysed(
        Finding("correct", 0, 0, 1.0), Finding("duplicate", 1, 0, 0.8),
        Finding("both", 2, 1, 0.3), MISSED,
    )  # fmt: skip
    found = counts({"a": image, "b": analysed(MISSED, Finding("duplicate", 2, 0, 0.6))}, 0.75)
    assert {kind: count for kind, count in found.items() if count["all"]} == {
        "correct": {"all": 1, "confident": 1},
        "duplicate": {"all": 2, "confident": 1},
        "both": {"all": 1, "confident": 0},
        "missed": {"all": 2, "confident": 2},
    }

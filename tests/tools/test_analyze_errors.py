"""tools/analyze_errors.py: which errors are shown, what explains them, and that AP is COCO's."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils.file_io import PathManager
from few_images import few_images
from tool_modules import load_tool

import odam_d2.analysis.detections as detections_module
from odam_d2 import explain, explain_boxes
from odam_d2.analysis.ap_costs import AnalysedImage
from odam_d2.analysis.detections import analyse, find_detections
from odam_d2.analysis.error_types import Finding, sort_detections
from odam_d2.analysis.explained_errors import explain_errors, pick_errors, worst_side
from odam_d2.analysis.figures import FILES
from odam_d2.analysis.report import draw_error
from odam_d2.data.mapper import PictureMapper
from odam_d2.engine import Trainer, load_weights, setup_cfg
from odam_d2.errors import run_tool
from odam_d2.fingerprint import of_detector
from odam_d2.model_zoo import strip_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml")
NAME = "crowdshapes_few"
IMAGES = 10


@pytest.fixture(scope="module", autouse=True)
def images():
    with few_images(NAME, IMAGES):
        yield


def run(*arguments):
    tool = vars(load_tool("analyze_errors"))
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", f"('{NAME}',)", "DATALOADER.NUM_WORKERS", "0"]
    return run_tool(lambda: tool["run"](["--config-file", CONFIG, *arguments, *opts]))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    assert run("--output", str(folder), "--most", "2", "--confidence", "0.3") == 0
    return folder, json.loads((folder / "errors.json").read_text())


def test_ap_is_that_of_cocos_evaluation(report):
    """Of the same detections, by Detectron2's own evaluator at an IoU of 0.5."""
    folder, content = report
    evaluator = COCOEvaluator(NAME, ("bbox",), distributed=False, use_fast_impl=False)
    evaluator.reset()
    rows = (folder / "detections/rows_0.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(row)["content"] for row in rows]
    for image_id, found, _ in rows:
        evaluator._predictions.append({
            "image_id": image_id,
            "instances": [
                {"image_id": image_id, "category_id": label, "score": score,
                 "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                for box, score, label in zip(found["boxes"], found["scores"], found["classes"],
                                             strict=True)
            ],
        })  # fmt: skip
    ids = [row[0] for row in rows]
    assert len(ids) == IMAGES
    assert content["AP"] == pytest.approx(evaluator.evaluate(img_ids=ids)["bbox"]["AP50"])


def test_report_is_complete(report):
    folder, content = report
    page = (folder / "index.html").read_text()
    assert content["errors"]["classification"]
    assert content["errors"]["localisation"]
    for kind, errors in content["errors"].items():
        assert len(errors) == min(2, content["counts"][kind]["confident"])
        for error in errors:
            assert (folder / error["picture"]).stat().st_size > 5000
            assert f'src="{error["picture"]}"' in page
    for name in FILES:
        assert f'="{name}"' in page
        assert (folder / name).stat().st_size > 100
    costs = content["costs"]
    places = [
        page.index(f'<section id="{kind}"') for kind in sorted(costs, key=lambda k: -costs[k])
    ]
    assert places == sorted(places)


def test_records_are_of_their_error(report):
    """Boxes, classes and IoU fit one another, and the objects are those of the data set."""
    _, content = report
    names = MetadataCatalog.get(NAME).thing_classes
    entries = {entry["image_id"]: entry for entry in DatasetCatalog.get(NAME)}
    for kind, errors in content["errors"].items():
        for record in errors:
            assert record["kind"] == kind
            if kind != "missed":
                assert record["score"] >= 0.3
            if kind == "background":
                assert "object_box" not in record
                continue
            objects = [
                (BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), a["category_id"])
                for a in entries[record["image_id"]]["annotations"]
            ]
            label = names.index(record["object_class"])
            assert (pytest.approx(record["object_box"]), label) in objects
            if kind == "missed":
                assert "box" not in record
                assert record["iou"] < 1
                continue
            both = [Boxes(torch.tensor([record[key]])) for key in ("box", "object_box")]
            assert record["iou"] == pytest.approx(float(pairwise_iou(*both)), abs=1e-5)
            right_class = record["class"] == record["object_class"]
            assert right_class == (kind in ("localisation", "duplicate"))
            assert (record["iou"] < 0.5) == (kind in ("localisation", "both"))


def test_a_second_run_does_not_detect_again(report, monkeypatch):
    folder, content = report

    monkeypatch.setattr(detections_module, "build_detection_test_loader", None)
    assert run("--output", str(folder), "--most", "1", "--iou-thresh", "0.75") == 0
    assert json.loads((folder / "errors.json").read_text())["AP"] < content["AP"]


def test_a_report_that_cannot_be_written_is_told(report, tmp_path, monkeypatch, capsys):
    """And no page of an earlier one is left, whose pictures are gone."""
    folder = tmp_path / "report"
    shutil.copytree(report[0], folder)
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".png") and len(list(folder.glob("*.png"))) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert run("--output", str(folder), "--most", "2", "--confidence", "0.3") == 1
    assert "error: No space left on device: " in capsys.readouterr().err.splitlines()[-1]
    left = [p.name for p in folder.iterdir() if p.is_file() and p.name not in FILES]
    assert {Path(name).suffix for name in left} <= {".png"}
    # None of the pictures of before is left.
    (folder / "missed_9.png").write_bytes(b"of an earlier report")
    assert run("--output", str(folder), "--most", "1", "--confidence", "0.3") == 0
    content = json.loads((folder / "errors.json").read_text())
    shown = {error["picture"] for errors in content["errors"].values() for error in errors}
    assert {path.name for path in folder.glob("*.png")} - set(FILES) == shown


def test_other_weights_in_the_same_file_are_another_detector(tmp_path):
    shipped = setup_cfg(CONFIG).MODEL.WEIGHTS
    weights, folder = tmp_path / "weights.pth", tmp_path / "report"
    strip_checkpoint(PathManager.get_local_path(shipped), weights)
    opts = ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    cfg = setup_cfg(CONFIG, opts)
    model = Trainer.build_model(cfg).eval()
    load_weights(model, cfg.MODEL.WEIGHTS)
    before = find_detections(model, cfg, NAME, folder, of_detector(cfg))
    state = torch.load(weights, weights_only=True)
    state["model"]["roi_heads.box_predictor.cls_score.bias"][-1] += 5  # background
    torch.save(state, weights)
    load_weights(model, cfg.MODEL.WEIGHTS)
    after = find_detections(model, cfg, NAME, folder, of_detector(cfg))
    assert sum(len(x["scores"]) for x in after.values()) < sum(
        len(x["scores"]) for x in before.values()
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    opts = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    cfg = setup_cfg(CONFIG, opts)
    model = Trainer.build_model(cfg).eval()
    load_weights(model, cfg.MODEL.WEIGHTS)
    found = find_detections(model, cfg, NAME, tmp_path_factory.mktemp("found"), {})
    return model, cfg, analyse(found, NAME, 0.5, 0.1)


def test_each_kind_gets_the_maps_that_tell(detector):
    model, cfg, images = detector
    entries = {entry["image_id"]: entry for entry in DatasetCatalog.get(NAME)}
    mapper = PictureMapper(cfg, False)
    names = MetadataCatalog.get(NAME).thing_classes
    picked = pick_errors(images, 1, 0.0)
    picked["missed"] = [(next(iter(images)), Finding("missed", None, 1, 0.0))]
    for kind in ("localisation", "classification", "missed", "both"):
        image_id, finding = picked[kind][0]
        given, image = mapper(dict(entries[image_id])), images[image_id]
        (error,) = explain_errors(model, given, image, [finding], names)
        size = (entries[image_id]["height"], entries[image_id]["width"])
        if kind == "missed":
            number = finding.object
            (asked,) = explain_boxes(
                model, [given], [image.objects[[number]]], [image.labels[[number]]], ("class",)
            )
            expected = asked["instances"].odam_maps.dense(*size)[0, 0]
            torch.testing.assert_close(error.maps[-1].heat, expected)
            continue
        target = {"localisation": error.numbers.get("side")}.get(kind, "class")
        (output,) = explain(model, [given], (target,))
        expected = output["instances"].odam_maps[finding.detection].dense(*size)[0, 0]
        torch.testing.assert_close(error.maps[0].heat, expected)
        assert len(error.maps) == 2
        if kind == "localisation":
            assert error.maps[0].side == error.maps[1].side == target
            assert error.maps[1].of_truth
            assert (error.maps[1].box == image.objects[finding.object]).all()
        else:
            true = int(image.labels[finding.object])
            (output,) = explain(model, [given], (f"class:{true}",), class_names=None)
            expected = output["instances"].odam_maps[finding.detection].dense(*size)[0, 0]
            torch.testing.assert_close(error.maps[1].heat, expected)
            assert names[true] in error.maps[1].caption


def test_a_preset_and_the_sign_are_those_of_the_maps(detector, monkeypatch):
    model, cfg, images = detector
    picked = pick_errors(images, 1, 0.0)
    image_id, finding = picked["classification"][0]
    image, names = images[image_id], MetadataCatalog.get(NAME).thing_classes
    given = PictureMapper(cfg, False)(
        dict(next(e for e in DatasetCatalog.get(NAME) if e["image_id"] == image_id))
    )
    how = {"preset": "gradient", "signed": True}
    monkeypatch.setattr(model, "odam", replace(model.odam, **how))
    (error,) = explain_errors(model, given, image, [finding], names)
    monkeypatch.undo()
    true = f"class:{int(image.labels[finding.object])}"
    (output,) = explain(model, [given], ("class", true), class_names=None, **how)
    maps = output["instances"].odam_maps[finding.detection]
    size = (given["height"], given["width"])
    for of_error, expected in zip(error.maps, maps.dense(*size)[0], strict=True):
        assert of_error.signed
        torch.testing.assert_close(of_error.heat, expected)
    # Two classes of one place share evidence for and against with signs that differ.
    evidence = maps.positive().dense(*size)[0].flatten(1)
    expected = torch.cosine_similarity(*evidence, dim=0)
    assert error.numbers["correlation"] == pytest.approx(float(expected), abs=1e-5)


def test_the_report_says_how_maps_were_made(tmp_path):
    arguments = ["--output", str(tmp_path), "--most", "1", "--preset", "gradient"]
    assert run(*arguments, "MODEL.ODAM.SIGNED", "True") == 0
    page = (tmp_path / "index.html").read_text()
    assert "maps by gradient" in page
    assert "blue speaks against it" in page
    settings = json.loads((tmp_path / "errors.json").read_text())["settings"]
    assert (settings["method"], settings["signed"]) == ("gradient", True)


@pytest.mark.parametrize(("off", "where"), [(12, "too far out"), (-12, "too far in")])
@pytest.mark.parametrize(("side", "outwards"), [("left", -1), ("bottom", 1)])
def test_where_a_side_is_wrong_is_said(detector, side, outwards, off, where):
    """The object ends 12 pixels inside of the detection's side, or 12 outside of it."""
    model, cfg, images = detector
    image_id, image = next(iter(images.items()))
    entry = next(e for e in DatasetCatalog.get(NAME) if e["image_id"] == image_id)
    given = PictureMapper(cfg, False)(dict(entry))
    objects = image.objects.clone()
    objects[0] = image.boxes[0]
    objects[0, {"left": 0, "bottom": 3}[side]] -= off * outwards
    moved = replace(image, objects=objects)
    finding = Finding("localisation", 0, 0, 0.4)
    (error,) = explain_errors(model, given, moved, [finding], ["a", "b", "c", "d"])
    assert error.facts == ["IoU with the object 0.40", f"{side} side 12 px {where}"]
    assert error.numbers == {"side": side, "off_px": pytest.approx(off, abs=1e-3)}


def test_a_duplicate_is_shown_beside_the_kept_one(detector):
    model, cfg, images = detector
    image_id, image = next(iter(images.items()))
    kept = next(f for f in image.findings if f.kind == "correct")
    entry = next(e for e in DatasetCatalog.get(NAME) if e["image_id"] == image_id)
    given = PictureMapper(cfg, False)(dict(entry))
    # Had another detection been a second one of the same object:
    other = (kept.detection + 1) % len(image.boxes)
    finding = Finding("duplicate", other, kept.object, 0.6)
    (error,) = explain_errors(model, given, image, [finding], ["a", "b", "c", "d"])
    maps = explain(model, [given], ("class",))[0]["instances"].odam_maps
    similarity = maps[[other, kept.detection]].similarity("class")[0, 1]
    assert error.numbers["correlation"] == pytest.approx(float(similarity), abs=1e-6)
    assert len(error.maps) == 2
    picture = np.full((entry["height"], entry["width"], 3), 90, np.uint8)
    before = picture.copy()
    drawn, caption = draw_error(picture, image, error, ["a", "b", "c", "d"])
    assert drawn.ndim == 3
    assert "correlation of the maps" in caption
    assert (picture == before).all()


def test_worst_side_by_hand():
    truth = torch.tensor([10.0, 20, 50, 40])  # 40 x 20
    # The right side is 8 of 40 too far out, the top 5 of 20 too far in, which is more.
    assert worst_side(torch.tensor([10.0, 25, 58, 40]), truth) == ("top", -5)
    assert worst_side(torch.tensor([0.0, 20, 50, 40]), truth) == ("left", 10)


def image_of(scores, kinds):
    count = len(scores)
    return AnalysedImage(
        boxes=torch.zeros(count, 4),
        scores=torch.tensor(scores),
        classes=torch.zeros(count, dtype=torch.int64),
        objects=torch.tensor([[0.0, 0, 5, 4], [0, 0, 10, 4]]),
        labels=torch.zeros(2, dtype=torch.int64),
        ignore=torch.zeros(0, 4),
        findings=[Finding(kind, row, 0, 0.3) for row, kind in enumerate(kinds)]
        + [Finding("missed", None, number, 0.0) for number in (0, 1)],
    )


def test_which_errors_are_picked():
    both = ["localisation", "localisation", "correct"]
    images = {"a": image_of([0.9, 0.8, 1.0], both), "b": image_of([0.7, 0.2, 0.1], both)}
    picked = pick_errors(images, 3, 0.5)
    # The best of each image first; what is not confident, or no error, never.
    rows = [(image_id, finding.detection) for image_id, finding in picked["localisation"]]
    assert rows == [("a", 0), ("b", 0), ("a", 1)]
    assert "correct" not in picked
    # The larger missed object of each image first.
    assert [(i, f.object) for i, f in picked["missed"]] == [("a", 1), ("b", 1), ("a", 0)]


def test_nothing_found_and_nothing_there():
    none, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    findings = sort_detections(none, labels.float(), labels, none, labels, none)
    empty = AnalysedImage(none, labels.float(), labels, none, labels, none, findings)
    assert pick_errors({"a": empty}, 3, 0.5) == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--confidence", "2"], "--confidence is 2; it must be in [0, 1]"),
        (["--most", "0"], "--most is 0; it must be 1 or more"),
        (["--preset", "best"], "MODEL.ODAM.PRESET is 'best'; it must be one of"),
        (["MODEL.ODAM.METHOD", "d_rise"], "choose another method"),
        (["--background-iou", "0.6"], "the first one below the second"),
        (["--output", str(ROOT / "setup.py")], "cannot be a folder"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "5", "MODEL.WEIGHTS", ""], "has 5 classes and"),
        (["DATASETS.TEST", "('crowdshapes_vol',)"], "did you mean crowdshapes_val?"),
    ],
)
def test_errors_are_one_sentence(arguments, sentence, capsys, tmp_path):
    output = [] if "--output" in arguments else ["--output", str(tmp_path)]
    tool = vars(load_tool("analyze_errors"))
    base = ["--config-file", CONFIG, *output]
    keys = [x for x in arguments if not x.startswith("--")] if arguments[0].isupper() else []
    flags = [] if keys else arguments
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", f"('{NAME}',)", *keys]
    assert run_tool(lambda: tool["run"]([*base, *flags, *opts])) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error

"""CrowdHuman's .odgt files: what is read from them, and what a malformed line says."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances
from PIL import Image

from odam_d2.core.errors import InputError
from odam_d2.data import register_datasets
from odam_d2.data.crowdhuman import load_odgt, register_crowdhuman
from odam_d2.engine import setup_cfg
from odam_d2.engine.checks import check_run
from odam_d2.engine.evaluators import build_evaluator
from odam_d2.errors import UserError, run_tool
from odam_d2.evaluation import CrowdEvaluator, crowd_files

register_datasets()

GOLDEN = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "crowdhuman_golden"


def person(box, tag="person", **more):
    return {"tag": tag, "fbox": box, "vbox": box, "hbox": box, **more}


PEOPLE = [
    person([10, 5, 20, 40], head_attr={"ignore": 1, "occ": 0}, extra={"box_id": 0, "occ": 1}),
    person([-5, 0, 30, 40], extra={"ignore": 1}),
    person([40, 0, 10, 20], tag="mask", extra={"ignore": 1}),
    person([40, 10, 12, 20]),
]


@pytest.fixture
def folder(tmp_path):
    """A folder with two images, as the public set lies there."""
    (tmp_path / "crowdhuman" / "Images").mkdir(parents=True)
    for name, people in (("a,1", PEOPLE), ("b,2", [])):
        Image.new("RGB", (64, 48)).save(tmp_path / "crowdhuman" / "Images" / f"{name}.jpg")
        with (tmp_path / "crowdhuman" / "annotation_val.odgt").open("a") as file:
            file.write(json.dumps({"ID": name, "gtboxes": people}) + "\n")
    return tmp_path


def written(tmp_path, *lines):
    path = tmp_path / "some.odgt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_empty_lines_are_passed_over(tmp_path):
    """Not the end of the file: what follows them is read."""
    lines = [json.dumps({"ID": name, "gtboxes": []}) for name in ("a", "b", "c")]
    path = written(tmp_path, "", lines[0], "", "  ", lines[1], lines[2], "")
    assert [entry["image_id"] for entry in load_odgt(path, "")] == ["a", "b", "c"]


def test_boxes_and_what_is_ignored(folder):
    path = str(folder / "crowdhuman" / "annotation_val.odgt")
    first, second = load_odgt(path, "images")
    assert (first["image_id"], second["annotations"]) == ("a,1", [])
    assert first["file_name"] == os.path.join("images", "a,1.jpg")
    assert [a["iscrowd"] for a in first["annotations"]] == [0, 1, 1, 0]
    assert first["annotations"][1]["bbox"] == [-5, 0, 30, 40]  # beyond the image, as annotated
    assert first["annotations"][0]["head_box"] == [10, 5, 20, 40]
    heads = load_odgt(path, "images", "head")[0]["annotations"]
    assert [a["iscrowd"] for a in heads] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{broken", "line 2: not JSON"),
        ("[1, 2]", "line 2: a JSON object is needed, not list"),
        ('{"gtboxes": []}', "line 2: no key 'ID'"),
        ('{"ID": "x"}', "line 2: no key 'gtboxes'"),
        ('{"ID": 5, "gtboxes": []}', "line 2: ID must be a string"),
        ('{"ID": "a", "gtboxes": []}', "line 2: image 'a' is there twice"),
        (json.dumps({"ID": "x", "gtboxes": [{"tag": "person"}]}), "line 2: no key 'fbox'"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, 3])]}), "line 2: fbox must be 4 numbers"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, "3", 4])]}), "fbox must be 4 numbers"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, float("nan"), 4])]}), "4 numbers"),
        (json.dumps({"ID": "x", "gtboxes": [[1, 2]]}), "line 2: gtboxes must hold objects, not li"),
        (json.dumps({"ID": "x", "gtboxes": {}}), "line 2: gtboxes must be a list, not {}"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, True, 4])]}), "fbox must be 4 numbers"),
        (json.dumps({"ID": "x", "gtboxes": [person([10**400, 2, 3, 4])]}), "fbox must be 4 num"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, 1e9, 4])]}), "more than 100000 pixels"),
        (json.dumps({"ID": "x", "gtboxes": [person(None)]}), "fbox must be 4 numbers"),
        (json.dumps({"ID": "x", "gtboxes": [{"fbox": [1, 2, 3, 4]}]}), "line 2: no key 'tag'"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, 3, 4], tag=5)]}), "tag must be a string"),
        (json.dumps({"ID": "x", "gtboxes": [person([1, 2, 3, 4], extra=[])]}), "extra must be an"),
        (
            json.dumps({"ID": "x", "gtboxes": [person([1, 2, 3, 4], extra={"ignore": "yes"})]}),
            "line 2: ignore of extra must be 0 or 1, not 'yes'",
        ),
        ("[" * 100_000, "line 2: "),
        ("9" * 5000, "line 2: "),
    ],
)
def test_malformed_lines_are_named(line, sentence, tmp_path):
    path = written(tmp_path, '{"ID": "a", "gtboxes": []}', line)
    with pytest.raises(InputError) as error:
        load_odgt(path, "images")
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)
    assert sentence in str(error.value)


def test_what_is_not_text_is_named(tmp_path):
    (tmp_path / "x.odgt").write_bytes(b'{"ID": "a", "gtboxes": []}\n\xff\xfe\n')
    with pytest.raises(InputError, match=r"x\.odgt, line 2: not UTF-8"):
        load_odgt(str(tmp_path / "x.odgt"), "images")


def test_an_image_that_no_file_can_be_is_named(tmp_path):
    path = written(tmp_path, json.dumps({"ID": "a\0b", "gtboxes": []}))
    with pytest.raises(InputError, match=r"some\.odgt, line 1: "):
        load_odgt(path, str(tmp_path), check_images=True)


@pytest.mark.parametrize(
    ("more", "key", "ignored"),
    [
        ({"extra": {"ignore": 1}}, "full", 1),
        ({"extra": {"ignore": 0}}, "full", 0),
        ({"extra": {}}, "full", 0),
        ({}, "full", 0),
        ({"tag": "mask"}, "full", 1),  # a region of many people, whatever "ignore" says
        ({"tag": "mask", "extra": {"ignore": 0}}, "full", 1),
        ({"head_attr": {"ignore": 1}}, "full", 0),
        ({"head_attr": {"ignore": 1}}, "visible", 0),
        ({"head_attr": {"ignore": 1}}, "head", 1),
        ({"head_attr": {"ignore": 0}, "extra": {"ignore": 1}}, "head", 1),
        ({"head_attr": {}}, "head", 0),
    ],
)
def test_each_reason_to_ignore_somebody(more, key, ignored, tmp_path):
    somebody = person([1, 2, 3, 4], **more)
    path = written(tmp_path, json.dumps({"ID": "x", "gtboxes": [somebody]}))
    (annotation,) = load_odgt(path, "images", key)[0]["annotations"]
    assert annotation["iscrowd"] == ignored


def test_boxes_of_negative_size_are_left_out(tmp_path):
    """As the public tools do; other boxes of the person do not matter."""
    people = [person([1, 2, -3, 4]), {**person([1, 2, 3, 4]), "hbox": [0, 0, -1, -1]}]
    path = written(tmp_path, json.dumps({"ID": "x", "gtboxes": people}))
    assert [a["bbox"] for a in load_odgt(path, "images")[0]["annotations"]] == [[1, 2, 3, 4]]


def test_an_empty_file_and_unknown_boxes_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no image in it"):
        load_odgt(written(tmp_path, "", " "), "images")
    with pytest.raises(InputError, match="there are full, visible, head"):
        load_odgt(written(tmp_path), "images", "knee")


@pytest.fixture
def registered(folder):
    names = ["crowdhuman_train", "crowdhuman_val"]
    kept = {name: DatasetCatalog.pop(name) for name in names}
    metadata = {name: MetadataCatalog.pop(name) for name in names}
    register_crowdhuman(str(folder))
    yield folder
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        DatasetCatalog.register(name, kept[name])
        MetadataCatalog[name] = metadata[name]


def test_detectron_trains_on_people_and_not_on_regions(registered):
    entry = DatasetCatalog.get("crowdhuman_val")[0]
    cfg = setup_cfg("", ["INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.RANDOM_FLIP", "none"])
    mapped = DatasetMapper(cfg, is_train=True)(entry)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[10, 5, 30, 45], [40, 10, 52, 30]]


def test_a_missing_image_is_named(registered):
    (registered / "crowdhuman" / "Images" / "b,2.jpg").unlink()
    with pytest.raises(InputError, match=r"line 2: no image .*b,2\.jpg"):
        DatasetCatalog.get("crowdhuman_val")


def test_the_data_set_brings_its_evaluator(registered, tmp_path):
    cfg = setup_cfg("", ["OUTPUT_DIR", str(tmp_path)])
    evaluator = build_evaluator(cfg, "crowdhuman_val")
    assert isinstance(evaluator, CrowdEvaluator)
    evaluator.reset()
    found = Instances((48, 64), pred_boxes=Boxes(torch.tensor([[10.0, 5, 30, 45]])))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    evaluator.process([{"image_id": "a,1"}], [{"instances": found}])
    assert evaluator.evaluate()["crowd"]["Recall"] == pytest.approx(50)
    cfg.TEST.ODAM.EVALUATORS = ["crowd"]  # it is there already
    assert isinstance(build_evaluator(cfg, "crowdhuman_val"), CrowdEvaluator)


def test_other_data_sets_are_evaluated_so_on_demand(tmp_path):
    cfg = setup_cfg("", ["OUTPUT_DIR", str(tmp_path), "TEST.ODAM.EVALUATORS", "['crowd']"])
    DatasetCatalog.get("crowdshapes_crowded_val")  # makes it, where nobody has yet
    both = build_evaluator(cfg, "crowdshapes_crowded_val")
    assert isinstance(both, DatasetEvaluators)
    assert [type(e).__name__ for e in both._evaluators] == ["COCOEvaluator", "CrowdEvaluator"]


def test_unknown_evaluators_and_missing_files_are_named_before_a_run(tmp_path):
    class Args:
        eval_only, resume = True, False

    cfg = setup_cfg("", ["TEST.ODAM.EVALUATORS", "['crowds']"])
    with pytest.raises(
        UserError, match=r"TEST.ODAM.EVALUATORS has 'crowds'; there are causal_recovery"
    ):
        check_run(cfg, Args)
    kept = MetadataCatalog.get("crowdhuman_val").odgt_file
    if not os.path.isfile(kept):
        cfg = setup_cfg("", ["DATASETS.TEST", "('crowdhuman_val',)"])
        with pytest.raises(UserError, match=r"'crowdhuman_val' needs .*annotation_val\.odgt"):
            check_run(cfg, Args)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="DETECTRON2_DATASETS has no crowdhuman_golden")
def test_the_published_case_through_the_evaluator(tmp_path):
    """From the files to the figures: loader, evaluator and protocol together."""
    name = "crowdhuman_golden"
    path = str(GOLDEN / "gt.odgt")
    DatasetCatalog.register(name, lambda: load_odgt(path, "images"))
    MetadataCatalog.get(name).set(evaluator_type="crowdhuman", thing_classes=["person"])
    try:
        evaluator = CrowdEvaluator(name)
        evaluator.reset()
        for line in (GOLDEN / "det.jsonl").read_text().splitlines():
            record = json.loads(line)
            boxes = np.array([b["box"] for b in record["dtboxes"]], float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            found = Instances((record["height"], record["width"]))
            found.pred_boxes = Boxes(torch.tensor(boxes))
            found.pred_boxes.tensor = torch.tensor(boxes)  # Boxes makes them float32
            found.scores = torch.tensor([b["score"] for b in record["dtboxes"]]).double()
            found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
            evaluator.process([{"image_id": record["ID"]}], [{"instances": found}])
        results = evaluator.evaluate()["crowd"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    for key in ("AP", "Recall", "MR", "JI"):
        assert results[key] / 100 == pytest.approx(expected[key], abs=1e-6)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="DETECTRON2_DATASETS has no crowdhuman_golden")
def test_the_published_case_from_its_files(capsys):
    files = ["--ground-truth", GOLDEN / "gt.odgt", "--detections", GOLDEN / "det.jsonl"]
    assert run_tool(lambda: crowd_files.main([str(argument) for argument in files])) == 0
    results = json.loads(capsys.readouterr().out)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    for key in ("AP", "Recall", "MR", "JI"):
        assert results[key] / 100 == pytest.approx(expected[key], abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{broken"], "line 1"),
        ([{"ID": "z"}], "line 1: image 'z' is unknown, or there twice"),
        ([{"ID": "a"}], "line 1: no key 'dtboxes'"),
        ([{"ID": "a", "dtboxes": [{"box": [1, 2, 3], "score": 0.5}]}], "line 1: box must be 4 nu"),
        ([{"ID": "a", "dtboxes": [{"box": [1, 2, 3, 4], "score": "1"}]}], "score must be a number"),
        ([{"ID": "a", "dtboxes": [{"box": [1, 2, 3, 4]}]}], "line 1: no key 'score'"),
        ([{"ID": "a", "dtboxes": 5}], "line 1: dtboxes must be a list, not 5"),
        ([{"ID": "a", "dtboxes": [5]}], "line 1"),
        ([{"ID": ["a"], "dtboxes": []}], "line 1: ID must be a string"),
        (["[1]"], "line 1: a JSON object is needed, not list"),
        ([{"ID": "a", "dtboxes": []}], "line 1: no key 'height'"),
        ([{"ID": "a", "height": 0, "width": 9, "dtboxes": []}], "height and width must be pixels"),
        ([{"ID": "a", "height": 9, "width": 9.5, "dtboxes": []}], "must be pixels, not 9 and 9.5"),
        ([{"ID": "a", "height": "9", "width": 9, "dtboxes": []}], "height must be a number"),
        ([{"ID": "a", "height": 9, "width": 9, "dtboxes": []}], "lacks 1 of the 2 images"),
    ],
)
def test_detections_that_do_not_fit_are_named(lines, sentence, tmp_path, capsys):
    truth = written(tmp_path, '{"ID": "a", "gtboxes": []}', '{"ID": "b", "gtboxes": []}')
    found = tmp_path / "found.jsonl"
    found.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    files = ["--ground-truth", truth, "--detections", str(found)]
    assert run_tool(lambda: crowd_files.main(files)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error

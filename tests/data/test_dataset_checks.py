"""A data set is checked before a run: faults are named with their place, the rest is accepted."""

import copy
import json
import time

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from odam_d2.analysis.detections import analyse
from odam_d2.core.errors import InputError
from odam_d2.data.annotation_checks import segmentation_fault
from odam_d2.data.checks import DatasetUse, check_coco_file, check_entries
from odam_d2.engine import setup_cfg
from odam_d2.engine.checks import check_dataset, check_run
from odam_d2.errors import UserError

NAME = "checked"
CLASSES = {"thing_classes": ["cup", "ball"]}
TRUTH = DatasetUse(annotations=True, image_ids=True, masks=True)
TRAINING = DatasetUse(training=True, masks=True, keypoints=True)
COCO = DatasetUse(image_ids=True, coco=True)
ALL = [TRUTH, TRAINING, COCO]


@pytest.fixture
def entries(tmp_path):
    """Two entries that are right for every use."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    cup = {
        "bbox": [4, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1,
        "segmentation": [[4, 5, 24, 5, 24, 15]], "keypoints": [5, 6, 2],
    }  # fmt: skip
    return [
        {"file_name": str(tmp_path / "a.png"), "image_id": number, "height": 48, "width": 64,
         "annotations": [dict(cup), dict(cup)]}
        for number in range(2)
    ]  # fmt: skip


def complaint(entries, use, metadata=CLASSES):
    with pytest.raises(UserError) as error:
        check_entries(NAME, entries, metadata, use)
    sentence = str(error.value)
    assert sentence.startswith("data set 'checked'")
    assert "\n" not in sentence
    return sentence


def changed(entries, change, value, annotation=False):
    """A copy with a key of the second entry, or of its second annotation, set or (...) removed."""
    entries = copy.deepcopy(entries)
    place = entries[1]["annotations"][1] if annotation else entries[1]
    if value is ...:
        del place[change]
    else:
        place[change] = value
    return entries


ENTRY_FAULTS = [
    ("file_name", ..., ALL, "it has no file_name"),
    ("file_name", 5, ALL, "file_name must be a path, not 5"),
    ("file_name", "no\nsuch.png", ALL, r"file_name 'no\nsuch.png': No such file"),
    ("file_name", "nul\0.png", ALL, "embedded null byte"),
    ("file_name", "/", ALL, "file_name '/' is no regular file"),
    ("sem_seg_file_name", "no.png", ALL, "sem_seg_file_name 'no.png': No such file"),
    ("image_id", ..., [TRUTH, COCO], "it has no image_id"),
    ("image_id", 0, [TRUTH, COCO], "image_id 0 is also that of entry 0; each needs one of its own"),
    ("image_id", np.int64(0), [TRUTH], "image_id 0 is also that of entry 0"),
    ("image_id", (1, 2), [TRUTH, COCO], "image_id must be a number or a string, not (1, 2)"),
    ("image_id", float("nan"), [TRUTH, COCO], "image_id must be a number or a string, not nan"),
    ("image_id", np.int64(5), [COCO], "image_id is of int64, which COCO's format cannot hold"),
    ("annotations", ..., [TRUTH, TRAINING, COCO], "it has no annotations"),
    ("annotations", {}, ALL, "annotations must be a list, not dict"),
    ("annotations", [5], ALL, "annotation 0 must be a dict, not int"),
    ("height", -5, ALL, "height must be a number of pixels, not -5"),
    ("height", 0, ALL, "height must be a number of pixels"),
    ("height", np.complex64(48), ALL, "height must be a number of pixels"),
    ("width", float("nan"), ALL, "width must be a number of pixels, not nan"),
    ("width", 64.5, ALL, "width must be a number of pixels"),
    ("width", "64", ALL, "width must be a number of pixels, not '64'"),
    ("height", ..., [COCO, DatasetUse(sizes=True)], "it has no height"),
]
NAN, INF = float("nan"), float("inf")
ANNOTATION_FAULTS = [
    ("bbox", ..., ALL, "it has no bbox"),
    ("bbox_mode", ..., ALL, "it has no bbox_mode"),
    ("category_id", ..., ALL, "it has no category_id"),
    ("bbox", [1, 2, 3], ALL, "bbox must be 4 finite numbers, not [1, 2, 3]"),
    ("bbox", [1, 2, NAN, 3], ALL, "bbox must be 4 finite numbers"),
    ("bbox", [1, 2, INF, 3], ALL, "bbox must be 4 finite numbers"),
    ("bbox", [1, 2, "3", 3], ALL, "bbox must be 4 finite numbers"),
    ("bbox", [1, 2, 10**400, 3], ALL, "bbox must be 4 finite numbers"),
    ("bbox", None, ALL, "bbox must be 4 finite numbers, not None"),
    # BoxMode.convert fails for these, unless the mode is the one that it converts to.
    ("bbox", np.array([4.0, 5, 20, 10]), ALL, "must be a list or tuple in that bbox_mode, not nd"),
    ("bbox", torch.tensor([4, 5, 20, 10]), ALL, "must be a list or tuple in that bbox_mode, not T"),
    ("bbox", [0, 0, 1e9, 3], ALL, "lies more than 100000 pixels out"),
    ("bbox", [-1e30, 0, 1, 3], ALL, "lies more than 100000 pixels out"),
    ("bbox", [5, 5, -1, 3], ALL, "has a negative width or height; is bbox_mode right?"),
    ("bbox_mode", "XYXY_ABS", ALL, "bbox_mode must be BoxMode.XYXY_ABS, XYWH_ABS or"),
    ("bbox_mode", BoxMode.XYXY_REL, ALL, "bbox_mode must be BoxMode.XYXY_ABS, XYWH_ABS or"),
    ("bbox_mode", BoxMode.XYWHA_ABS, ALL, "bbox must be 5 finite numbers"),
    ("category_id", 2, ALL, "category_id is 2, and there are 2 classes; ids are counted from 0"),
    ("category_id", -1, ALL, "category_id is -1"),
    ("category_id", 1.5, ALL, "category_id must be a whole number, not 1.5"),
    ("category_id", NAN, ALL, "category_id must be a whole number, not nan"),
    ("category_id", "cup", ALL, "category_id must be a whole number, not 'cup'"),
    ("segmentation", [[1, 2, NAN, 4, 5, 6]], [TRUTH, TRAINING], "numbers that are not finite"),
    ("segmentation", [[1, 2, INF, 4, -INF, 6]], [TRUTH, TRAINING], "that are not finite"),
    ("segmentation", [[1, 2, 1e9, 4, 5, 6]], [TRUTH, TRAINING], "more than 100000 pixels out"),
    ("segmentation", [np.array([1, 2, -1e9, 4, 5, 6])], [TRUTH], "more than 100000 pixels out"),
    ("segmentation", [[1, 2, 3, 4]], [TRUTH, TRAINING], "a polygon of 4 numbers"),
    ("segmentation", [[1, 2, 3, 4, 5, 6, 7]], [TRUTH, TRAINING], "a polygon of 7 numbers"),
    ("segmentation", [1, 2, 3, 4, 5, 6], [TRUTH], "a polygon of 1 numbers"),
    ("segmentation", [["1"] * 6], [TRUTH], "a polygon that is not a list of numbers"),
    ("segmentation", [[]], [TRUTH], "a polygon that is not a list of numbers"),
    ("segmentation", "abc", [TRUTH, TRAINING], "must be polygons or RLE, not str"),
    ("segmentation", np.zeros((48, 64)), [TRUTH, TRAINING], "must be polygons or RLE, not ndarr"),
    ("segmentation", {"counts": "a"}, [TRUTH], "RLE needs size and counts"),
    ("segmentation", {"counts": "a", "size": [64, 48]}, [TRUTH, TRAINING],
     "RLE is of 64 x 48 pixels (height x width), the image of 48 x 64"),
    ("segmentation", {"counts": "a", "size": 48}, [TRUTH], "size of RLE must be height and width"),
    ("segmentation", {"counts": [5, 5], "size": [48, 64]}, [TRUTH], "do not add up to 48 x 64"),
    ("segmentation", {"counts": [4000, -928], "size": [48, 64]}, [TRUTH], "do not add up"),
    ("segmentation", {"counts": [-1, 3073], "size": [48, 64]}, [TRUTH], "do not add up"),
    ("segmentation", {"counts": b"", "size": [48, 64]}, [TRUTH, TRAINING], "do not add up"),
    ("segmentation", {"counts": "0", "size": [48, 64]}, [TRUTH, TRAINING], "do not add up"),
    ("segmentation", {"counts": "zzz", "size": [48, 64]}, [TRUTH, TRAINING], "do not add up"),
    ("segmentation", {"counts": "P" * 40, "size": [48, 64]}, [TRUTH], "do not add up"),
    ("segmentation", {"counts": "\xff\xfe", "size": [48, 64]}, [TRUTH], "do not add up"),
    ("keypoints", [1, 2], [TRAINING], "keypoints must be x, y, visibility of each point"),
    ("keypoints", [1, NAN, 2], [TRAINING], "keypoints must be x, y, visibility of each point"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "uses", "sentence"), ENTRY_FAULTS)
def test_what_is_wrong_with_an_entry(entries, key, value, uses, sentence):
    for use in uses:
        metadata = {**CLASSES, "keypoint_names": ["tip"]}
        assert "entry 1" in (found := complaint(changed(entries, key, value), use, metadata))
        assert sentence in found


@pytest.mark.parametrize(("key", "value", "uses", "sentence"), ANNOTATION_FAULTS)
def test_what_is_wrong_with_an_annotation(entries, key, value, uses, sentence):
    for use in uses:
        found = complaint(changed(entries, key, value, annotation=True), use)
        assert found.startswith(
            f"data set 'checked', entry 1 ({entries[1]['file_name']!r}): annotation 1: "
        )
        assert sentence in found


def test_run_lengths_of_coco_fit_and_others_do_not():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        for height, width in ((1, 1), (7, 5), (48, 64), (700, 900)):
            mask = np.asfortranarray(rng.random((height, width)) < share, dtype=np.uint8)
            rle = mask_utils.encode(mask)
            assert segmentation_fault(rle, (height, width)) is None
            as_text = {**rle, "counts": rle["counts"].decode()}
            assert segmentation_fault(as_text, (None, None)) is None
            taller = {**rle, "size": [height + 1, width]}
            assert "do not add up" in segmentation_fault(taller, (None, None))


def test_the_whole(entries):
    assert "is empty" in complaint([], TRUTH)
    assert "must be a list of dicts, not dict" in complaint({"a": 1}, TRAINING)
    assert "must be a list of dicts, not generator" in complaint((e for e in entries), TRAINING)
    assert "must be a list of dicts, not str" in complaint("ab", TRAINING)
    assert "entry 0: a dict is needed, not str" in complaint(["a"], TRUTH)
    assert "no thing_classes" in complaint(entries, TRUTH, {})
    unlabeled = [{key: entry[key] for key in ("file_name", "image_id")} for entry in entries]
    assert "no annotations to learn from in any entry" in complaint(unlabeled, TRAINING)
    assert "(an empty list says that nothing is there)" in complaint(unlabeled, TRUTH)
    found = complaint(entries, TRAINING, {**CLASSES, "keypoint_names": ["tip", "end"]})
    assert "keypoints are 1 points, and keypoint_names are 2" in found


ACCEPTED = [
    ("image_id", np.int64(7), False, [TRUTH, TRAINING]),
    ("image_id", "b", False, ALL),
    ("image_id", 0, False, [TRAINING]),  # an image may be there twice
    ("image_id", ..., False, [TRAINING]),
    ("height", ..., False, [TRUTH, TRAINING]),
    ("height", np.int64(48), False, ALL),
    ("annotations", [], False, ALL),
    ("annotations", (), False, ALL),
    ("file_name", "https://example.org/a.png", False, ALL),
    ("bbox", (4, 5, 20, 10.5), True, ALL),
    ("bbox", [-100, 5, 300, 400], True, ALL),  # beyond the image
    ("bbox", [4, 5, 0, 0], True, ALL),  # COCO has such ones, Detectron2 leaves them out
    ("bbox_mode", 1, True, ALL),
    ("category_id", np.int32(1), True, ALL),
    ("category_id", 1.0, True, ALL),
    ("segmentation", [], True, ALL),
    ("segmentation", ..., True, ALL),
    ("segmentation", [np.array([[1, 2], [3, 4], [5, 6]])], True, [TRUTH, TRAINING]),
    ("segmentation", [[NAN] * 6], True, [COCO]),  # not looked at
    ("segmentation", mask_utils.encode(np.eye(48, 64, dtype=np.uint8, order="F")), True, ALL),
    ("segmentation", {"counts": [3000, 72], "size": [48, 64]}, True, ALL),
    ("keypoints", [1], True, [TRUTH, COCO]),
]


@pytest.mark.parametrize(("key", "value", "annotation", "uses"), ACCEPTED)
def test_what_detectron_takes_is_accepted(entries, key, value, annotation, uses):
    for use in uses:
        check_entries(NAME, changed(entries, key, value, annotation), CLASSES, use)


def test_arrays_that_need_no_conversion_are_accepted(entries):
    corners = {"bbox": np.array([4.0, 5, 24, 15]), "bbox_mode": BoxMode.XYXY_ABS}
    entries[0]["annotations"][0] |= corners
    for use in ALL:
        check_entries(NAME, entries, CLASSES, use)


def test_masks_are_looked_at_where_detectron2_writes_a_file_of_coco(entries):
    """Which it does where there is none; where there is, its evaluator reads that."""
    entries[0]["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    assert "Cannot create a polygon from 4 coordinates" in complaint(entries, COCO)
    check_entries(NAME, entries, CLASSES | {"json_file": "some.json"}, COCO)


def test_more_that_is_accepted(entries):
    for use in ALL:
        check_entries(NAME, entries, CLASSES, use)
        check_entries(NAME, tuple(entries), CLASSES, use)
        check_entries(NAME, torch.utils.data.StackDataset(torch.zeros(1)), {}, use)
    check_entries(NAME, entries, {}, TRAINING)  # classes without names
    unlabeled = [{k: v for k, v in entry.items() if k != "annotations"} for entry in entries]
    check_entries(NAME, unlabeled, CLASSES, COCO)  # all without objects, as for Detectron2
    semantic = [{**entry, "sem_seg_file_name": entry["file_name"]} for entry in unlabeled]
    check_entries(NAME, semantic, {}, TRAINING)
    for entry in entries:  # what a crowd holds is only looked at where it is compared with
        entry["annotations"][0] = {"iscrowd": 1}
    check_entries(NAME, entries, CLASSES, TRAINING)
    assert "annotation 0: it has no bbox" in complaint(entries, TRUTH)


def test_a_large_data_set_is_checked_at_once(entries):
    """5,000 images of 20 objects with masks: about a second, of which the test allows four."""
    polygon = np.random.default_rng(0).uniform(0, 40, 40).tolist()
    objects = [{**entries[0]["annotations"][0], "segmentation": [polygon]}] * 20
    many = [{**entries[0], "image_id": k, "annotations": objects} for k in range(5000)]
    start = time.process_time()
    check_entries(NAME, many, CLASSES, TRUTH)
    assert time.process_time() - start < 4


class TestRuns:
    """The check is where the tools are."""

    @pytest.fixture
    def register(self):
        def register(function, **metadata):
            DatasetCatalog.register(NAME, function)
            MetadataCatalog.get(NAME).set(**metadata)

        yield register
        if NAME in DatasetCatalog.list():
            DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME, None)

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (KeyError("images"), "data set 'checked' cannot be read: KeyError: 'images'"),
            (AssertionError(), "data set 'checked' cannot be read: AssertionError"),
            (FileNotFoundError(2, "no", "x.xml"), "'checked' needs 'x.xml', which does not exist"),
            (InputError("line 3 is odd"), "^line 3 is odd$"),
        ],
    )
    def test_a_function_that_fails(self, register, error, sentence):
        def fail():
            raise error

        register(fail)
        with pytest.raises((UserError, InputError), match=sentence):
            check_dataset(NAME, TRUTH)

    class Args:
        eval_only, resume = True, False

    def cfg(self, *opts):
        names = ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)"]
        return setup_cfg("", [*names, "MODEL.WEIGHTS", "", *opts])

    def test_evaluation_by_coco_and_by_ours_ask_for_different_things(self, register, entries):
        unlabeled = [{k: v for k, v in entry.items() if k != "annotations"} for entry in entries]
        register(lambda: unlabeled, **CLASSES)
        check_run(self.cfg(), self.Args)
        for evaluator in ("crowd", "explanation"):
            with pytest.raises(UserError, match=r"entry 0 .* it has no annotations"):
                check_run(self.cfg("TEST.ODAM.EVALUATORS", f"['{evaluator}']"), self.Args)

    def test_masks_are_checked_where_they_are_used(self, register, entries):
        broken = changed(entries, "segmentation", [[NAN] * 6], annotation=True)
        register(lambda: broken, **CLASSES)
        training = type("Args", (), {"eval_only": False, "resume": False})
        check_run(self.cfg(), training)
        with pytest.raises(UserError, match="not finite"):
            check_run(self.cfg("MODEL.MASK_ON", "True"), training)
        with pytest.raises(UserError, match="not finite"):
            check_run(self.cfg("TEST.ODAM.EVALUATORS", "['explanation']"), self.Args)

    def test_ids_of_numpy_are_written_as_pythons(self, register, entries):
        numbered = changed(entries, "image_id", np.int64(7))
        register(lambda: numbered, **CLASSES)
        nothing = {"boxes": [], "scores": [], "classes": []}
        images = analyse({0: nothing, 7: nothing}, NAME, 0.5, 0.1)
        assert json.dumps(list(images)) == "[0, 7]"

    def coco_file(self, tmp_path, change=None):
        images = [{"id": k, "file_name": "a.png", "height": 48, "width": 64} for k in range(2)]
        cup = {"image_id": 0, "category_id": 1, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0}
        annotations = [{"id": k + 1, **cup} for k in range(2)]
        content = {"images": images, "annotations": annotations,
                   "categories": [{"id": 1, "name": "cup"}]}  # fmt: skip
        if change:
            change(content)
        (tmp_path / "coco.json").write_text(json.dumps(content))
        return str(tmp_path / "coco.json")

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda c: c["images"][1].update(id=0), "images 0 and 1 have the same id 0"),
            (lambda c: c["annotations"][1].pop("area"), "annotation 1 has no area, which COCO's"),
            (lambda c: c.pop("images"), "is not in COCO's format: KeyError: 'images'"),
            (lambda c: c.update(images=[1]), "is not in COCO's format: TypeError"),
        ],
    )
    def test_files_of_coco(self, register, entries, tmp_path, change, sentence):
        register_coco_instances(NAME, {}, self.coco_file(tmp_path), str(tmp_path))
        check_run(self.cfg(), self.Args)
        path = self.coco_file(tmp_path, change)
        with pytest.raises(UserError, match=rf"^data set 'checked', {path}.*{sentence}"):
            check_run(self.cfg(), self.Args)

    def test_a_file_that_is_no_json(self, tmp_path):
        (tmp_path / "x.json").write_text("{broken")
        with pytest.raises(UserError, match="is not in COCO's format: JSONDecodeError"):
            check_coco_file(NAME, str(tmp_path / "x.json"))

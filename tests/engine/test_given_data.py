"""``--coco-json``, ``--image-root``, ``--class-names``: the data set of a run, or one sentence."""

import json
from argparse import ArgumentParser

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from odam_d2.data.given import add_data_arguments
from odam_d2.engine import setup_cfg, setup_lazy
from odam_d2.engine.given_data import use_given_data
from odam_d2.errors import UserError

CONTENT = {
    "images": [{"id": 5, "file_name": "a/x.jpg", "height": 30, "width": 40}],
    # Ids with a gap, as of LVIS, and not in order; no mask.
    "categories": [{"id": 1200, "name": "zebra"}, {"id": 7, "name": "ant"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 1200, "bbox": [3, 4, 10, 12], "area": 120,
         "iscrowd": 0}
    ],
}  # fmt: skip


@pytest.fixture
def files(tmp_path, request):
    """Annotations under a name of the test, its image, and class names."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "a" / "x.jpg"), np.zeros((30, 40, 3), np.uint8))
    name = "data_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(CONTENT))
    (tmp_path / "names.txt").write_text("ant\nzebra\n\n")
    yield file
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def used(cfg, *argv, needs_data=True):
    parser = ArgumentParser()
    add_data_arguments(parser)
    use_given_data(cfg, parser.parse_args([str(x) for x in argv]), needs_data)
    return cfg


def test_json_is_the_data_set(files):
    argv = ("--coco-json", files, "--image-root", files.parent / "images")
    cfg = used(setup_cfg(), *argv, "--class-names", files.parent / "names.txt")
    (name,) = cfg.DATASETS.TEST
    assert name == files.stem
    (entry,) = DatasetCatalog.get(name)
    assert [x["category_id"] for x in entry["annotations"]] == [1]
    assert MetadataCatalog.get(name).thing_classes == ["ant", "zebra"]
    assert (name,) == used(setup_cfg(), *argv).DATASETS.TEST  # again, in one process


def test_json_is_the_data_set_of_a_lazy_config(files):
    lazy = files.with_name("lazy.py")
    lazy.write_text("model = dict(depth=3)\n")
    cfg = used(setup_lazy(str(lazy)), "--coco-json", files, "--image-root", files.parent / "images")
    assert cfg.dataloader.test.dataset.names == files.stem


def test_images_lie_beside_the_json_by_default(files):
    beside = files.parent / "images" / files.name
    files.rename(beside)
    assert (files.stem,) == used(setup_cfg(), "--coco-json", beside).DATASETS.TEST


def test_names_of_the_data_set_s_classes_must_be_the_same(files):
    files.with_name("names.txt").write_text("zebra\nant")
    argv = ("--coco-json", files, "--image-root", files.parent / "images")
    with pytest.raises(
        UserError, match=r"has the classes zebra, ant, and the data set .* ant, zebra"
    ):
        used(setup_cfg(), *argv, "--class-names", files.with_name("names.txt"))


def test_names_without_data(files):
    """The classes of the config's data set are of another detector, or of none."""
    cfg = setup_cfg("", ["DATASETS.TEST", "('coco_2017_val',)"])
    (name,) = used(
        cfg, "--class-names", files.with_name("names.txt"), needs_data=False
    ).DATASETS.TEST
    assert MetadataCatalog.get(name).thing_classes == ["ant", "zebra"]
    cfg = setup_cfg("", ["DATASETS.TEST", "('coco_2017_val',)"])
    with pytest.raises(UserError, match=r"'coco_2017_val' has person, bicycle, .*\(80\)"):
        used(cfg, "--class-names", files.with_name("names.txt"))


def without(key):
    return {k: v for k, v in CONTENT.items() if k != key}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "is not JSON"),
        (json.dumps([1]), "has no list of images and of annotations and of categories"),
        (json.dumps(without("categories")), "has no list of categories"),
        (
            json.dumps({**CONTENT, "categories": [{"id": 1}]}),
            "number 0 of categories has no 'name'",
        ),
        (json.dumps({**CONTENT, "images": [7]}), "number 0 of images has no 'id'"),
    ],
)
def test_json_of_no_use(files, content, words):
    files.write_text(content)
    with pytest.raises(UserError, match=words):
        used(setup_cfg(), "--coco-json", files)
    assert files.stem not in DatasetCatalog.list()


def test_images_that_are_not_there(files):
    with pytest.raises(UserError, match=r"there is no folder '.*nowhere'"):
        used(setup_cfg(), "--coco-json", files, "--image-root", files.parent / "nowhere")
    with pytest.raises(UserError, match=r"there is no image 'a/x\.jpg' of"):
        used(setup_cfg(), "--coco-json", files)
    with pytest.raises(UserError, match="--coco-json, which is missing"):
        used(setup_cfg(), "--image-root", files.parent)


def test_a_name_that_is_taken(files):
    DatasetCatalog.register(files.stem, list)
    with pytest.raises(UserError, match=r"there is a data set .* already: rename"):
        used(setup_cfg(), "--coco-json", files, "--image-root", files.parent / "images")


@pytest.mark.parametrize(
    ("names", "words"),
    [(b"\xff\xfe\x00", "is not text"), (b"", "name of a class in each line"),
     (b"ant\n\nzebra", "name of a class in each line"), (b"ant\nant", "the class 'ant' twice")],
)  # fmt: skip
def test_names_of_no_use(files, names, words):
    files.with_name("names.txt").write_bytes(names)
    with pytest.raises(UserError, match=words):
        used(setup_cfg(), "--class-names", files.with_name("names.txt"), needs_data=False)

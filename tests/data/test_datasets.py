"""The registered real data sets have the images, objects and classes that they should."""

import os
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from odam_d2.data import register_datasets
from odam_d2.data.bccd import register_bccd

register_datasets()

pytestmark = pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "bccd")),
    reason="DETECTRON2_DATASETS names no folder that holds bccd",
)


def objects_by_class(name: str) -> Counter:
    """How many objects of each class a data set has, by the name that its metadata gives."""
    names = MetadataCatalog.get(name).thing_classes
    return Counter(
        names[annotation["category_id"]]
        for image in DatasetCatalog.get(name)
        for annotation in image["annotations"]
    )


def test_bccd_train():
    images = DatasetCatalog.get("bccd_train")
    assert len(images) == 205
    assert {(image["width"], image["height"]) for image in images} == {(640, 480)}
    assert objects_by_class("bccd_train") == {"RBC": 2382, "WBC": 214, "Platelets": 209}


def test_bccd_val():
    assert len(DatasetCatalog.get("bccd_val")) == 87
    assert objects_by_class("bccd_val") == {"RBC": 968, "WBC": 87, "Platelets": 83}


def test_bccd_splits_share_no_image():
    files = [
        {os.path.basename(image["file_name"]) for image in DatasetCatalog.get(f"bccd_{split}")}
        for split in ("train", "val")
    ]
    assert not files[0] & files[1]


def test_coco128_has_the_classes_of_coco():
    assert len(DatasetCatalog.get("coco128_dev")) == 96
    ours, coco = MetadataCatalog.get("coco128_dev"), MetadataCatalog.get("coco_2017_val")
    assert ours.thing_classes == coco.thing_classes
    ids = "thing_dataset_id_to_contiguous_id"
    assert ours.get(ids) == coco.get(ids)
    counts = objects_by_class("coco128_dev")
    assert counts.total() == 725
    assert len(counts) == 69


@pytest.mark.parametrize("name", ["bccd_train", "bccd_val", "coco128_dev"])
def test_images_exist_and_evaluation_is_cocos(name):
    assert all(os.path.isfile(image["file_name"]) for image in DatasetCatalog.get(name))
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_registering_again_keeps_the_first(tmp_path):
    register_bccd(str(tmp_path))
    assert not MetadataCatalog.get("bccd_val").json_file.startswith(str(tmp_path))

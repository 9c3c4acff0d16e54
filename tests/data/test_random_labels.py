"""Data sets with the classes of another one in random order."""

import copy
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from odam_d2.data import register_random_labels

NAME = "toy_labels"


@pytest.fixture
def entries():
    found = [
        {"image_id": image, "annotations": [{"bbox": [image, number, 5, 5], "category_id": number}
                                            for number in range(1 + image)]}
        for image in range(9)
    ]  # fmt: skip
    DatasetCatalog.register(NAME, lambda: found)
    MetadataCatalog.get(NAME).thing_classes = list("abcdefghi")
    yield found
    for name in (NAME, f"{NAME}_random_labels"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def labels(entries):
    return [a["category_id"] for entry in entries for a in entry["annotations"]]


def test_boxes_stay_and_classes_are_dealt_anew(entries):
    """As often as before each, so that a detector cannot tell by how often a class comes."""
    before = copy.deepcopy(entries)
    name = register_random_labels(NAME)
    assert name == register_random_labels(NAME) == f"{NAME}_random_labels"
    dealt = DatasetCatalog.get(name)
    assert dealt == DatasetCatalog.get(name)
    assert entries == before
    assert labels(dealt) != labels(before)
    assert Counter(labels(dealt)) == Counter(labels(before))
    # Also in another image than their own.
    assert any(
        Counter(labels([a])) != Counter(labels([b])) for a, b in zip(dealt, before, strict=True)
    )
    for old, new in zip(before, dealt, strict=True):
        assert new["image_id"] == old["image_id"]
        assert [a["bbox"] for a in new["annotations"]] == [a["bbox"] for a in old["annotations"]]
    assert MetadataCatalog.get(name).thing_classes == list("abcdefghi")


def test_training_splits_of_crowdshapes_have_them():
    assert "crowdshapes_scattered_train_random_labels" in DatasetCatalog.list()

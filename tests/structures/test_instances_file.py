"""Detections and maps in a file come back as they were; other files are told."""

import os

import numpy as np
import pytest
import torch
from blob_maps import blob_detections
from detectron2.structures import Boxes

from odam_d2 import OdamMaps, load_instances, save_instances
from odam_d2.core.errors import InputError
from odam_d2.structures.arrays_file import TENSORS

SIZE = (60, 100)
BOXES = [(20.0, 10.0, 70.0, 40.0), (1.0, 2.0, 30.0, 50.0)]


@pytest.fixture
def found():
    instances = blob_detections(SIZE, BOXES, classes=[2, 1])
    instances.odam_maps.origins[1] = torch.tensor([-3, 4])
    instances.odam_maps.saturated[1, 0] = True
    instances.kept = torch.tensor([True, False])
    instances.proposal_boxes = Boxes(torch.rand(2, 4))
    return instances


def same_maps(maps, expected):
    assert (maps.targets, maps.signed) == (expected.targets, expected.signed)
    for name in TENSORS[1:]:
        assert getattr(maps, name).dtype == getattr(expected, name).dtype
        assert torch.equal(getattr(maps, name), getattr(expected, name))
    assert torch.equal(maps.dense(47, 81), expected.dense(47, 81))


@pytest.mark.parametrize("signed", [False, True])
def test_round_trip(found, tmp_path, signed):
    found.odam_maps.signed = signed
    save_instances(tmp_path / "a.npz", found)
    loaded = load_instances(tmp_path / "a.npz")
    assert loaded.image_size == SIZE
    assert list(loaded.get_fields()) == [
        *("pred_boxes", "scores", "pred_classes", "kept", "proposal_boxes", "odam_maps")
    ]
    for name in ("scores", "pred_classes", "kept"):
        assert torch.equal(loaded.get(name), found.get(name))
    for name in ("pred_boxes", "proposal_boxes"):
        assert torch.equal(loaded.get(name).tensor, found.get(name).tensor)
    same_maps(loaded.odam_maps, found.odam_maps)
    same_maps(OdamMaps.load(tmp_path / "a.npz"), found.odam_maps)


def test_maps_alone(found, tmp_path):
    found.odam_maps.save(tmp_path / "a.npz")
    same_maps(OdamMaps.load(tmp_path / "a.npz"), found.odam_maps)
    with pytest.raises(InputError, match=r"no complete detections: .* OdamMaps\.load reads maps"):
        load_instances(tmp_path / "a.npz")


def test_without_maps_and_without_detections(found, tmp_path):
    save_instances(tmp_path / "a.npz", found[:0])
    loaded = load_instances(tmp_path / "a.npz")
    assert len(loaded) == 0
    assert loaded.odam_maps.targets == found.odam_maps.targets
    assert loaded.odam_maps.dense(5, 7).shape == (0, 5, 5, 7)
    found.remove("odam_maps")
    save_instances(tmp_path / "a.npz", found)
    assert not load_instances(tmp_path / "a.npz").has("odam_maps")
    with pytest.raises(InputError, match="detections without maps"):
        OdamMaps.load(tmp_path / "a.npz")


def test_half_precision_is_written_as_float32(found, tmp_path):
    """NumPy knows no bfloat16."""
    found.odam_maps = found.odam_maps.to(torch.bfloat16)
    found.scores = torch.tensor([0.75, 0.5], dtype=torch.bfloat16, requires_grad=True)
    save_instances(tmp_path / "a.npz", found)
    loaded = load_instances(tmp_path / "a.npz")
    assert loaded.scores.tolist() == [0.75, 0.5]
    assert torch.equal(loaded.odam_maps.dense(9, 9), found.odam_maps.to(torch.float32).dense(9, 9))


def test_a_slice_is_small(tmp_path):
    """Its windows were padded to the largest of all detections."""
    maps = blob_detections((640, 800), [(0, 0, 8, 8)] * 2).odam_maps
    maps.values = torch.rand(maps.values.shape, generator=torch.Generator().manual_seed(0))
    maps.values[1, :, 5:], maps.values[1, :, :, 6:] = 0, 0
    maps.save(tmp_path / "all.npz")
    maps[1].save(tmp_path / "one.npz")
    same_maps(OdamMaps.load(tmp_path / "one.npz"), maps[1])
    assert OdamMaps.load(tmp_path / "one.npz").values.shape[-2:] == (5, 6)
    assert os.path.getsize(tmp_path / "one.npz") < os.path.getsize(tmp_path / "all.npz") / 50


def test_fields_of_other_kinds(found, tmp_path):
    found.captions = ["a", "b"]
    with pytest.raises(InputError, match=r"'captions' is a list; .*remove\('captions'\)"):
        save_instances(tmp_path / "a.npz", found)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"must end with \.npz"):
        found.odam_maps.save(tmp_path / "a.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


def test_files_of_other_kinds(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {
        "other.npz": lambda path: np.savez(path, x=np.zeros(3)),
        "evil.npz": lambda path: np.savez(path, format=np.array([Evil()], dtype=object)),
        "text.npz": lambda path: path.write_text("no archive"),
        "empty.npz": lambda path: path.touch(),
        "array.npz": lambda path: np.save(path.open("wb"), np.zeros(3)),
    }
    for name, write in contents.items():
        write(tmp_path / name)
        for load in (load_instances, OdamMaps.load):
            with pytest.raises(InputError, match=rf"{name}' is no "):
                load(tmp_path / name)
    assert not (tmp_path / "was_here").exists()
    with pytest.raises(FileNotFoundError):
        load_instances(tmp_path / "missing.npz")


def change(path, **arrays):
    with np.load(path) as file:
        content = {**file, **arrays}
    np.savez(path, **{name: a for name, a in content.items() if a is not None})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"format": np.array(["odam_d2", "2"])}, "of version 2 of the format, .* up to 1"),
        ({"maps:strides": None}, "no usable maps"),
        ({"maps:strides": np.zeros(7)}, r"no usable maps: strides must have the shape"),
        ({"field:scores": None}, "no complete detections"),
        ({"field:scores": np.zeros(7)}, "no complete detections"),
    ],
)
def test_files_that_are_broken(found, tmp_path, arrays, words):
    save_instances(tmp_path / "a.npz", found)
    change(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=words):
        load_instances(tmp_path / "a.npz")

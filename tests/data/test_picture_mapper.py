"""Entries of data sets become inputs as by Detectron2, with pictures as every tool reads them."""

import numpy as np
import pytest
from detectron2.config import LazyCall, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.structures import BoxMode
from omegaconf import OmegaConf
from picture_files import COLORS, H, W, ordinary, stored

from odam_d2.data.mapper import PictureMapper
from odam_d2.engine import Trainer, lazy_trainer
from odam_d2.errors import UserError, run_tool


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MIN_SIZE_TRAIN = 0  # as it is
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


class TestMapper:
    def test_ordinary_entries_are_mapped_as_by_detectron(self, cfg, tmp_path):
        for name in ordinary(tmp_path):
            for is_train in (True, False):
                entry = {"file_name": str(tmp_path / name), "image_id": 7, "annotations": []}
                expected = DatasetMapper(cfg, is_train)(entry)
                found = PictureMapper(cfg, is_train)(entry)
                assert found.keys() == expected.keys()
                assert np.array_equal(found.pop("image"), expected.pop("image"))
                found.pop("instances", None), expected.pop("instances", None)
                assert found == expected

    def test_other_pictures(self, cfg, tmp_path):
        path = stored(tmp_path / "x.tif", COLORS, 6)
        entry = {"file_name": path, "image_id": np.int64(3), "height": H, "width": W}
        found = PictureMapper(cfg, False)(entry)
        assert np.array_equal(found["image"].numpy(), COLORS[..., ::-1].transpose(2, 0, 1))
        assert found["file_name"] == entry["file_name"]
        assert type(found["image_id"]) is int

    def test_another_size_and_a_broken_file_are_told(self, cfg, tmp_path):
        path = stored(tmp_path / "x.png", COLORS)
        entry = {"file_name": path, "height": H + 1, "width": W}
        with pytest.raises(UserError, match=rf"shape for image {path}, got \(9, 6\), expect"):
            PictureMapper(cfg, False)(entry)
        content = (tmp_path / "x.png").read_bytes()
        (tmp_path / "x.png").write_bytes(content[:-30])
        with pytest.raises(UserError, match=rf"^'{path}' cannot be read as an image: "):
            PictureMapper(cfg, False)(entry)

    def test_too_thin_to_be_resized_is_told(self, cfg, tmp_path):
        cfg.INPUT.MIN_SIZE_TEST = 800  # and at most 1333 wide
        path = stored(tmp_path / "x.png", np.zeros((1, 5000, 3), np.uint8))
        with pytest.raises(UserError, match=rf"^'{path}': the picture is too thin"):
            PictureMapper(cfg, False)({"file_name": path})

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_tool_says_so_in_one_line(self, cfg, tmp_path, capsys, workers):
        (tmp_path / "bad.png").touch()
        entries = [{"file_name": str(tmp_path / "bad.png"), "image_id": 0}]
        mapper = PictureMapper(cfg, False)
        loader = build_detection_test_loader(entries, mapper=mapper, num_workers=workers)
        assert run_tool(lambda: list(loader)) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: '{tmp_path}/bad.png' cannot be read as an image: ")
        assert error.count("\n") == 1


def test_the_trainer_trains_on_and_tests_what_the_demo_sees(cfg, tmp_path):
    path = stored(tmp_path / "x.tif", COLORS, 6)
    cup = {"bbox": [1, 1, 5, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    DatasetCatalog.register(
        "turned", lambda: [{"file_name": path, "image_id": 0, "annotations": [cup]}]
    )
    try:
        cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = ["turned"], 1, 0
        (test,) = Trainer.build_test_loader(cfg, "turned")
        train = next(iter(Trainer.build_train_loader(cfg)))
    finally:
        DatasetCatalog.remove("turned")
    for batch in (test, train):
        assert np.array_equal(batch[0]["image"].numpy(), COLORS[..., ::-1].transpose(2, 0, 1))


def test_detectrons_mapper_in_a_lazy_config_reads_so_too(tmp_path):
    path = stored(tmp_path / "x.tif", COLORS, 6)
    mapper = LazyCall(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB")
    loader = LazyCall(build_detection_test_loader)(
        dataset=[{"file_name": path, "image_id": 0}], mapper=mapper
    )
    cfg = OmegaConf.create({"dataloader": {"test": loader}}, flags={"allow_objects": True})
    assert lazy_trainer.maps_as_detectron(cfg, "test")
    assert not lazy_trainer.maps_as_detectron(cfg, "train")
    (batch,) = lazy_trainer._build_loader(cfg, "test")
    assert np.array_equal(batch[0]["image"].numpy(), COLORS.transpose(2, 0, 1))

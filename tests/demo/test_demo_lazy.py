"""tools/demo.py with a LazyConfig."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blob_maps import blob_detections
from demo_tool import BOXES, files_in, run, save_image
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_coco import register_tiny

from odam_d2 import ExplainSettings
from odam_d2.demo import read_picture
from odam_d2.engine import ExplainingPredictor, build_detector, detector, predictor, setup_lazy
from odam_d2.errors import UserError
from odam_d2.visualization import load_maps

CONFIG = Path(__file__).parents[1] / "lazy_configs" / "retinanet_slim.py"


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    register_tiny("tiny_lazy", tmp_path_factory.mktemp("tiny"))
    DatasetCatalog.get("tiny_lazy")  # reads the names of the classes
    yield
    DatasetCatalog.remove("tiny_lazy")
    MetadataCatalog.remove("tiny_lazy")


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of the slim model with random weights that find something."""
    torch.manual_seed(0)
    model = instantiate(setup_lazy(str(CONFIG)).model)
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.5)
    torch.save({"model": model.state_dict()}, tmp_path / "slim.pth")
    return f"train.init_checkpoint={tmp_path / 'slim.pth'}"


def config(*opts):
    return setup_lazy(str(CONFIG), opts)


def demo(capsys, tmp_path, *arguments, config_file=CONFIG):
    image = save_image(tmp_path / "street.png", 50, 80)
    return run(
        capsys, "--config-file", config_file, "--input", image, "--output", tmp_path / "out",
        *arguments,
    )  # fmt: skip


def test_explains(tmp_path, capsys, weights):
    status, _, err = demo(
        capsys, tmp_path, "--confidence-threshold", "0", "--targets", "class", "class:c2", "left",
        "--opts", weights,
    )  # fmt: skip
    assert status == 0, err
    listing = json.loads((tmp_path / "out" / "street" / "maps.json").read_text())
    assert {item["class"]["name"] for item in listing["maps"]} <= {f"c{k}" for k in range(6)}
    maps = load_maps(tmp_path / "out" / "street" / "maps.npz")
    assert maps.targets == ("class", "class:c2", "left")
    assert len(maps) == 10
    assert maps.image_sizes.tolist() == [[64, 102]] * 10  # 50 x 80, the shorter side at 64
    assert maps.values.isfinite().all()
    assert weights.split("=")[1] in (tmp_path / "out" / "index.html").read_text()


def test_score_threshold(weights):
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)

    def scores_above(threshold):
        predict = ExplainingPredictor(config(weights), ["class"], threshold)
        return predict(image[:, :, ::-1])["instances"].scores

    everything = scores_above(0.0)
    middle = everything.median().item()
    scores = scores_above(middle)
    assert scores.tolist() == everything[everything > middle].tolist()
    assert 0 < len(scores) < len(everything)


def test_score_threshold_of_a_cascade_is_the_last_stage_s():
    with torch.device("meta"):
        model = instantiate(model_zoo.get_config("common/models/cascade_rcnn.py").model)
    detector._set_model_threshold(model, 0.375)
    assert model.roi_heads.box_predictor[-1].test_score_thresh == 0.375


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_picture_is_prepared_as_by_the_test_mapper(weights, monkeypatch, tmp_path, layout):
    cfg = config(weights, f"dataloader.train.mapper.image_format={layout}")
    mapper = instantiate(cfg.dataloader.test.mapper)
    path = save_image(tmp_path / "street.png", 50, 80)
    expected = mapper({"file_name": path, "height": 50, "width": 80})
    seen = {}

    def spy(model, inputs, **settings):
        seen.update(inputs[0])
        return [{"instances": blob_detections((50, 80), BOXES)}]

    monkeypatch.setattr(predictor, "explain", spy)
    ExplainingPredictor(cfg)(read_picture(path)[:, :, ::-1])
    assert (seen["height"], seen["width"]) == (50, 80)
    assert (seen["image"] == expected["image"]).all()


def test_a_config_of_a_model_alone_gets_detectron2s_defaults(tmp_path):
    text = (
        CONFIG.read_text().replace("dataloader, lr", "_data, lr").replace("dataloader.", "_data.")
    )
    (tmp_path / "alone.py").write_text(text.replace("_zoo._data.", "_zoo.dataloader."))
    found = build_detector(setup_lazy(str(tmp_path / "alone.py")))
    (resize,) = found.resize.augs
    assert (found.input_format, resize.short_edge_length, resize.max_size) == (
        "BGR",
        (800, 800),
        1333,
    )
    assert found.settings == ExplainSettings()


def test_settings_are_those_of_the_model(tmp_path):
    ours = (
        "\nfrom odam_d2 import ExplainSettings\nfrom odam_d2.modeling import OdamRetinaNet\n"
        "model._target_ = OdamRetinaNet\n"
        "model.odam = L(ExplainSettings)(targets=('left',), score='logit')\n"
    )
    (tmp_path / "ours.py").write_text(CONFIG.read_text() + ours)
    settings = build_detector(setup_lazy(str(tmp_path / "ours.py"))).settings
    assert (tuple(settings.targets), settings.score) == (("left",), "logit")
    assert settings.class_names == tuple(f"c{k}" for k in range(6))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--opts", "train.init_checkpoint", "x.pth"], "come as KEY=VALUE"),
        (["--opts", "train.init_checkpont=x.pth"], "did you mean train.init_checkpoint?"),
        (["--opts", "train.init_checkpoint=x.pth"], "weights file 'x.pth' does not exist"),
        ([], "train.init_checkpoint is empty: name the checkpoint"),
        (["--confidence-threshold", "2"], "must be in [0, 1]"),
        (["--targets", "class:c9"], "c9"),
        (["--opts", "dataloader.test.mapper.image_format=L"], "image_format is 'L'; pictures are"),
        (["--opts", "model.head.conv_dims=many"], "model of the config cannot be built"),
    ],
)
def test_error(arguments, sentence, tmp_path, capsys):
    status, _, err = demo(capsys, tmp_path, *arguments)
    assert status == 1
    assert err[-1].startswith("error: ")
    assert sentence in err[-1]
    assert files_in(tmp_path) == ["street.png"]


def test_error_a_model_without_a_threshold():
    with pytest.raises(UserError, match="Linear has no score threshold"):
        detector._set_model_threshold(torch.nn.Linear(1, 1), 0.5)

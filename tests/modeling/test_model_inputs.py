"""Wrapped models, predictors and single pictures are explained as the model and batch in them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn
from torch.optim.swa_utils import AveragedModel

from odam_d2 import explain, explain_boxes, explain_outputs, model_zoo
from odam_d2.core.errors import InputError
from odam_d2.modeling.model_inputs import unwrapped

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
BOX, CLASS = torch.tensor([[8.0, 8, 60, 50]]), torch.tensor([1])


def distributed(model):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "compile": torch.compile,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
    "predictor": lambda model: SimpleNamespace(model=model),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_model_inside_is_explained(slim_model, wrap):
    wrapped = wrap(slim_model)
    assert unwrapped(wrapped) is slim_model
    batch = [{"image": IMAGE}]
    plain = explain_boxes(slim_model, batch, [BOX], [CLASS])[0]["instances"]
    found = explain_boxes(wrapped, batch, [BOX], [CLASS])[0]["instances"]
    assert torch.equal(found.odam_maps.values, plain.odam_maps.values)
    assert found.odam_maps.values.any()


def test_averaged_weights(slim_model):
    """They are another model's, with a module of its own."""
    averaged = AveragedModel(slim_model)
    assert unwrapped(averaged) is averaged.module


def test_one_input_gives_one_output(slim_model):
    one = explain_boxes(slim_model, {"image": IMAGE}, BOX, CLASS, ["left"])
    (listed,) = explain_boxes(slim_model, [{"image": IMAGE}], [BOX], [CLASS], ["left"])
    assert torch.equal(one["instances"].odam_maps.values, listed["instances"].odam_maps.values)
    assert isinstance(explain(slim_model, {"image": IMAGE}), dict)
    assert isinstance(explain(slim_model, [{"image": IMAGE}]), list)


@pytest.fixture(scope="module", params=["BGR", "RGB"])
def predictor(request):
    """Detectron2's own, for pictures that are resized, of either order of channels."""
    cfg = model_zoo.get_config("CrowdShapes/fcos_R_50_FPN_slim.yaml")
    cfg.merge_from_list(["INPUT.FORMAT", request.param, "INPUT.MIN_SIZE_TEST", 128])
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.02
    return DefaultPredictor(cfg)


def test_a_predictor_is_given_pictures(predictor):
    picture = np.random.default_rng(1).integers(0, 256, (72, 100, 3), np.uint8)
    given = picture.copy()
    expected = predictor(picture)["instances"]
    found = explain(predictor, picture, ["class", "class:ring"])["instances"]
    assert len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    assert found.image_size == (72, 100)
    assert (picture == given).all()
    both = explain(predictor, [picture, picture[:, :60]])
    assert [x["instances"].image_size for x in both] == [(72, 100), (72, 60)]


def test_a_plain_predictor_knows_the_names_of_its_classes(predictor):
    plain = SimpleNamespace(**vars(predictor))
    plain.model = model_zoo.get("CrowdShapes/retinanet_R_50_FPN_slim.yaml").eval()
    plain.model.odam = None
    picture = np.zeros((72, 100, 3), np.uint8)
    maps = explain(plain, picture, ["class:ring"])["instances"].odam_maps
    assert maps.targets == ("class:ring",)


@pytest.mark.parametrize("shape", [(64, 96), (64, 96, 4), (0, 96, 3)])
def test_pictures_of_no_use(predictor, shape):
    with pytest.raises(InputError, match=r"it must be \(H, W, 3\), BGR"):
        explain(predictor, np.zeros(shape, np.uint8))


def test_a_model_does_not_know_how_to_resize_a_picture(slim_model):
    with pytest.raises(InputError, match="give a DefaultPredictor instead"):
        explain(slim_model, np.zeros((64, 96, 3), np.uint8))


def test_augmentation_at_test_time_is_refused(faster_rcnn):
    merged = GeneralizedRCNNWithTTA(get_cfg(), faster_rcnn)
    for call in (
        lambda: explain(merged, [{"image": IMAGE}]),
        lambda: explain_outputs(merged, [{"image": IMAGE}], lambda x: x, "backbone"),
    ):
        with pytest.raises(InputError, match=r"give the detector inside, its \.model"):
            call()


@pytest.mark.parametrize("model", [None, "faster_rcnn.yaml", SimpleNamespace(model="faster_rcnn")])
def test_what_is_no_model(model):
    with pytest.raises(InputError, match="or a DefaultPredictor"):
        explain(model, [{"image": IMAGE}])

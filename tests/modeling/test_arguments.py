"""What the entry points refuse before a model runs, and what they take as Detectron2 does."""

import numpy as np
import pytest
import torch

from odam_d2 import ExplainSettings, explain, explain_boxes, explain_outputs
from odam_d2.core.errors import InputError

IMAGE = torch.rand(3, 64, 96) * 255
BOX, CLASS = torch.tensor([[8.0, 8, 60, 50]]), torch.tensor([1])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "batched_inputs is a NoneType"),
        ("street.jpg", "batched_inputs is a str"),
        ([IMAGE], "input 0 must be a dict with the key 'image'"),
        ([{"image": IMAGE}, {"height": 5}], "input 1 must be a dict with the key 'image'"),
        ([{"image": IMAGE.numpy()}], "is a ndarray; it must be a tensor"),
        ([{"image": IMAGE[0]}], r"shape \(64, 96\)"),
        ([{"image": IMAGE[:, :0]}], r"shape \(3, 0, 96\)"),
        ([{"image": IMAGE.permute(1, 2, 0)}], "3 channels, which come first"),
        ([{"image": IMAGE.double()}], "torch.float64, and the model of torch.float32"),
        ([{"image": IMAGE > 3}], "of torch.bool"),
        ([{"image": IMAGE, "height": None}], "height of input 0 is None"),
        ([{"image": IMAGE, "width": -3}], "width of input 0 is -3"),
        ([{"image": IMAGE, "width": float("nan")}], "width of input 0 is nan"),
    ],
)
def test_inputs_that_are_refused(slim_model, inputs, words):
    for call in (
        lambda: explain(slim_model, inputs),
        lambda: explain_boxes(slim_model, inputs, [BOX], [CLASS]),
        lambda: explain_outputs(slim_model, inputs, lambda x: x, "backbone"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_what_detectron2_takes_is_taken(slim_model):
    plain = explain(slim_model, [{"image": IMAGE.byte(), "height": 128, "width": 192}])
    sizes = {"height": np.int64(128), "width": 192.0}
    found = explain(slim_model, ({"image": IMAGE.byte(), **sizes},))
    assert torch.equal(
        found[0]["instances"].odam_maps.values, plain[0]["instances"].odam_maps.values
    )
    assert explain(slim_model, []) == []


@pytest.mark.parametrize(
    ("boxes", "classes", "words"),
    [
        (None, [CLASS], "boxes is a NoneType"),
        (BOX, CLASS, "boxes is a Tensor; it must be a list"),
        ([None], [CLASS], "boxes of image 0 must be numbers"),
        ([BOX], [["robot"]], "classes of image 0 must be numbers"),
        ([BOX], [CLASS[0]], r"must have the shapes \(N, 4\) and \(N,\)"),
        ([BOX], [CLASS[None]], r"must have the shapes \(N, 4\) and \(N,\)"),
        ([BOX], [torch.tensor([1.5])], "class ids must be 0 to .*, not 1.5"),
        ([BOX * 20], [CLASS], "a box reaches 1200 pixels.* 10 times the size of the image, 960"),
    ],
)
def test_boxes_that_are_refused(slim_model, boxes, classes, words):
    with pytest.raises(InputError, match=words):
        explain_boxes(slim_model, [{"image": IMAGE}], boxes, classes)


def test_a_box_may_reach_beyond_the_image(slim_model):
    far = torch.tensor([[-900.0, 8, 60, 50]])
    found = explain_boxes(slim_model, [{"image": IMAGE}], [far], [[1.0]])
    assert found[0]["instances"].odam_maps.values.isfinite().all()


@pytest.mark.parametrize("targets", [None, 3, [None], [["class"]]])
def test_targets_that_are_no_names(slim_model, targets):
    with pytest.raises(InputError, match="must be names"):
        explain(slim_model, [{"image": IMAGE}], targets)


@pytest.mark.parametrize("model", [None, "model", {}])
def test_what_is_no_model(model):
    with pytest.raises(InputError, match=r"must be a torch.nn.Module"):
        explain(model, [{"image": IMAGE}])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smoothing_sigma": None}, "smoothing_sigma is None"),
        ({"smoothing_sigma": 1e9}, "at most 1000"),
        ({"chunk_mb": "64"}, "chunk_mb is '64'"),
        ({"chunk_mb": float("inf")}, "chunk_mb is inf"),
        ({"class_names": "robot"}, "must be a list of names"),
        ({"class_names": 3}, "must be a list of names"),
        ({"class_names": ["robot", 3]}, "must be a list of names"),
        ({"layer": ["res4"]}, "layer is"),
        ({"record": "yes"}, "record is 'yes'"),
        ({"d_rise": {}}, "must be DRiseSettings"),
        ({"nms": "odam_nms"}, "ODAM_NMS_REGISTRY"),
        ({"method": "d_rise", "targets": ("class",), "score": "logit"}, "D-RISE differentiates"),
        (
            {"method": "d_rise", "targets": ("class",), "smoothing_sigma": 1},
            "D-RISE differentiates",
        ),
    ],
)
def test_settings_of_another_kind(settings, words):
    with pytest.raises(InputError, match=words):
        ExplainSettings(**settings)

"""Position baselines: where their peaks lie, in every family, and what they refuse."""

import pytest
import torch
from detectron2.structures import Boxes
from known_detr import KnownDETR
from oracle import RETINANET, SLIM, two_images, zoo_model
from tiny_detr import TARGETS as DETR_TARGETS
from training_cases import training_model

from odam_d2 import explain, explain_boxes
from odam_d2.core.errors import InputError
from odam_d2.modeling.attribution.position import PositionMethod

TARGETS = ("class", "left", "top", "right", "bottom", "class:3")
METHODS = ("box_blob", "box_centre", "side_middle")


def peaks(maps, size):
    """(N, T, 2) of (x, y) in pixels of an image (height, width), in the middle of equal ones."""
    height, width = size
    heat = maps.dense(height, width)
    found = torch.zeros(*heat.shape[:2], 2)
    for n, of_detection in enumerate(heat):
        for t, of_target in enumerate(of_detection):
            y, x = (of_target == of_target.max()).nonzero().double().mean(dim=0) + 0.5
            found[n, t] = torch.tensor([x, y])
    return found


def places(boxes, method):
    """By hand: (N, T, 2)."""
    rows = []
    for x1, y1, x2, y2 in boxes.tolist():
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        dx, dy = (x2 - x1) / 16, (y2 - y1) / 16
        sides = [(x1 + dx, y), (x, y1 + dy), (x2 - dx, y), (x, y2 - dy)]
        rows.append([(x, y), *(sides if method == "side_middle" else [(x, y)] * 4), (x, y)])
    return torch.tensor(rows)


@pytest.fixture(scope="module", params=["fpn", "retinanet", "fcos"])
def model(request):
    few = ["TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    return training_model(request.param, *few).eval()


@pytest.mark.parametrize("method", METHODS)
def test_peaks_lie_where_the_box_says(model, method):
    """In a batch of two sizes, and at boxes over the border; within a cell, a 32nd of the box."""
    images = [{"image": x["image"]} for x in two_images()]
    for given, output in zip(images, explain(model, images, TARGETS, method=method), strict=True):
        found = output["instances"]
        assert len(found)
        size = tuple(given["image"].shape[-2:])
        boxes = found.pred_boxes.tensor
        cell = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).clamp(min=32) / 32
        off = (peaks(found.odam_maps, size) - places(boxes, method)).abs().amax(dim=(1, 2))
        assert (off <= cell + 0.5).all()


def test_a_blob_is_a_quarter_of_the_box_wide():
    """Of width and of height: by moments, on a box whose every part is inside of the image."""
    boxes = torch.tensor([[100.0, 200, 164, 328]])
    values, first, strides = PositionMethod(1 / 4)._gaussians(boxes, boxes.new_tensor([[0.5, 0.5]]))
    assert strides.tolist() == [128 / 32]
    assert values.shape == (1, 1, 65, 65)  # 32 cells to each side of that of the centre
    for axis, (centre, side) in enumerate(((264, 128), (132, 64))):  # rows, columns
        mass = values[0, 0].double().sum(dim=1 - axis)
        at = (first[0, axis] + torch.arange(len(mass)) + 0.5) * 4.0
        mean = (mass * at).sum() / mass.sum()
        spread = ((mass * (at - mean) ** 2).sum() / mass.sum()).sqrt()
        assert float(mean) == pytest.approx(centre, abs=0.1)
        assert float(spread) == pytest.approx(side / 4, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_given_boxes_may_be_points_or_outside(method):
    model = zoo_model(RETINANET, opts=SLIM)
    images = [{"image": x["image"]} for x in two_images()]
    boxes = [Boxes(torch.tensor([[5.0, 6, 6, 7], [-40, -30, -10, -5]])), Boxes(torch.zeros(0, 4))]
    classes = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
    first, second = explain_boxes(model, images, boxes, classes, TARGETS, method=method)
    assert len(second["instances"].odam_maps) == 0
    maps = first["instances"].odam_maps
    assert maps.values.isfinite().all()
    heat = maps.dense(*images[0]["image"].shape[-2:])
    assert (heat.amax(dim=(2, 3)) > 0).all()


def test_no_pixel_is_looked_at():
    """Where the same boxes are decided, the maps are the same: of images of one colour each."""
    model = KnownDETR().eval()
    maps = []
    for grey in (10, 200):
        model.bbox_embed.weight.data.zero_()  # boxes by the bias alone
        image = torch.full((3, 48, 80), grey, dtype=torch.uint8)
        found = explain(model, [{"image": image}], DETR_TARGETS, method="side_middle")
        maps.append(found[0]["instances"].odam_maps)
    assert torch.equal(maps[0].values, maps[1].values)
    assert peaks(maps[0], (48, 80))[0] == pytest.approx(
        places(found[0]["instances"].pred_boxes.tensor, "side_middle")[0, :5].numpy(), abs=3
    )


@pytest.mark.parametrize("setting", [{"layer": "res4"}, {"smoothing_sigma": 2.0}])
def test_settings_of_layers_are_refused(setting):
    with pytest.raises(InputError, match=f"'box_blob' reads no layer; leave {next(iter(setting))}"):
        explain(zoo_model(RETINANET, opts=SLIM), two_images(), method="box_blob", **setting)

"""What a detector says of changed images, at the same places and in its final detections."""

import pytest
import torch
from known_detr import KnownDETR
from oracle import two_images
from training_cases import training_model

from odam_d2.core.errors import InputError
from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.rereading import rereading

TARGETS = ("class", "class:2", "left", "top", "right", "bottom")


def detector(case):
    few = ["TEST.DETECTIONS_PER_IMAGE", 4, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    return KnownDETR().eval() if case == "detr" else training_model(case, *few).eval()


def given(number=0):
    image = two_images()[number]["image"]
    return {"image": image, "height": 2 * image.shape[1], "width": 2 * image.shape[2]}


@pytest.mark.parametrize("case", ["fpn", "cascade", "retinanet", "fcos", "detr"])
def test_the_image_itself_has_no_effect(case):
    """Whatever the size of the output is; twice in a batch with another one."""
    model, image = detector(case), given()
    before = [module.training for module in model.modules()]
    with rereading(model, image, TARGETS) as again:
        output = model([image])[0]["instances"]
        boxes = output.pred_boxes.tensor * image["image"].shape[1] / output.image_size[0]
        rows = again.rows(boxes, output.pred_classes)
        assert rows == list(range(len(output)))
        images = torch.stack([image["image"].float(), 0 * image["image"].float()] * 2)
        reading = again.read(images, [0, 0, 1, 1])
    assert reading.place.shape == reading.detection.shape == (4, len(TARGETS))
    same, black = reading.detection[::2], reading.detection[1::2]
    assert same.abs().max() < 1e-3
    assert black.abs().max() > 1e-3
    assert not reading.lost[::2].any()
    assert not reading.others[::2].any()
    if case == "detr":  # nothing is known of its head
        assert reading.place.isnan().all()
    else:
        assert reading.place[::2].abs().max() < 1e-3
        assert reading.place[1::2].abs().max() > 1e-3
    assert before == [module.training for module in model.modules()]


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_effects_in_place_are_differences_of_decisions(case):
    """Of the other image, cut to this one's size, by the head on its own features."""
    model, image = detector(case), given()
    changed = image["image"].flip(2).float()
    with torch.no_grad(), rereading(model, image, TARGETS) as again:
        reading = again.read(changed[None], [2])
        adapter, trace = build_adapter(model), again.trace
        features = adapter.features(model.preprocess_image([{"image": changed}]).tensor)
        before, after = adapter.decide(trace), adapter.evaluate(features, trace)
    label = int(before.classes[2])
    drops = before.probabilities[2] - after.probabilities[2]
    expected = [drops[label], drops[2]]
    signs = torch.tensor([-1.0, -1, 1, 1])
    expected += list(signs * (before.boxes[2] - after.boxes[2]))
    torch.testing.assert_close(
        reading.place[0].float(), torch.stack(expected), rtol=1e-3, atol=1e-4
    )


def test_a_detection_that_is_not_there_is_refused():
    model, image = detector("retinanet"), given()
    boxes, labels = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0])
    words = "not found again when the detector runs once more"
    with rereading(model, image, TARGETS) as again, pytest.raises(InputError, match=words):
        again.rows(boxes, labels)

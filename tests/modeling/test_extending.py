"""One of each kind is added from outside, by the code of CONTRIBUTING."""

import re
from pathlib import Path

import pytest
import torch
from oracle import RETINANET, SLIM, detections_error, two_images, zoo_model
from training_cases import labelled_images, losses_of, training_model

from odam_d2 import explain
from odam_d2.core.errors import InputError
from odam_d2.modeling import Method, OutputsAdapter, Target
from odam_d2.modeling.adapters import DenseAdapter, HeadAdapter

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def names():
    """What the blocks of the section define; registering twice is an error."""
    section = TEXT[TEXT.index("## Add to it") : TEXT.index("## Add a metric")]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 6
    assert all(block.count("\n") <= 30 for block in blocks)
    found: dict = {"__name__": "outside"}
    for block in blocks:
        exec(block, found)
    return found


@pytest.fixture(scope="module")
def retinanet():
    return zoo_model(RETINANET, opts=[*SLIM, "TEST.DETECTIONS_PER_IMAGE", 4])


def test_a_target(names, retinanet):
    """x2 - x1 grows as the right side does, and as the left one does."""
    found = explain(retinanet, two_images(), ["width", "left", "right", "combined"])
    for result in found:
        maps = result["instances"].odam_maps
        assert maps.targets == ("width", "left", "right", "combined")
        # Maps before their ReLU add up; where both are positive nothing was cut off.
        width, left, right, _ = maps.values.unbind(dim=1)
        both = (left > 0) & (right > 0)
        torch.testing.assert_close(width[both], (left + right)[both], rtol=1e-3, atol=1e-6)


def test_a_method_by_a_rule(names, retinanet):
    """Of sums of g A over channels none is greater than |g|_1 |A|."""
    found = explain(retinanet, two_images(), method="gradient_size")[0]["instances"].odam_maps
    odam = explain(retinanet, two_images())[0]["instances"].odam_maps
    most = retinanet.backbone(retinanet.preprocess_image(two_images()[:1]).tensor)
    most = max(float(level.norm(dim=1).max()) for level in most.values())
    assert (odam.dense(64, 96) <= found.dense(64, 96) * most * 1.001).all()
    assert found.values.amax(dim=(2, 3)).gt(0).any()
    with pytest.raises(InputError, match=r"one of odam, box_blob, .*gradient_size"):
        explain(retinanet, two_images(), method="gradient_sze")


def test_a_method_from_scratch(names, retinanet):
    found = explain(retinanet, two_images(), ["class", "left"], method=names["BoxMethod"]())
    for result, given in zip(found, two_images(), strict=True):
        height, width = given["image"].shape[-2:]
        instances = result["instances"]
        boxes = instances.pred_boxes.clone()
        boxes.scale(width / instances.image_size[1], height / instances.image_size[0])
        maps = instances.odam_maps
        assert len(maps) == 4
        for box, values in zip(boxes.tensor.tolist(), maps.values[:, 0], strict=True):
            for row in range(height // 16):
                for column in range(width // 16):
                    y, x = 16 * row + 8, 16 * column + 8
                    inside = box[0] < x < box[2] and box[1] < y < box[3]
                    assert values[row, column] == inside


def test_a_family(names, retinanet):
    model = zoo_model(RETINANET, opts=[*SLIM, "MODEL.META_ARCHITECTURE", "TemperedRetinaNet"])
    for image in two_images():
        assert detections_error(model, image, limit=3) <= 1e-5


def test_a_loss(names):
    model = training_model("retinanet", loss="SmallMaps")
    losses, _ = losses_of(model, labelled_images())
    assert losses["loss_odam"] > 0
    losses["loss_odam"].backward()
    assert model.head.cls_subnet[0].weight.grad.abs().sum() > 0


def test_an_nms(names):
    model = zoo_model(RETINANET, opts=[*SLIM, "MODEL.META_ARCHITECTURE", "OdamRetinaNet",
                                       "MODEL.ODAM.NMS.NAME", "best_only"])  # fmt: skip
    plain = zoo_model(RETINANET, opts=SLIM)
    for ours, theirs in zip(model(two_images()), plain(two_images()), strict=True):
        assert len(ours["instances"]) == 1
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores[:1])


@pytest.mark.parametrize(
    ("base", "needed"),
    [
        (Target, "of"),
        (Method, "__call__"),
        (OutputsAdapter, "num_classes outputs"),
        (HeadAdapter, "num_classes feature_names strides recorded_view trace_given evaluate"),
        (DenseAdapter, "output_sizes scores"),
    ],
)
def test_what_is_left_out_is_told_at_once(base, needed):
    """By Python, when the object is made, and not by a map of nothing."""
    names = needed.split()
    for name in names:
        defined = {other: None for other in names if other != name}
        with pytest.raises(TypeError, match=f"abstract method '?{name}'?$"):
            type("Own", (base,), defined)()

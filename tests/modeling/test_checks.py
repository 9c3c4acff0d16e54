"""How much may change before a detection is refused: rounding may, and nothing more."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from oracle import FASTER_RCNN, SLIM, two_images, zoo_model

from odam_d2 import UnsupportedModelError, explain
from odam_d2.modeling.adapters.decision_checks import check_decisions, check_outputs, rounding
from odam_d2.modeling.adapters.gradient_checks import check_levels

SIZE = (100, 200)


def detection(score, box=(10, 20, 160, 90)):
    found = Instances(SIZE, pred_boxes=Boxes(torch.tensor([box], dtype=score.dtype)))
    found.scores, found.pred_classes = score[None], torch.tensor([0])
    return found


# Units of the last place: 2^10 of those of 24 bits, or 2^4 of those of 11 bits and 8 bits.
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, 2**10 / 2**23), (torch.float16, 2**4 / 2**10), (torch.bfloat16, 2**4 / 2**7)],
)
def test_scores_and_boxes_may_differ_by_rounding(dtype, most):
    score = torch.tensor(0.5, dtype=dtype)
    found, tolerance = detection(score), rounding(score)
    box = found.pred_boxes.tensor.double()
    for share, refused in ((0.9, False), (1.3, True)):
        more = 1 + share * most
        for scores, boxes in (
            (score.double()[None] * more, box),
            (score.double()[None], box * more),
        ):
            arguments = ("Model", "Adapter", found, scores, boxes, tolerance)
            if refused:
                with pytest.raises(UnsupportedModelError, match="do not come from the head"):
                    check_decisions(*arguments)
            else:
                check_decisions(*arguments)


def test_boxes_may_be_scaled_to_the_output_and_not_moved():
    """By 64 units of the last place of the longest side, 200 pixels."""
    before = detection(torch.tensor(0.5))
    for share, refused in ((0.9, False), (1.3, True)):
        after = detection(torch.tensor(0.5), (10 + share * 64 * 2**-23 * 200, 20, 160, 90))
        if refused:
            with pytest.raises(UnsupportedModelError, match="what it returns is not what leaves"):
                check_outputs("Model", [{"instances": after}], [before])
        else:
            check_outputs("Model", [{"instances": after}], [before])


def test_what_reads_another_level_is_seen_though_it_cancels():
    """As probabilities, whose sum is one, do."""
    other = torch.tensor([1.0, 2.0], requires_grad=True)
    own = torch.tensor([3.0, 5.0], requires_grad=True)
    check_levels("Model", torch.stack([own + other.detach(), own]), [other])
    with pytest.raises(UnsupportedModelError, match="mixes the levels"):
        check_levels("Model", torch.stack([own + other, own - other]), [other])


@pytest.mark.parametrize("settings", [{"layer": "res4"}, {"method": "input_gradient"}])
def test_a_backbone_may_round_otherwise_with_a_graph(settings):
    """
    For such maps it runs once more. Scores of this model change by an eighth of what its features
    do: by 2^-11, more than the 2^-13 of heads, and less than the 2^-9 of backbones.
    """
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    change = 2.0**-8

    class Rounding(type(model.backbone)):
        def forward(self, x):
            factor = 1 + change * torch.is_grad_enabled()
            return {name: level * factor for name, level in super().forward(x).items()}

    model.backbone.__class__ = Rounding
    (found,) = explain(model, two_images()[:1], **settings)
    assert found["instances"].odam_maps.values.any()
    change = 2.0**-4
    with pytest.raises(UnsupportedModelError, match="do not come from the head"):
        explain(model, two_images()[:1], **settings)

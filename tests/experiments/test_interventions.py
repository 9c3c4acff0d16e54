"""Pictures of interventions, on the detector whose effects are derived by hand."""

import numpy as np
import pytest
import torch
from causal_detector import BOX, HEIGHT, WIDTH, causal_detector, part_masks, white_picture
from tool_modules import load_tool

from experiments.interventions import _of_object, draw
from odam_d2.errors import run_tool


def test_what_is_removed_and_what_is_said_then():
    """
    Inpainted, a region is black: the logit falls from 3 to -1, each side moves 8 pixels. Nothing
    is at the middle of the box, 16 pixels from the nearest region.
    """
    model = causal_detector()
    image = torch.as_tensor(white_picture()).permute(2, 0, 1)
    given = {"image": image, "height": HEIGHT, "width": WIDTH}
    with torch.no_grad():
        (output,) = model([given])
    boxes = output["instances"].pred_boxes.tensor
    (detection,) = (boxes[:, 0] == BOX[0]).nonzero().flatten().tolist()
    annotation = {"part_segmentations": part_masks()}
    picture, found = _of_object(model, given, annotation, detection, ["box_centre"])
    assert list(found) == ["the true part", "box_centre"]
    true, centre = found.values()
    assert [one.said for one in true] == ["score 0.95 → 0.27", "top side +8.0 px"]
    assert [one.said for one in centre] == ["score 0.95 → 0.95", "top side +0.0 px"]
    assert np.array_equal(picture, white_picture())
    assert not true[0].removed[24:32, 60:68].any()
    assert true[0].mask.sum() == 12 * 12  # the part of 8 x 8, dilated by 2
    rows, columns = centre[0].mask.nonzero()
    assert (rows.mean(), columns.mean()) == pytest.approx((44, 76), abs=2)  # cells of 2 pixels
    drawn = draw([(picture, found), (picture, found)], {"box_centre": "the middle"})
    one = draw([(picture, found)], {})
    assert drawn.height == one.height
    assert drawn.width - one.width == 4 * (116 + 5)  # a map and what was removed, of two decisions


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "lime"], "unknown method 'lime'; there are odam"),
        (["--objects", "0"], "--objects must be 1 or more"),
        (["--output", "a.gif"], "'a.gif' must end with one of .webp, .jpg, .png"),
    ],
)
def test_errors_are_one_sentence(arguments, sentence, capsys, tmp_path):
    tool = load_tool("show_interventions")
    base = ["--config-file", "none.yaml", "--output", str(tmp_path / "a.png")]
    assert run_tool(lambda: tool.run([*base, *arguments])) == 1
    assert sentence in capsys.readouterr().err

"""tools/demo.py --suppressed: why did this box vanish?"""

import json

import cv2
import pytest
from demo_tool import files_in, links, run, save_image

pytest_plugins = ["demo_tool"]


@pytest.mark.parametrize("name", ["", "odam_nms", "soft_nms"])
def test_what_was_suppressed_is_drawn_and_listed(name, tmp_path, capsys, slim):
    image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
    # Untrained scores are all alike: everything above nearly nothing, and NMS has much to do.
    opts = ["MODEL.ODAM.NMS.NAME", name, "MODEL.ODAM.TARGETS", "['class']"]
    status, _, err = run(
        capsys, "--config-file", slim, "--input", image, "--output", out, "--suppressed",
        "--confidence-threshold", "0.01", "--opts", *opts,
    )  # fmt: skip
    assert status == 0, err
    assert {"street/suppressed.png", "street/suppressed.json"} <= set(files_in(out))
    assert "street/suppressed.png" in links(out / "index.html")
    rows = json.loads((out / "street" / "suppressed.json").read_text())["candidates"]
    listing = json.loads((out / "street" / "maps.json").read_text())
    assert sum(row["kept"] for row in rows) >= listing["detections"] > 0
    lost = [row for row in rows if row["suppressed_by"] is not None]
    assert all(rows[row["suppressed_by"]]["class"] == row["class"] for row in lost)
    assert all(0 <= row["correlation"] <= 1 and 0 <= row["iou"] <= 1 for row in lost)
    if name != "soft_nms":
        assert len(lost) > 3
    assert cv2.imread(str(out / "street" / "suppressed.png")).shape[1] > 600


def test_without_the_flag_there_is_none(tmp_path, capsys, slim):
    image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
    run(capsys, "--config-file", slim, "--input", image, "--output", out,
        "--confidence-threshold", "0.01", "--targets", "class")  # fmt: skip
    assert not any("suppressed" in name for name in files_in(out))

"""Configs of which nothing can be built: one sentence, in every way to a model."""

from pathlib import Path

import pytest

from odam_d2.engine import Trainer, setup_cfg
from odam_d2.engine.detector import build_detector
from odam_d2.errors import UserError, run_tool

CONFIG = Path(__file__).parents[2] / "configs" / "CrowdShapes" / "faster_rcnn_R_50_FPN_slim.yaml"


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.META_ARCHITECTURE", "NoSuchThing"], "NoSuchThing"),
        (["MODEL.BACKBONE.NAME", "nothing"], "nothing"),
        (["MODEL.RESNETS.DEPTH", "7"], "KeyError: 7"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p9']"], "p9"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "-5"], "negative dimension"),
        (["MODEL.PIXEL_MEAN", "[]"], "shapes"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[]"], "cannot be empty"),
    ],
)
def test_what_cannot_be_built(opts, words):
    cfg = setup_cfg(str(CONFIG), [*opts, "MODEL.DEVICE", "cpu"])
    for build in (Trainer.build_model, build_detector):
        with pytest.raises(UserError, match="the model cannot be built from the config") as error:
            build(cfg)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_no_memory_is_one_sentence(capsys):
    def greedy():
        raise MemoryError("for an array of 9 TiB")

    assert run_tool(greedy) == 1
    assert capsys.readouterr().err == "error: there is not enough memory for an array of 9 TiB\n"

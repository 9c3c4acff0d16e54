"""Small models that many tests share."""

import os
from pathlib import Path

# Before odam_d2 is imported: generated data never goes where real data is read from.
os.environ.setdefault("ODAM_DATASETS", str(Path(__file__).parents[1] / "output" / "datasets"))

import pytest
import torch
from oracle import zoo_model

# A tenth of the zoo's width: the same modules, quick enough for a suite.
SLIM = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TEST", 40,
    "TEST.DETECTIONS_PER_IMAGE", 12,
]  # fmt: skip

FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker():
    """Tests are many small operations: threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=[FASTER_RCNN, RETINANET], ids=["faster_rcnn", "retinanet"])
def slim_model(request):
    """A plain Detectron2 model of each family; tests must leave it as they found it."""
    return zoo_model(request.param, opts=SLIM)


@pytest.fixture
def faster_rcnn():
    return zoo_model(FASTER_RCNN, opts=SLIM)


@pytest.fixture
def retinanet():
    return zoo_model(RETINANET, opts=SLIM)

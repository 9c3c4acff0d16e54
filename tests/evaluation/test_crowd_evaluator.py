"""CrowdEvaluator: from Detectron2's outputs to figures, in one process and in two."""

import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from two_processes import process_group

from odam_d2.core.errors import InputError
from odam_d2.evaluation import CrowdEvaluator
from odam_d2.evaluation.crowd import CrowdImage, crowd_metrics

NAME = "crowd_evaluator_test"


def annotation(box, category=0, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, **more}


ENTRIES = [
    # Two that overlap by 2/3, one alone of the other category, and a region. Only some say that
    # they are no crowd.
    {"image_id": 7, "annotations": [
        annotation([0, 0, 10, 20]), annotation([2, 0, 12, 20], iscrowd=0),
        annotation([60, 0, 80, 20], 1),
        annotation([100, 0, 200, 50], 0, iscrowd=1)]},
    {"image_id": 3, "annotations": [annotation([0, 0, 10, 20], 1)]},
    {"image_id": 9, "annotations": []},
]  # fmt: skip
FOUND = {
    7: ([[0, 0, 10, 20], [110, 5, 150, 30], [60, 0, 80, 20], [2, 0, 12, 20]],
        [0.9, 0.95, 0.8, 0.4], [0, 0, 1, 0]),
    3: ([[50, 50, 60, 60]], [0.7], [1]),
    9: ([], [], []),
}  # fmt: skip
"""By hand. Category 0: 2 objects, detections 0.9 and 0.4 both right, the one in the region not
counted: AP 1/2 (the trapezoids begin at the first point), recall 1, MR 0 (nothing missed at the
last point). Category 1: 2 objects, 0.8 right, 0.7 wrong: recall 1/2, AP 0."""


@pytest.fixture
def dataset():
    DatasetCatalog.register(NAME, lambda: ENTRIES)
    MetadataCatalog.get(NAME).thing_classes = ["robot", "tree"]
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def output(image_id, size=(100, 200)):
    boxes, scores, classes = FOUND[image_id]
    found = Instances(size, pred_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)))
    found.scores = torch.tensor(scores).float()
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return {"instances": found}


def run(image_ids, **options):
    evaluator = CrowdEvaluator(NAME, **options)
    evaluator.reset()
    for image_id in image_ids:
        evaluator.process([{"image_id": image_id}], [output(image_id)])
    return evaluator.evaluate()


def test_figures_by_hand(dataset, tmp_path):
    results = run([7, 3, 9], output_dir=str(tmp_path))["crowd"]
    assert results["AP-robot"] == pytest.approx(50)
    assert results["AP-tree"] == pytest.approx(0)
    assert (results["MR-robot"], results["MR-tree"]) == pytest.approx((0, 50))
    assert (results["JI-robot"], results["JI-tree"]) == pytest.approx((100, 50), abs=1e-3)
    assert results["AP"] == pytest.approx(25)
    assert results["Recall"] == pytest.approx(75)
    # Overlapped are the two robots. In order of scores 0.9 right, 0.8 right, 0.7 wrong, 0.4 right:
    # precision 1, 1, 2/3, 3/4, so 80 % is last reached after two: 2 of 4 objects, 1 of 2.
    assert results["Recall-overlapped"] == pytest.approx(100)
    assert results["Recall@P80"] == pytest.approx(50)
    assert results["Recall-overlapped@P80"] == pytest.approx(50)
    # MR: tree's 0.7 is a third of a false positive per image; at 0.3162 and below the curve ends
    # there with 1/2 missed. Robots: no false positive, so the end of the curve, nothing missed.
    assert results["MR"] == pytest.approx(25)
    # JI at 0: robots 2/2 in image 7; trees 1/1 and 0/2. Images with neither are left out.
    assert json.loads((tmp_path / "crowd_results.json").read_text())["JI_by_threshold"][0] == (
        pytest.approx(75, abs=1e-3)
    )
    assert results["JI"] == pytest.approx(75, abs=1e-3)


def test_precision_and_overlap_are_arguments(dataset):
    results = run([7, 3, 9], precision=0.7, overlap=0.7)["crowd"]
    assert results["Recall@P70"] == pytest.approx(75)
    assert math.isnan(results["Recall-overlapped@P70"])  # no two robots overlap by 0.7


def test_order_of_processing_does_not_matter(dataset):
    assert run([9, 3, 7]) == run([7, 3, 9])


def test_a_category_without_objects_is_left_out():
    box = np.array([[0.0, 0, 10, 10]])
    image = CrowdImage(
        (20, 30), box, np.array([4]), np.array([False]), np.vstack([box, box]),
        np.array([0.9, 0.8]), np.array([4, 2]),
    )  # fmt: skip
    results = crowd_metrics([image])
    assert results["Recall"] == 100
    assert not any(name.startswith("AP-") for name in results)


@pytest.mark.parametrize(("offset", "overlapped"), [(6, 0), (5, 2)])
def test_objects_overlap_from_an_iou_of_three_tenths(offset, overlapped):
    """By default: boxes of 10 columns that share 4 have an IoU of 4/16, those that share 5, 1/3."""
    boxes = np.array([[0.0, 0, 10, 10], [offset, 0, 10 + offset, 10]])
    zeros = np.zeros(2, dtype=np.int64)
    results = crowd_metrics(
        [CrowdImage((20, 30), boxes, zeros, zeros > 0, boxes, np.array([0.9, 0.8]), zeros)]
    )
    assert (results["objects"], results["overlapped_objects"]) == (2, overlapped)
    assert results["Recall@P80"] == 100


def _process(rank, folder):
    with process_group(rank, folder):
        DatasetCatalog.register(NAME, lambda: ENTRIES)
        # Two processes may see the same image: the sampler fills up the last batch.
        results = run([[7, 9], [3, 7]][rank])
        torch.save(results, f"{folder}/{rank}.pth")


@pytest.mark.slow
def test_two_processes_give_the_same(dataset, tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    results = torch.load(tmp_path / "0.pth", weights_only=False)
    alone = run([7, 3, 9])["crowd"]
    shared = {name: value for name, value in alone.items() if not name[2:].startswith("-")}
    assert {name: results["crowd"][name] for name in shared} == shared
    assert torch.load(tmp_path / "1.pth", weights_only=False) == {}


def test_nothing_processed(dataset):
    assert run([]) == {}


def test_images_of_another_data_set_are_named(dataset):
    evaluator = CrowdEvaluator(NAME)
    evaluator.reset()
    with pytest.raises(InputError, match="image 42 is not in the data set"):
        evaluator.process([{"image_id": 42}], [output(7)])


def test_scores_that_are_not_finite_are_named(dataset):
    evaluator, bad = CrowdEvaluator(NAME), output(7)
    bad["instances"].scores[0] = float("nan")
    with pytest.raises(InputError, match="image 7 has scores or boxes"):
        evaluator.process([{"image_id": 7}], [bad])


def test_a_data_set_without_objects_is_refused():
    DatasetCatalog.register("crowd_of_nobody", lambda: [{"image_id": 0, "annotations": []}])
    try:
        with pytest.raises(InputError, match="'crowd_of_nobody' has no object to find"):
            CrowdEvaluator("crowd_of_nobody")
    finally:
        DatasetCatalog.remove("crowd_of_nobody")


def test_images_without_any_of_the_objects_are_refused(dataset):
    with pytest.raises(InputError, match="none of the evaluated images"):
        run([9])

"""ExplanationEvaluator: which detections count, what they get, processes, resuming, clear words."""

import gc
import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
import torch.multiprocessing as mp
from blob_maps import blob_detections
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from two_processes import process_group

from odam_d2 import OdamMaps
from odam_d2.core.errors import InputError
from odam_d2.evaluation import ExplanationEvaluator, ExplanationProtocol
from odam_d2.evaluation.faithfulness import Faithfulness, FaithfulnessSettings

HEIGHT, WIDTH = 40, 56
LEFT, RIGHT = [4.0, 8, 24, 28], [28.0, 8, 52, 36]
ALL = ExplanationProtocol(faithfulness=FaithfulnessSettings(per_image=0))


def rle(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return mask_utils.encode(mask)


def entries(with_masks=True, count=3):
    """Pictures with two objects; each one's mask is the upper half of its box; and a crowd."""
    objects = [(LEFT, 0, rle(4, 8, 24, 18)), (RIGHT, 1, rle(28, 8, 52, 22))]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
        | ({"segmentation": mask} if with_masks else {})
        for box, label, mask in objects
    ]
    crowd = annotations[0] | {"iscrowd": 1, "category_id": 1}
    return [
        {"image_id": f"image {k}", "height": HEIGHT, "width": WIDTH,
         "annotations": [crowd, *annotations]}
        for k in range(count)
    ]  # fmt: skip


def register(name, content):
    DatasetCatalog.register(name, lambda: content)
    MetadataCatalog.get(name).thing_classes = ["a", "b"]


@pytest.fixture(params=[True, False], ids=["masks", "boxes"])
def dataset(request):
    name = "toy_explained"
    register(name, entries(request.param))
    yield name, request.param
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def with_masks():
    name = "toy_explained_masks"
    register(name, entries())
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def flat_in(*regions):
    """Maps of stride 1 that are 1 in one rectangle of (x1, y1, x2, y2) pixels each."""
    values = torch.zeros(len(regions), 1, HEIGHT, WIDTH)
    for number, (x1, y1, x2, y2) in enumerate(regions):
        values[number, 0, y1:y2, x1:x2] = 1
    pair = torch.ones(len(regions), 2, dtype=torch.int64)
    size = pair * torch.tensor([HEIGHT, WIDTH])
    return OdamMaps(
        ("class",),
        values,
        origins=0 * pair,
        strides=torch.ones(len(regions)),
        grid_sizes=size,
        image_sizes=size,
        levels=0 * pair[:, 0],
    )


def output(boxes, scores, classes, maps):
    found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.tensor(boxes)))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    found.odam_maps = maps
    return [{"instances": found}]


def run(evaluator, outputs):
    evaluator.reset()
    for number, of_image in enumerate(outputs):
        evaluator.process([{"image_id": f"image {number}"}], of_image)
    return evaluator.evaluate()


def test_figures_by_hand(dataset):
    name, masks = dataset
    # The first map lies on the upper left quarter of its box: 10 x 10 of a mask of 20 x 10. The
    # second one is as wide as both boxes, rows 8 to 18: 20 of 48 columns of the energy are on the
    # left object, 24 on the right one, 4 between.
    maps = flat_in((4, 8, 14, 18), (4, 8, 52, 18))
    found = run(
        ExplanationEvaluator(name, protocol=ALL), [output([LEFT, RIGHT], [0.9, 0.8], [0, 1], maps)]
    )
    assert list(found) == ["explanation-class"]
    result = found["explanation-class"]
    assert (result["num_detections"], result["num_images"]) == (2, 1)
    assert result["pointing_box"] == pytest.approx(100 * (1 + 24 / 48) / 2)
    assert result["energy_box"] == pytest.approx(100 * (1 + 24 / 48) / 2)
    assert result["odi_box"] == pytest.approx(100 * (0 + 20 / 44) / 2)
    if masks:  # all rows of the maps are within the masks
        assert result["energy_mask"] == pytest.approx(100 * (1 + 24 / 48) / 2)
        assert result["odi_mask"] == pytest.approx(100 * (0 + 20 / 44) / 2)
        # 100 of 200 pixels; 24 * 10 of 48 * 10 + 24 * 14 - 24 * 10.
        assert result["mask_iou"] == pytest.approx(100 * (0.5 + 240 / 576) / 2)
    else:
        assert not any("mask" in metric for metric in result)
    assert "deletion" not in result


def test_of_signed_maps_the_evidence_for_is_evaluated(with_masks):
    """Evidence against on the other object, three times as large, is no evidence of this one."""
    maps = flat_in((4, 8, 14, 18), (28, 8, 52, 18))
    plain = output([LEFT, RIGHT], [0.9, 0.8], [0, 1], maps)
    signed = maps._replace(values=maps.values - 3 * maps.values.flip(0), signed=True)
    figures = [
        run(ExplanationEvaluator(with_masks, protocol=ALL), [of_maps])
        for of_maps in (plain, output([LEFT, RIGHT], [0.9, 0.8], [0, 1], signed))
    ]
    assert figures[0] == figures[1]


def test_masks_that_are_not_there_are_named(caplog):
    register("toy_without_masks", entries(with_masks=False))
    try:
        ExplanationEvaluator("toy_without_masks", protocol=ALL).reset()
    finally:
        DatasetCatalog.remove("toy_without_masks")
    assert "pointing_mask, energy_mask, odi_mask and mask_iou are left out" in caplog.text


def test_which_detections_count(with_masks):
    box = torch.tensor(LEFT)
    off = (box + torch.tensor([0.0, 0, 4, 0])).tolist()  # IoU 20 / 24
    boxes = [LEFT, LEFT, LEFT, off, RIGHT]
    scores, classes = [0.5, 0.95, 0.4, 0.99, 0.09], [0, 1, 0, 0, 1]
    maps = flat_in((4, 8, 24, 18), *[(0, 0, 2, 2)] * 4)
    result = run(
        ExplanationEvaluator(with_masks, protocol=ALL), [output(boxes, scores, classes, maps)]
    )["explanation-class"]
    # Wrong class, worse score, too far off, too low a score: only the first one is left.
    assert result["num_detections"] == 1
    assert result["energy_mask"] == 100
    loose = ExplanationProtocol(0.05, 0.8, faithfulness=FaithfulnessSettings(per_image=0))
    result = run(
        ExplanationEvaluator(with_masks, protocol=loose), [output(boxes, scores, classes, maps)]
    )["explanation-class"]
    # Now the one far off has the best score for the left object, and the right one is found.
    assert result["num_detections"] == 2
    assert result["energy_mask"] == 0


def blobs(number):
    boxes = torch.tensor([LEFT, RIGHT]) + 0.1 * number
    detections = blob_detections((HEIGHT, WIDTH), boxes.tolist(), classes=[0, 1])
    return [{"instances": detections}]


def test_every_target_has_a_task(with_masks):
    found = run(ExplanationEvaluator(with_masks, protocol=ALL), [blobs(0), blobs(1)])
    tasks = ["class", "left", "top", "right", "bottom"]
    assert list(found) == [f"explanation-{target}" for target in tasks]
    # The class map peaks in the middle of the box, the maps of sides at its border.
    assert found["explanation-class"]["energy_box"] > found["explanation-left"]["energy_box"]


def _process(rank, folder):
    with process_group(rank, folder):
        register("toy_two", entries())
        evaluator = ExplanationEvaluator("toy_two", f"{folder}/two", ALL)
        evaluator.reset()
        for number in ((0, 2), (1,))[rank]:
            evaluator.process([{"image_id": f"image {number}"}], blobs(number))
        result = evaluator.evaluate()
        assert bool(result) == (rank == 0)
        if rank == 0:
            (folder / "two.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_two_processes_give_the_same(with_masks, tmp_path):
    mp.spawn(_process, (tmp_path,), nprocs=2)
    alone = run(ExplanationEvaluator(with_masks, protocol=ALL), [blobs(k) for k in range(3)])
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(json.dumps(alone))


def test_files_and_resuming(with_masks, tmp_path):
    whole = run(
        ExplanationEvaluator(with_masks, str(tmp_path / "a"), ALL), [blobs(k) for k in range(3)]
    )
    content = json.loads((tmp_path / "a/results.json").read_text())
    assert content["results"] == json.loads(json.dumps(whole))
    assert content["standard_errors"]["explanation-class"]["energy_mask"] > 0
    lines = (tmp_path / "a/detections.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2 * 5
    assert (tmp_path / "a/explanation.png").stat().st_size > 5000

    first = ExplanationEvaluator(with_masks, str(tmp_path / "b"), ALL)
    first.reset()
    first.process([{"image_id": "image 1"}], blobs(1))  # and then the machine goes down
    with (tmp_path / "b/rows_0.jsonl").open("a") as file:
        file.write('["image 2", {"rows": [{"tar')
    again = ExplanationEvaluator(with_masks, str(tmp_path / "b"), ALL, resume=True)
    assert again.done == {"image 1"}
    again.reset()
    for number in (0, 2):
        again.process([{"image_id": f"image {number}"}], blobs(number))
    assert again.evaluate() == whole
    third = ExplanationEvaluator(with_masks, str(tmp_path / "b"), ALL, resume=True)
    assert third.done == {"image 0", "image 1", "image 2"}
    other = ExplanationProtocol(iou_thresh=0.7, faithfulness=ALL.faithfulness)
    assert not ExplanationEvaluator(with_masks, str(tmp_path / "b"), other, resume=True).done
    assert not ExplanationEvaluator(with_masks, str(tmp_path / "b"), ALL).done


def test_nothing_to_evaluate_is_said(with_masks, caplog):
    low = output([LEFT], [0.05], [0], flat_in((0, 0, 2, 2)))
    assert run(ExplanationEvaluator(with_masks, protocol=ALL), [low]) == {}
    assert "None of the 1 detections in 1 images of toy_explained_masks" in caplog.text
    none = output(np.zeros((0, 4), np.float32), [], [], flat_in())
    none[0]["instances"].pred_classes = torch.zeros(0, dtype=torch.int64)
    assert run(ExplanationEvaluator(with_masks, protocol=ALL), [none]) == {}


def test_what_does_not_fit_is_refused(with_masks):
    evaluator = ExplanationEvaluator(with_masks, protocol=ALL)
    evaluator.reset()
    good = output([LEFT], [0.5], [0], flat_in((0, 0, 2, 2)))
    with pytest.raises(InputError, match="image 'image 9' is not in the data set"):
        evaluator.process([{"image_id": "image 9"}], good)
    good[0]["instances"].pred_classes += 7
    with pytest.raises(InputError, match="found class 7, and 'toy_explained_masks' has 2 classes"):
        evaluator.process([{"image_id": "image 0"}], good)
    good[0]["instances"].remove("odam_maps")
    with pytest.raises(InputError, match=r"set MODEL\.ODAM\.TARGETS"):
        evaluator.process([{"image_id": "image 0"}], good)
    register("toy_empty", [x | {"annotations": []} for x in entries()])
    try:
        with pytest.raises(InputError, match="'toy_empty' has no object in any image"):
            ExplanationEvaluator("toy_empty")
    finally:
        DatasetCatalog.remove("toy_empty")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExplanationProtocol(iou_thresh=1.5), "IOU_THRESH is 1.5"),
        (lambda: ExplanationProtocol(score_thresh=-1), "SCORE_THRESH is -1"),
        (lambda: ExplanationProtocol(mask_thresholds=(1.0,)), r"MASK_THRESHOLDS is 1.0"),
        (lambda: FaithfulnessSettings(fill="black"), "FILL is 'black'; it must be one of random"),
        (lambda: FaithfulnessSettings(steps=0), "STEPS is 0"),
        (lambda: FaithfulnessSettings(per_image=-2), "PER_IMAGE is -2"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


class Brightness(torch.nn.Module):
    """
    Finds the left object as surely as columns 4 to 14 of it are white, the right one always, and
    in the place of the left one always another class. Asserts that it is in evaluation mode.

    Args:
        zoom: pixels of the image for one of the output.
    """

    def __init__(self, zoom=1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.zoom = zoom

    def forward(self, batch):
        assert not self.training
        outputs = []
        for given in batch:
            rows, columns = (slice(a * self.zoom, b * self.zoom) for a, b in ((8, 28), (4, 14)))
            score = (given["image"][0, rows, columns] == 255).float().mean()
            boxes = Boxes(torch.tensor([LEFT, RIGHT, LEFT]))
            found = Instances((HEIGHT, WIDTH), pred_boxes=boxes)
            found.scores = torch.stack([score, torch.tensor(1.0), torch.tensor(1.0)])
            found.pred_classes = torch.tensor([0, 0, 1])
            outputs.append({"instances": found})
        return outputs


def test_deletion_and_insertion_by_hand():
    """The map names the columns that count: half the box, so half of the steps do it."""
    model = Brightness().train()
    faithfulness = Faithfulness(model, FaithfulnessSettings(steps=4, batch_size=3))
    given = {"image": torch.full((3, HEIGHT, WIDTH), 255, dtype=torch.uint8)}
    detection = model.eval()([given])[0]["instances"][:1]
    model.train()
    heat = torch.zeros(HEIGHT, WIDTH)
    heat[8:28, 4:14] = 1
    deletion, insertion = faithfulness.curves(given, detection, heat, 400.0, seed=1)
    assert deletion.tolist() == pytest.approx([1, 0.5, 0, 0, 0])
    assert insertion.tolist() == pytest.approx([0, 0.5, 1, 1, 1])
    assert model.training
    wrong = heat.flip(1)  # the other object's place, in the same number of pixels
    deletion, insertion = faithfulness.curves(given, detection, wrong, 200.0, seed=1)
    assert deletion.tolist() == [1] * 5
    assert insertion.tolist() == [0] * 5


@pytest.mark.parametrize("zoom", [1, 2])
def test_curves_of_the_best_detections_only(with_masks, zoom):
    """The same whether the network's input has the size of the output or twice that."""
    protocol = ExplanationProtocol(faithfulness=FaithfulnessSettings(per_image=1, steps=4))
    evaluator = ExplanationEvaluator(with_masks, protocol=protocol, model=Brightness(zoom))
    evaluator.reset()
    maps = flat_in((4, 8, 14, 28), (28, 8, 40, 20))
    of_image = output([LEFT, RIGHT], [1.0, 0.8], [0, 1], maps)
    image = torch.full((3, zoom * HEIGHT, zoom * WIDTH), 255, dtype=torch.uint8)
    evaluator.process([{"image_id": "image 0", "image": image}], of_image)
    result = evaluator.evaluate()["explanation-class"]
    # Trapezoids of width 1/4 under 1, 0.5, 0, 0, 0 and 0, 0.5, 1, 1, 1.
    assert result["deletion"] == pytest.approx(100 * (0.75 + 0.25) / 4)
    assert result["insertion"] == pytest.approx(100 * (0.25 + 0.75 + 1 + 1) / 4)
    assert (result["num_detections"], result["num_curves"]) == (2, 1)


def test_nothing_but_figures_is_kept(with_masks):
    """However many images there are, no map, image or mask of theirs stays in memory."""
    evaluator = ExplanationEvaluator(with_masks, protocol=ALL)
    evaluator.reset()

    def tensors():
        gc.collect()
        return sum(isinstance(x, torch.Tensor | np.ndarray) for x in gc.get_objects())

    evaluator.process([{"image_id": "image 0"}], blobs(0))
    before = tensors()
    for number in (1, 2):
        evaluator.process([{"image_id": f"image {number}"}], blobs(number))
    assert tensors() == before

"""The experiment on crowds: its plan, its measures by hand, and the command from start to end."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.structures import BoxMode
from few_images import few_images
from tool_modules import load_tool, run_in_process

from experiments.crowds import tuning
from experiments.crowds.candidates import ImageCandidates, load, save
from experiments.crowds.experiment import Experiment
from experiments.crowds.measures import detection_figures, pair_figures
from experiments.crowds.plan import DATASETS, Run, plan
from experiments.crowds.report import summarize
from experiments.crowds.tuning import GRIDS, NMS_METHODS, tune
from odam_d2 import OdamMaps
from odam_d2.errors import UserError

ROOT = Path(__file__).parents[2]


def entry(*boxes):
    annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for b in boxes]
    return {"image_id": 5, "height": 100, "width": 200, "annotations": annotations}


def crowd():
    """
    Two objects that overlap by 1/2 (IoU), two candidates on each: those of an object overlap by
    more than 9/11 and correlate by 0.9, those of different ones correlate by 0.1.
    """
    objects = [[0.0, 0, 30, 50], [10, 0, 40, 50]]
    boxes = [objects[0], [1.0, 0, 31, 50], objects[1], [11.0, 0, 41, 50]]
    same = torch.block_diag(*[torch.full((2, 2), 0.8)] * 2)
    maps = maps_with((same + 0.1).fill_diagonal_(1))
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    classes = torch.zeros(4, dtype=torch.int64)
    return entry(*objects), ImageCandidates(5, torch.tensor(boxes), scores, classes, maps)


def maps_with(correlation):
    """Maps of one row of cells whose cosines are these: rows of the Cholesky factor."""
    count = len(correlation)
    values = torch.linalg.cholesky(correlation + 1e-6 * torch.eye(count))[:, None, None]
    pairs = torch.ones((count, 2), dtype=torch.int64)
    return OdamMaps(
        ["class"], values, origins=0 * pairs, strides=torch.full((count,), 16.0),
        grid_sizes=pairs * torch.tensor([1, count]), levels=pairs[:, 0],
        image_sizes=pairs * torch.tensor([16, 16 * count]),
    )  # fmt: skip


def test_pairs_by_hand():
    image, candidates = crowd()
    found = pair_figures([candidates], {5: image}, overlap=0.3)
    assert (found["same_pairs"], found["different_pairs"]) == (2, 4)
    assert found["same_correlation"] == pytest.approx(0.9)
    assert found["different_correlation"] == pytest.approx(0.1)
    assert found["pair_auc"] == found["pair_auc_iou"] == 1
    # Only pairs that overlap count: those of different objects do so by 1/2 at most, and a bit.
    assert pair_figures([candidates], {5: image}, overlap=0.6)["different_pairs"] == 0


def test_tuning_finds_what_keeps_both_objects():
    """NMS at 0.45 or below loses an object; a duplicate stays where thresholds are too high."""
    image, candidates = crowd()
    settings = tune("nms", [candidates], {5: image}, 0.3, 0.9)
    assert 0.5 <= settings["iou_thresh"] < 0.9
    settings = tune("odam_nms", [candidates], {5: image}, 0.3, 0.9)
    assert settings["sim_thresh_low"] > 0.1
    assert set(GRIDS) == set(NMS_METHODS)


def test_figures_of_a_perfect_result(crowded):
    dataset, image, candidates = crowded
    settings = {"iou_thresh": 0.6, "sim_thresh_high": 0.8, "sim_thresh_low": 0.5}
    found = detection_figures(
        dataset, [candidates], {image["image_id"]: image}, "odam_nms", settings, 0.3, 0.8
    )
    assert found["AP50"] == pytest.approx(100)
    assert found["Recall-overlapped@P80"] == pytest.approx(100)
    lost = {"iou_thresh": 0.3}
    found = detection_figures(
        dataset, [candidates], {image["image_id"]: image}, "nms", lost, 0.3, 0.8
    )
    assert found["Recall-overlapped@P80"] < 100


@pytest.fixture
def crowded():
    """The objects of a real image of the set, each detected twice, a pixel apart."""
    from detectron2.data import DatasetCatalog

    image = DatasetCatalog.get("crowdshapes_crowded_val")[0]
    boxes = torch.tensor([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                          for a in image["annotations"]]).float()  # fmt: skip
    classes = torch.tensor([a["category_id"] for a in image["annotations"]])
    count = len(boxes)
    number = torch.arange(count).repeat(2)
    scores = torch.cat([torch.linspace(0.99, 0.9, count), torch.linspace(0.5, 0.4, count)])
    candidates = ImageCandidates(
        image["image_id"], torch.cat([boxes, boxes + 1]), scores, classes.repeat(2),
        maps_with((number == number[:, None]) * (1 - 1e-4) + 1e-4 * torch.eye(2 * count)),
    )  # fmt: skip
    return "crowdshapes_crowded_val", image, candidates


def test_candidates_survive_a_file(tmp_path):
    _, candidates = crowd()
    save([candidates], tmp_path / "c.pth")
    (found,) = load(tmp_path / "c.pth")
    assert found.image_id == 5
    assert torch.equal(found.boxes, candidates.boxes)
    index = torch.arange(4)
    assert (found.correlation(index) - candidates.correlation(index)).abs().max() < 1e-2
    with pytest.raises(ValueError, match="all candidates of a class together"):
        found.correlation(index[:2])
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_plan():
    runs = list(plan(["crowdshapes", "bccd"], ["retinanet", "faster_rcnn"], [1, 2]))
    assert len(runs) == 16
    assert runs[-1] == Run("bccd", "faster_rcnn", "odam_train", 2)
    for run in runs:
        assert run.config(ROOT / "configs").is_file()
        cfg = Experiment(ROOT / "configs", Path("somewhere")).cfg(run)
        assert (cfg.MODEL.ODAM.LOSS.NAME != "") == (run.variant == "odam_train")
        assert (run.train,) == cfg.DATASETS.TRAIN
        assert (f"somewhere/{run.name}", run.seed) == (cfg.OUTPUT_DIR, cfg.SEED)
    with pytest.raises(UserError, match="no 'coco'; there are crowdshapes, bccd"):
        list(plan(["coco"], ["retinanet"], [1]))


tool = partial(run_in_process, load_tool("crowd_experiment"))


@pytest.fixture
def few_settings(monkeypatch):
    """A part of the settings of Odam-NMS, hundreds, is tried."""
    monkeypatch.setitem(GRIDS, "odam_nms", GRIDS["odam_nms"][::7])


@pytest.fixture
def few_crowds(monkeypatch):
    """The experiment on three pictures, to train on and to measure on."""
    with few_images("few_crowds", 3, source="crowdshapes_crowded_val"):
        few = dataclasses.replace(DATASETS["crowdshapes"], train="few_crowds", val="few_crowds")
        monkeypatch.setitem(DATASETS, "crowdshapes", few)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("few_crowds", "few_settings")
def test_the_command_trains_measures_and_goes_on(tmp_path, capsys):
    """Two tiny runs; then once more, where nothing is left to do; then a file is lost."""
    small = ["--tuning-images", 1, "--output", tmp_path, "--datasets", "crowdshapes"]
    small += ["--detectors", "retinanet", "--seeds", 1]
    opts = [*TINY, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 20]
    assert tool(*small, *opts) == 0
    folder = tmp_path / "crowdshapes" / "retinanet" / "odam_train" / "seed1"
    figures = json.loads((folder / "figures.json").read_text())
    assert set(NMS_METHODS) < set(figures)
    assert "| Odam-Train | Odam-NMS |" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "recall.png").stat().st_size > 5000
    assert "| plain | soft-NMS |" in capsys.readouterr().out
    before = (folder / "model_final.pth").stat().st_mtime_ns
    (folder / "figures.json").unlink()
    other = folder.parents[1] / "plain" / "seed1" / "figures.json"
    of_other = json.loads(other.read_text())
    other.write_text(json.dumps(of_other | {"pairs": {}}))  # not as it was written: made again
    assert tool(*small, *opts) == 0
    assert (folder / "model_final.pth").stat().st_mtime_ns == before
    assert json.loads((folder / "figures.json").read_text()) == figures
    assert json.loads(other.read_text()) == of_other


TINY = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "1",
        "DATASETS.TRAIN", "('few_crowds',)", "INPUT.MIN_SIZE_TRAIN", "(100,)",
        "INPUT.MIN_SIZE_TEST", "100", "DATALOADER.NUM_WORKERS", "0")  # fmt: skip
PLAIN = Run("crowdshapes", "retinanet", "plain", 1)


def experiment(folder, *opts, images=1):
    return Experiment(ROOT / "configs", folder, images, opts=(*TINY, *opts))


def weights_of(path):
    return torch.load(path, weights_only=True)["model"]["head.cls_score.bias"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_crowds")
def test_a_training_is_gone_on_with_only_where_it_is_whole_and_the_same(tmp_path, caplog):
    path = experiment(tmp_path).train(PLAIN)
    first, stamp = weights_of(path), path.stat().st_mtime_ns
    assert experiment(tmp_path, "TEST.DETECTIONS_PER_IMAGE", "7").train(PLAIN) == path
    assert path.stat().st_mtime_ns == stamp  # what does not matter to it
    path.write_bytes(path.read_bytes()[:-1000])
    experiment(tmp_path).train(PLAIN)
    assert torch.equal(weights_of(path), first)  # from the start, by the same seed
    with caplog.at_level("INFO"):
        experiment(tmp_path, "SOLVER.BASE_LR", "0.5").train(PLAIN)
    assert "is trained again: config.SOLVER.BASE_LR (" in caplog.text
    assert not torch.equal(weights_of(path), first)


@pytest.mark.slow
@pytest.mark.usefixtures("few_crowds")
def test_candidates_are_taken_again_only_where_they_are_whole_and_the_same(tmp_path):
    def scores(*opts, images=1):
        found = experiment(tmp_path, *opts, images=images).candidates(PLAIN, "train")
        return [of_image.scores.tolist() for of_image in found]

    experiment(tmp_path).train(PLAIN)
    path = tmp_path / PLAIN.name / "candidates_train.pth"
    first, stamp = scores(), path.stat().st_mtime_ns
    assert scores() == first
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:-100])
    assert scores() == first
    assert len(scores(images=2)) == 2
    assert len(scores("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "1")[0]) < len(first[0])
    torch.save([1, 2], path)
    assert scores() == first


def test_summary_keeps_every_seed():
    names = ("pair_auc", "pair_auc_iou", "same_correlation", "different_correlation")
    figures = {"pairs": dict.fromkeys(names, 0.5)}
    results = []
    for seed in (2, 1):
        found = figures | {m: {"settings": {}, "figures": {"AP": 10.0 * seed}} for m in NMS_METHODS}
        results.append((Run("bccd", "retinanet", "plain", seed), found))
    assert summarize(results)["bccd/retinanet"]["plain"]["nms"]["AP"] == [10, 20]


def test_wrong_arguments_are_one_sentence(capsys):
    assert tool("--precision", 0) == 1
    assert "--precision above 0" in capsys.readouterr().err
    assert tool("--detectors", "yolo") == 1
    assert "no 'yolo'; there are faster_rcnn, retinanet" in capsys.readouterr().err


@pytest.mark.usefixtures("few_settings")
@pytest.mark.parametrize("method", NMS_METHODS)
@pytest.mark.parametrize("floor", [0.3, 0.45, 0.95])
def test_looking_at_the_best_candidates_first_changes_no_choice(
    method, floor, crowded, monkeypatch
):
    """With and without those that come after all others; also where all are needed (0.95)."""
    _, image, candidates = crowded
    given = (method, [candidates], {image["image_id"]: image}, 0.3, 0.8)
    monkeypatch.setattr(tuning, "_FLOOR", 0.0)
    expected = tune(*given)
    monkeypatch.setattr(tuning, "_FLOOR", floor)
    assert tune(*given) == expected

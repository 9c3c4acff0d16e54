"""Sanity checks on tiny detectors, whose own detections are the objects; H != W."""

import copy
import json
from dataclasses import dataclass, field, replace
from typing import ClassVar

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from oracle import FASTER_RCNN, RETINANET, SLIM, zoo_model

from odam_d2.core.errors import InputError
from odam_d2.evaluation import SanityCheckEvaluator, SanityCheckSettings
from odam_d2.evaluation.map_similarity import maps_in_boxes, similarity
from odam_d2.evaluation.sanity_files import compare_sanity
from odam_d2.evaluation.sanity_results import Similarities, results
from odam_d2.modeling import Method
from odam_d2.modeling.randomisation import own_copy
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.structures import OdamMaps

NAME = "toy_sanity"
HEIGHT, WIDTH = 96, 160
ANY = SanityCheckSettings(score_thresh=0.0, per_image=2)
AT_ONCE = replace(ANY, orders=())
TARGETS = ("class", "left")


def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, 3, HEIGHT, WIDTH), generator=generator).byte()


def given(number):
    image = images()[number]
    return {"image_id": number, "image": image, "height": HEIGHT, "width": WIDTH}


def detector(name=RETINANET, **settings):
    model = zoo_model(name, opts=SLIM)
    model.odam = ExplainSettings(targets=TARGETS, **settings)
    return model


@pytest.fixture
def dataset(tmp_path, request):
    """The objects are what the detector finds: with three images, each has a next one."""
    model = zoo_model(getattr(request, "param", RETINANET), opts=SLIM)
    entries = []
    for number, image in enumerate(images()):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), image.permute(1, 2, 0).numpy())
        with torch.no_grad():
            (output,) = model([given(number)])
        found = output["instances"][:3]
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(label)}
            for box, label in zip(found.pred_boxes.tensor.tolist(), found.pred_classes, strict=True)
        ]
        entries.append({"image_id": number, "file_name": str(path), "height": HEIGHT,
                        "width": WIDTH, "annotations": annotations})  # fmt: skip
    DatasetCatalog.register(NAME, lambda: entries)
    yield entries
    DatasetCatalog.remove(NAME)


def detected(model, number):
    with torch.no_grad():
        plain = copy.copy(model)
        plain.odam = None
        return plain([given(number)])


def run(model, numbers=(0,), settings=ANY, evaluator=None, **options):
    evaluator = evaluator or SanityCheckEvaluator(NAME, settings=settings, model=model, **options)
    evaluator.reset()
    for number in numbers:
        evaluator.process([given(number)], detected(model, number))
    return evaluator.evaluate()["sanity_checks"], evaluator


@dataclass(frozen=True)
class Spy(Method):
    """Tells which parameters of a detector are others than those that it knows."""

    known: dict = field(compare=False)
    seen: ClassVar[list] = []

    def __call__(self, adapter, trace, targets):
        parameters = dict(adapter.model.named_parameters())
        changed = {name for name, p in parameters.items() if not torch.equal(p, self.known[name])}
        shared = {n for n, p in parameters.items() if p.data_ptr() == self.known[n].data_ptr()}
        anchors = trace.places.anchors.boxes
        self.seen.append((changed, shared, trace.images.clone(), anchors.clone(), trace.classes))
        values = torch.rand(len(trace), len(targets), 4, 4)
        pair = torch.ones(len(trace), 2, dtype=torch.int64)
        size = pair * torch.tensor(trace.image_sizes[0])
        return targets.maps(values, origins=0 * pair, strides=torch.full((len(trace),), 8.0),
                            grid_sizes=4 * pair, image_sizes=size,
                            levels=0 * pair[:, 0])  # fmt: skip


def test_what_is_randomised_and_in_which_order(dataset):
    """From the top down, all above or one alone, then the other image; always of a copy."""
    model = detector()
    model.odam = replace(model.odam, method=Spy(dict(model.named_parameters())))
    Spy.seen.clear()
    _, evaluator = run(model)
    layers = [set(layer.parameters) for layer in evaluator.layers]
    assert layers[0] == {f"head.{n}.{p}" for n in ("cls_score", "bbox_pred")
                         for p in ("weight", "bias")}  # fmt: skip
    first, *states = Spy.seen
    assert len(states) == 2 * len(layers) + 1
    # A norm's ones and zeros are the same in any order.
    same = {n for n, p in model.named_parameters() if (p == p.flatten()[0]).all()}
    expected = [set().union(*layers[: at + 1]) for at in range(len(layers))] + layers + [set()]
    for (changed, shared, shown, anchors, classes), wanted in zip(states, expected, strict=True):
        assert changed == wanted - same
        assert not shared
        assert torch.equal(anchors, first[3])
        assert torch.equal(classes, first[4])
        assert torch.equal(shown, first[2]) == bool(wanted)
    after = model.preprocess_image([given(1)]).tensor
    assert torch.equal(states[-1][2], after)


@pytest.mark.parametrize("dataset", [FASTER_RCNN, RETINANET], indirect=True)
@pytest.mark.parametrize("settings", [{}, {"method": "input_gradient"}, {"preset": "gradient"}])
def test_a_detector_with_the_same_parameters_has_the_same_maps(dataset, settings, request):
    """By the same reading: what differs otherwise is due to parameters alone."""
    model = detector(request.node.callspec.params["dataset"], **settings)
    _, evaluator = run(model, settings=AT_ONCE, others={"same": own_copy(model)})
    found = evaluator.similarities
    for measure in ("spearman", "ssim"):
        for target in TARGETS:
            same = found.mean(measure, (target,), "same")
            assert same.value == pytest.approx(1, abs=1e-4)
            assert found.mean(measure, (target,), *found.all_layers).value < 0.99


def test_the_detector_is_left_as_it_was(dataset):
    model = detector().train()
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    evaluator = SanityCheckEvaluator(NAME, settings=ANY, model=model)
    outputs = detected(detector(), 0)
    state = torch.get_rng_state()
    evaluator.reset()
    evaluator.process([given(0)], outputs)
    evaluator.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_who_knows_the_box_alone_fails(dataset):
    found, evaluator = run(detector(method="box_blob"), numbers=(0, 1))
    verdicts = {
        name: group["verdict"] for name, group in results(evaluator.similarities)["groups"].items()
    }
    assert verdicts == dict.fromkeys(("class", "sides", "left"), "fails: does not change")
    assert found["class_all_random"] == found["class_other_image"] == pytest.approx(1)
    assert found["class_passes"] == 0
    assert found["num_objects"] == 4


def test_interrupted_and_resumed_and_repeated(dataset, tmp_path):
    model = detector()
    whole, evaluator = run(model, (0, 1, 2), AT_ONCE)
    rows = evaluator.similarities.rows
    assert rows

    def resumed(settings=AT_ONCE, **options):
        folder = str(tmp_path / "rows")
        return SanityCheckEvaluator(NAME, folder, settings, model=model, resume=True, **options)

    run(model, numbers=(0,), evaluator=resumed(images=[0]))
    again = resumed()
    assert again.done == {0}
    found, again = run(model, numbers=(0, 1, 2), evaluator=again)
    assert found == whole
    assert again.similarities.rows == rows
    content = json.loads((tmp_path / "rows/sanity_checks.json").read_text())
    assert content["groups"]["class"]["spearman"]["cascading"][-1]["value"] == pytest.approx(
        whole["class_all_random"]
    )
    assert not resumed(replace(AT_ONCE, seed=1)).done
    assert not resumed(others={"other": own_copy(model)}).done
    other, _ = run(model, (0, 1, 2), replace(AT_ONCE, seed=1))
    assert other["class_all_random"] != whole["class_all_random"]
    assert other["class_other_image"] == whole["class_other_image"]


def test_orders_that_are_left_out_cost_nothing(dataset):
    model = detector()
    _, evaluator = run(model, settings=AT_ONCE)
    states = {(row["state"], row["layer"]) for row in evaluator.similarities.rows}
    assert states == {("cascading", len(evaluator.layers) - 1), ("other_image", None)}


def rows(*values):
    """By (state, layer) the rank correlations of so many objects, each in an image of its own."""
    return {
        image: [
            {"object": 0, "target": target, "state": state, "layer": layer,
             "spearman": of_state[image], "ssim": 0.0}
            for target, state, layer, of_state in values
        ]
        for image in range(len(values[0][3]))
    }  # fmt: skip


def test_verdicts():
    """Layers "a" and "b": what counts is when both are random."""
    more, less = [0.5, 0.6, 0.7], [0.2, 0.1, 0.3]

    def found(target, cascading, other):
        return [(target, "cascading", 0, [1, 1, 1]), (target, "cascading", 1, cascading),
                (target, "other_image", None, other)]  # fmt: skip

    kept = Similarities.of(
        rows(*found("class", more, less), *found("left", less, more), *found("top", more, less),
             *found("right", [1, 1, 1], [1, 1, 1]), *found("bottom", less, more)), "ab",
    )  # fmt: skip
    groups = results(kept)["groups"]
    verdicts = {name: group["verdict"] for name, group in groups.items()}
    assert verdicts == {
        "class": "fails: shows the image", "sides": "passes", "left": "passes",
        "top": "fails: shows the image", "right": "fails: does not change", "bottom": "passes",
    }  # fmt: skip
    assert groups["class"]["spearman"]["more_than_place"]["value"] == pytest.approx(0.4)
    assert groups["class"]["spearman"]["cascading"][0]["value"] == pytest.approx(1)
    # Of sides: (0.2 + 0.6 + 1 + 0.2) / 4, less (0.6 + 0.2 + 1 + 0.6) / 4.
    assert groups["sides"]["spearman"]["cascading"][1]["value"] == pytest.approx(0.5)
    assert groups["sides"]["spearman"]["more_than_place"]["value"] == pytest.approx(-0.1)
    assert groups["sides"]["objects"] == 3


def test_tables_and_files(tmp_path):
    one = Similarities.of(
        rows(("class", "cascading", 0, [0.5, 0.7]), ("class", "cascading", 1, [0.4, 0.2]),
             ("class", "random_labels", None, [0.6, 0.4]),
             ("class", "other_image", None, [0.1, 0.2])),
        ["head.x, head.y.2", "backbone.bottom_up.res5"],
    )  # fmt: skip
    text = compare_sanity(tmp_path, {"odam": one}).read_text()
    line = next(row for row in text.splitlines() if row.startswith("| odam |")).split(" | ")
    assert line[1:4] == ["0.30", "0.15", "+0.15 [+0.00, +0.30]"]
    assert line[7:] == ["0.50", "passes", "2 |"]
    assert "| method | x, y.2 | res5 |\n| --- | --- | --- |\n| odam | 0.60 | 0.30 |" in text
    assert (tmp_path / "sanity_checks.png").stat().st_size > 5000
    empty = compare_sanity(tmp_path, {"odam": Similarities.of({}, "ab")})
    assert empty.read_text() == "No decision could be evaluated.\n"
    assert not (tmp_path / "sanity_checks.png").exists()


def test_maps_are_compared_in_their_boxes():
    """A box over the border, one of a pixel, and one beside the image, on a map of rows."""
    values = torch.arange(HEIGHT).float()[None, None, :, None].repeat(3, 1, 1, WIDTH)
    pair = torch.ones(3, 2, dtype=torch.int64)
    size = pair * torch.tensor([HEIGHT, WIDTH])
    maps = OdamMaps(("class",), values, origins=0 * pair, strides=torch.ones(3),
                    grid_sizes=size, image_sizes=size, levels=0 * pair[:, 0])  # fmt: skip
    boxes = torch.tensor([[-9.0, 64, 20, 200], [7.2, 5.5, 7.9, 5.9], [170, 0, 180, 32]])
    over, pixel, beside = maps_in_boxes(maps, boxes, (HEIGHT, WIDTH))
    assert over.shape == (1, 32, 32)
    assert over[0, :, 3].tolist() == pytest.approx([row / 95 for row in range(64, 96)])
    assert pixel.tolist() == torch.ones(1, 32, 32).tolist()  # row 5, scaled to 1
    assert beside[0, :, 0].tolist() == pytest.approx([row / 31 for row in range(32)])
    turned = similarity(over[0], 1 - over[0])
    assert turned["spearman"] == pytest.approx(-1)
    assert similarity(over[0], torch.zeros(32, 32))["spearman"] == 0
    assert similarity(over[0], over[0] ** 3)["spearman"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SanityCheckSettings(orders=("up",)), "ORDERS is 'up'; it must be one of"),
        (lambda: SanityCheckSettings(per_image=-2), "PER_IMAGE is -2"),
        (lambda: SanityCheckSettings(iou_thresh=2), "IOU_THRESH is 2"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_one_image_has_no_other(dataset):
    del dataset[1:]
    with pytest.raises(InputError, match="has one image; sanity checks compare"):
        SanityCheckEvaluator(NAME, model=detector())

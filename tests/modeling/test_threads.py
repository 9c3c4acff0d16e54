"""Explaining in threads, and beside a training: nobody's modes, hooks or random numbers change."""

import threading
from contextlib import contextmanager

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from test_norms import fcos
from tiny_detr import TARGETS, TinyDETR, score_and_sides
from torch import nn
from training_cases import labelled_images, losses_of, training_model

from odam_d2 import explain, explain_boxes, explain_outputs
from odam_d2.core.errors import InputError
from odam_d2.modeling import state
from odam_d2.modeling.state import preserved

MODELS = {
    "faster_rcnn": lambda: zoo_model(FASTER_RCNN, opts=SLIM),
    "retinanet": lambda: zoo_model(RETINANET, opts=SLIM),
    "cycling": lambda: fcos("BN"),  # its norms count the levels
}


def in_threads(*works):
    """What functions return that run at the same time, each in a thread of its own."""
    results, start = [None] * len(works), threading.Barrier(len(works))

    def run(number, work):
        start.wait()
        try:
            results[number] = work()
        except Exception as error:
            results[number] = error

    threads = [
        threading.Thread(target=run, args=(number, work)) for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [result for result in results if isinstance(result, Exception)]
    assert not failed, failed
    return results


def shared_state(model):
    return [
        (m.training, getattr(m, "_pos", None), len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]


@contextmanager
def watched(model):
    """Another thread looks at the model all the time, and draws random numbers."""
    before, seen, numbers = shared_state(model), [], []
    done = threading.Event()
    torch.manual_seed(11)

    def look():
        while not done.wait(0.001):
            seen.append(shared_state(model))
            numbers.append(torch.rand(1))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert len(seen) > 3
    assert all(now == before for now in seen)
    assert shared_state(model) == before
    # The numbers of one generator in one go: none was skipped, none came twice.
    torch.manual_seed(11)
    assert torch.equal(torch.cat(numbers), torch.cat([torch.rand(1) for _ in numbers]))


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.odam_maps.values, theirs.odam_maps.values)


@pytest.mark.parametrize("name", MODELS)
def test_two_threads_explain_a_model_in_training_mode(name):
    """Every result is that of one thread; flags, positions and hooks never change on the way."""
    model = MODELS[name]()
    works = [lambda x=x: explain(model, [x], ("class", "left")) for x in two_images()]
    expected = [in_threads(work)[0] for work in works]
    assert all(len(result["instances"]) > 3 for (result,) in expected)
    model.train()
    model.backbone.eval()  # as with frozen parts
    with watched(model):
        for _ in range(2):
            for found, single in zip(in_threads(*works, *works), expected * 2, strict=True):
                assert_same(found, single)


def test_given_boxes_and_layers_in_threads(faster_rcnn):
    boxes, classes = [torch.tensor([[10.0, 20, 90, 100]])], [torch.tensor([3])]
    works = [
        lambda x=x, layer=layer: explain_boxes(
            faster_rcnn, [x], boxes, classes, ("class",), layer=layer
        )
        for x in two_images()
        for layer in ("", "res4")
    ]
    expected = [in_threads(work)[0] for work in works]
    for mode in (False, True):
        faster_rcnn.train(mode)
        for found, single in zip(in_threads(*works), expected, strict=True):
            assert_same(found, single)
    assert not any(m._forward_hooks for m in faster_rcnn.modules())


@pytest.mark.parametrize("name", MODELS)
def test_after_errors(name, monkeypatch):
    """A thread that fails in the middle leaves nothing behind for the others."""
    model = MODELS[name]().train()
    good, bad = ([{"image": x["image"]}] for x in two_images())
    bad[0]["height"] = "none"  # found out when the detections are postprocessed

    def fails():
        with pytest.raises((TypeError, ValueError)):
            explain(model, bad, ("class",))

    expected = in_threads(lambda: explain(model, good, ("class",)))[0]
    with watched(model):
        results = in_threads(fails, lambda: explain(model, good, ("class",)), fails)
        assert_same(results[1], expected)


def test_our_own_detector_in_threads():
    """One ``model.odam`` for all: in evaluation it explains by itself, with an NMS of ours."""
    opts = ["MODEL.META_ARCHITECTURE", "OdamRCNN", "MODEL.ODAM.NMS.NAME", "odam_nms"]
    few = ["MODEL.RPN.POST_NMS_TOPK_TEST", 3]
    model = zoo_model(FASTER_RCNN, opts=[*SLIM, *opts, *few])
    works = [lambda x=x: model([x]) for x in two_images()]
    expected = [in_threads(work)[0] for work in works]
    model.backbone.train()
    with watched(model):
        for found, single in zip(in_threads(*works, *works), expected * 2, strict=True):
            assert_same(found, single)


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_training_beside_explaining(case):
    """The losses of Odam-Train, and its samples, are those of a training alone."""
    inputs, plain = labelled_images(), two_images()

    def train(model):
        return [losses_of(model, inputs)[0] for _ in range(3)]

    alone = in_threads(lambda: train(training_model(case)))[0]
    model = training_model(case)
    expected = in_threads(lambda: explain(model, plain, ("class",)))[0]
    before = shared_state(model)
    trained, found = in_threads(lambda: train(model), lambda: explain(model, plain, ("class",)))
    assert shared_state(model) == before
    for ours, theirs in zip(trained, alone, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same(found, expected)


def test_odam_train_changes_no_mode():
    """What it runs as in evaluation is a view, so a thread that looks sees a training model."""
    model = training_model("conv_head")
    seen = []

    class Looking(type(model.roi_heads.box_predictor)):
        def forward(self, x):
            seen.append((self.training, model.roi_heads.box_predictor.training))
            return super().forward(x)

    model.roi_heads.box_predictor.__class__ = Looking
    losses_of(model, labelled_images())
    assert set(seen) == {(True, True), (False, True)}


def test_the_general_way_in_threads():
    """A function has the model in hand: modes are shared, and come back with the last thread."""
    torch.manual_seed(0)
    model = TinyDETR().double()
    inputs = two_images(torch.float64)

    def work(number):
        return explain_outputs(
            model, inputs[number : number + 1], score_and_sides(model), "backbone", TARGETS
        )

    expected = [in_threads(lambda n=n: work(n))[0][0].values for n in range(2)]
    model.train()
    model.class_embed.eval()
    before = shared_state(model)
    for _ in range(3):
        found = in_threads(*[lambda n=n: work(n) for n in (0, 1, 0, 1)])
        for number, (maps,) in enumerate(found):
            assert torch.equal(maps.values, expected[number % 2])
    assert shared_state(model) == before
    with pytest.raises(InputError):
        explain_outputs(model, inputs, lambda _: [], "backbone")
    assert shared_state(model) == before
    assert not state._HELD


def test_who_comes_while_modes_are_shared_is_not_left_in_training_mode(faster_rcnn):
    """``explain`` meets a model that is in evaluation mode for now only."""
    faster_rcnn.train()
    with state.held_in_evaluation(faster_rcnn):
        with preserved(faster_rcnn) as view:
            assert view is not faster_rcnn
        assert not any(m.training for m in faster_rcnn.modules())
    assert all(m.training for m in faster_rcnn.modules())


def test_a_model_in_evaluation_mode_is_used_itself(faster_rcnn):
    """It costs nothing, and hooks get the user's own modules."""
    with preserved(faster_rcnn) as view:
        assert view is faster_rcnn


class Drawing(nn.Module):
    """Somebody's layer that draws random numbers at inference."""

    def forward(self, x):
        return x + 0 * torch.rand(1)


def drawing_model():
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    model.backbone.bottom_up.stem.conv1.norm = nn.Sequential(
        model.backbone.bottom_up.stem.conv1.norm, Drawing()
    )
    return model


def test_random_numbers_come_back_where_no_other_thread_draws():
    model = drawing_model()
    before = torch.get_rng_state()
    model(two_images())
    assert not torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(before)
    explain(model, two_images(), ("class",))
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_another_thread_drew_are_not_taken_back():
    """The generator is not set back under a thread that drew in the meantime."""
    model = drawing_model()
    drawn, go_on, stop = [], threading.Event(), threading.Event()

    def other():
        drawn.append(torch.rand(3))
        go_on.set()
        stop.wait(60)

    thread = threading.Thread(target=other, daemon=True)

    def hook(*_):
        if not thread.ident:
            thread.start()
            assert go_on.wait(60)

    torch.manual_seed(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "forward", lambda self, x: (hook(), x)[1])
        explain(model, two_images(), ("class",))
    following = torch.rand(3)
    stop.set()
    thread.join()
    torch.manual_seed(5)
    assert torch.equal(torch.cat([*drawn, following]), torch.rand(6))


def test_nobody_else_gets_a_model_with_counters_meanwhile():
    """A model whose modules count calls, and of which no view can be made, is used in turns."""
    model = fcos("BN").train()
    module = model.head.cls_score
    model.refers = lambda: module  # a closure: no view
    image = two_images()[:1]
    expected = in_threads(lambda: explain(model, image, ("class",)))[0]
    for found in in_threads(*[lambda: explain(model, image, ("class",))] * 3):
        assert_same(found, expected)
    assert {m._pos for m in model.modules() if isinstance(m, CycleBatchNormList)} == {0}
    assert all(m.training for m in model.modules())

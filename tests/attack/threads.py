"""Threads that explain with one model, and others beside them: nobody is disturbed."""

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch

from odam_d2 import explain, explain_boxes

from .case import RIGHT, Case, expect
from .material import picture, shipped

__all__ = ["cases"]


def _together(works: list[Callable[[], object]]) -> None:
    # PyTorch makes its pool of threads anew in a forked process when it is first asked for, and two
    # threads that ask at once find none ("Invalid thread pool"): so one does, before.
    torch.set_num_threads(torch.get_num_threads())
    errors = []

    def guarded(work):
        try:
            work()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(not errors, f"{len(errors)} threads failed: {errors[:1]}")


def _state(model) -> list:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [[m.training for m in model.modules()], hooks,
            [(p.requires_grad, p.grad is None) for p in model.parameters()],
            [type(m) for m in model.modules()]]  # fmt: skip


def _explain(kind: str, training: bool, count: int, settings: dict, folder: Path) -> str:
    """Results are those of one thread; the model is left as it was."""
    model, given = shipped(kind, own=True), [picture(k) for k in range(count)]
    truth = [explain(model, [x], ["class"], **settings)[0]["instances"] for x in given]
    model.train(training)
    before, differ = _state(model), []

    def work(number):
        for _ in range(4):
            found = explain(model, [given[number]], ["class"], **settings)[0]["instances"]
            same = len(found) == len(truth[number]) and torch.equal(
                found.scores, truth[number].scores
            )
            if not same or not torch.equal(found.odam_maps.values, truth[number].odam_maps.values):
                differ.append(number)

    _together([partial(work, k) for k in range(count)])
    expect(not differ, f"{len(differ)} of {4 * count} results are others")
    expect(_state(model) == before, "modes, hooks or classes are not as before")
    return RIGHT


def _detect(kind: str, folder: Path) -> str:
    """One thread detects while others explain: detections stay the same bit for bit."""
    model, given = shipped(kind, own=True), [picture(k) for k in range(2)]
    with torch.no_grad():
        truth = [model([x])[0]["instances"] for x in given]
    differ = []

    def detect(number):
        for _ in range(8):
            with torch.no_grad():
                found = model([given[number]])[0]["instances"]
            if not torch.equal(found.pred_boxes.tensor, truth[number].pred_boxes.tensor):
                differ.append(number)

    def others():
        for _ in range(4):
            explain(model, [given[1]], ["class", "left"])

    _together([partial(detect, 0), others, partial(detect, 1), others])
    expect(not differ, f"{len(differ)} detections are others")
    return RIGHT


def _train(kind: str, folder: Path) -> str:
    """One thread runs modules in training mode while another explains: the mode stays."""
    model, wrong, stop = shipped(kind, own=True).train(), [], threading.Event()

    def look():
        while not stop.is_set():
            if not all(m.training for m in model.modules()):
                wrong.append(1)

    def work():
        try:
            for _ in range(3):
                explain(model, [picture(1)], ["class"])
        finally:
            stop.set()

    _together([look, work])
    expect(not wrong, "another thread saw the model out of training mode")
    return RIGHT


def _random_numbers(kind: str, source: str, settings: dict, folder: Path) -> str:
    """Another thread's random numbers are those that it gets without us."""
    model = shipped(kind, own=True)
    draw = {
        "torch": lambda: float(torch.rand(())), "numpy": lambda: float(np.random.random()),  # noqa: NPY002
        "python": random.random,
    }[source]  # fmt: skip
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    truth = [draw() for _ in range(40000)]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    drawn = []

    def work():
        for _ in range(3):
            explain(model, [picture(1)], ["class"], **settings)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive() and len(drawn) < len(truth):
        drawn.append(draw())
    worker.join()
    drawn += [draw() for _ in range(10)] if len(drawn) < len(truth) - 10 else []
    expect(
        drawn == truth[: len(drawn)],
        f"after {sum(a == b for a, b in zip(drawn, truth, strict=False))} of {len(drawn)}",
    )
    return RIGHT


def _alone(kind: str, settings: dict, call: Callable, folder: Path) -> str:
    """The caller's own random numbers go on as if nothing had happened."""
    model = shipped(kind, own=True)
    torch.manual_seed(5)
    truth = torch.rand(4)
    torch.manual_seed(5)
    call(model, settings)
    expect(torch.equal(torch.rand(4), truth), "other random numbers after explaining")
    return RIGHT


def _call_explain(model, settings: dict) -> None:
    explain(model, [picture(1)], ["class"], **settings)


def _call_boxes(model, settings: dict) -> None:
    box = torch.tensor([[10.0, 10, 90, 100]])
    explain_boxes(model, [picture(1)], [box], [torch.tensor([1])], **settings)


def cases(rng: Random) -> Iterator[Case]:
    for kind in ("faster_rcnn", "retinanet", "fcos"):
        more = {"norm_statistics": "constant"} if kind == "fcos" else {}
        for training in (True, False):
            fault = "5 two threads explain a model in training mode" if training else ""
            for count in (2, 3):
                yield Case(f"{kind}-{'training' if training else 'evaluation'}-{count}",
                           partial(_explain, kind, training, count, more), fault,
                           seconds=90)  # fmt: skip
        yield Case(
            f"{kind}-layer", partial(_explain, kind, False, 2, {"layer": "res4"}), seconds=120
        )
        yield Case(f"{kind}-detect-beside", partial(_detect, kind), seconds=90)
        yield Case(
            f"{kind}-train-beside",
            partial(_train, kind),
            "5 two threads explain a model in training mode",
        )
        for source in ("torch", "numpy", "python"):
            fault = "5 another thread's random numbers" if source == "torch" else ""
            yield Case(
                f"{kind}-random-{source}", partial(_random_numbers, kind, source, more), fault
            )
        for call in (_call_explain, _call_boxes):
            yield Case(f"{kind}-alone{call.__name__}", partial(_alone, kind, more, call))

"""
What explaining costs, measured in one process: plain inference, ours, and per-map autograd.

Random numbers stand in for a photograph: the time does not depend on what is seen, only on how many
instances are explained and on which levels they are.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import re
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.data import register_datasets
from odam_d2.engine.detector import set_score_threshold
from odam_d2.errors import UserError
from odam_d2.modeling.adapters import Adapter, Trace
from odam_d2.modeling.attribution import Method
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import preserved
from odam_d2.modeling.targets import Targets
from odam_d2.modeling.views import Viewed, with_overrides
from odam_d2.structures import OdamMaps

from .autograd_maps import compare_with_autograd
from .timing import seconds, time_figures, timed_in_turns
from .untrained import build_for_timing

__all__ = ["BenchmarkCase", "measure", "peak_memory", "peak_of_this_process"]


@dataclass(frozen=True)
class BenchmarkCase:
    """
    What is measured.

    Attributes:
        cfg: config of the detector. Its score threshold is lowered to 0, so that the number of
            instances is what is asked for.
        size: (height, width) of the image in pixels, as the network gets it.
        instances: detections to explain.
        spread: for a dense detector, how many instances of each level; None explains the best.
        runs: timed runs of inference, and twice as many of the head; their medians count.
        references: instances of each level whose maps are also computed by autograd.
    """

    cfg: CfgNode
    size: tuple[int, int] = (800, 1216)
    instances: int = 100
    spread: Sequence[int] | None = None
    runs: int = 5
    references: int = 1


class _Spread(Viewed):
    """Mixin for a ``DenseDetector``: a fixed number of candidates of each level."""

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        anchors = self.anchor_generator(features)
        if len(anchors) != len(self.odam_spread):
            raise UserError(
                f"--spread has {len(self.odam_spread)} numbers, but the detector has "
                f"{len(anchors)} levels"
            )
        quota = {len(a): n for a, n in zip(anchors, self.odam_spread, strict=True)}
        object.__setattr__(self, "odam_quota", quota)
        return super().forward_inference(images, features, predictions)

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        scores: Tensor,
        deltas: Tensor,
        thresh: float,
        topk: int,
        size: tuple[int, int],
    ) -> Instances:
        quota = self.odam_quota[len(scores)]
        return super()._decode_per_level_predictions(anchors, scores, deltas, thresh, quota, size)


class _Remembering(Viewed):
    """Mixin for a module whose input stays the same: it runs once."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.odam_outputs:
            self.odam_outputs.append(super().forward(*args, **kwargs))
        return self.odam_outputs[0]


@dataclass
class _Work:
    """
    A built case: two ways of running one detector on one image, and the same two from features (and
    proposals) that are there already, so that what explaining adds stands out.
    """

    plain: Callable[[], object]
    ours: Callable[[], object]
    plain_head: Callable[[], object]
    ours_head: Callable[[], object]
    explanation: Explanation
    timed: TimedMethod


class TimedMethod(Method):
    """
    Makes the maps of another method.

    Attributes:
        seconds: that each call took.
        trace, maps: of the last call.
    """

    trace: Trace
    maps: OdamMaps

    def __init__(self, method: Method):
        self.method = method
        self.seconds: list[float] = []

    def algorithm(self, adapter: Adapter) -> str:
        return self.method.algorithm(adapter)

    def __call__(self, adapter: Adapter, trace: Trace, targets: Targets) -> OdamMaps:
        def run() -> None:
            self.trace, self.maps = trace, self.method(adapter, trace, targets)

        self.seconds.append(seconds(run))
        return self.maps


def _build(case: BenchmarkCase) -> _Work:
    cfg = case.cfg.clone()
    cfg.defrost()
    set_score_threshold(cfg, 0.0)
    cfg.TEST.DETECTIONS_PER_IMAGE = sum(case.spread) if case.spread else case.instances
    model = build_for_timing(cfg)
    image = torch.randint(0, 256, (3, *case.size)).float()
    explanation = Explanation.of(model, ExplainSettings.from_config(cfg))
    timed = TimedMethod(explanation.method)
    explanation = dataclasses.replace(explanation, method=timed)
    plain = explanation.adapter.model
    if case.spread and not hasattr(plain, "forward_inference"):
        raise UserError("--spread is for dense detectors, which have no proposals")
    inputs = [{"image": image}]
    # A layer of the backbone is explained by running the backbone.
    names = [] if explanation.settings.layer else ["backbone", "proposal_generator"]
    outputs: dict[str, list] = {
        name: [] for name in names if getattr(model, name, None) is not None
    }

    def spread(view: nn.Module) -> list:
        if not case.spread:
            return view(inputs)
        state: dict[str, Any] = {"odam_spread": tuple(case.spread), "test_nms_thresh": 1.0}
        return with_overrides(view, _Spread, **state)(inputs)

    def head_only(view: nn.Module) -> list:
        remembered = {
            name: with_overrides(getattr(view, name), _Remembering, odam_outputs=of_part)
            for name, of_part in outputs.items()
        }
        return spread(with_overrides(view, children=remembered))

    return _Work(
        functools.partial(spread, plain),
        lambda: explanation.run(inputs, spread),
        functools.partial(head_only, plain),
        lambda: explanation.run(inputs, head_only),
        explanation,
        timed,
    )


def measure(case: BenchmarkCase) -> dict:
    """
    Time a case in this process.

    Returns:
        Medians of the runs, each with its range, ``forward_s_range`` and so on: ``forward_s``
        (plain inference), ``explain_s`` (what explaining adds to it, all included: the difference
        of both ways from the same features on, which explaining does not touch, or the explaining
        step clocked alone, whichever is more),
        ``overhead`` (their ratio), ``autograd_s_per_map`` (one backward pass for one map, mean over
        the instances), ``speedup`` (autograd for all maps over ``explain_s``),
        ``max_relative_error`` over ``autograd_maps`` maps that were computed both ways, ``way``
        (how ours computes maps), ``median_difference_to_exact`` (where statistics of norms count as
        constants: to autograd where they do not),
        ``num_instances``, ``num_targets``, and ``instances_per_level``.
    """
    work = _build(case)
    with preserved(work.explanation.adapter.model):
        (forward,) = timed_in_turns([work.plain], case.runs, "plain inference")
        heads = [work.plain_head, work.ours_head]
        plain, ours = timed_in_turns(heads, 2 * case.runs, "heads, plain and ours")
        # The difference of two long times may come out too small; the step alone cannot.
        differences = [slow - fast for slow, fast in zip(ours, plain, strict=True)]
        steps = work.timed.seconds[1:]
        explain = time_figures("explain", max(differences, steps, key=statistics.median))
        work.ours()
        maps = work.timed.maps
        compared = compare_with_autograd(work.explanation, work.timed.trace, maps, case.references)
    inference = time_figures("forward", forward)
    added, all_maps = explain["explain_s"], len(maps) * len(maps.targets)
    return {
        **inference,
        **explain,
        "overhead": added / inference["forward_s"],
        "speedup": compared["autograd_s_per_map"] * all_maps / added,
        "num_instances": len(maps),
        "num_targets": len(maps.targets),
        "way": work.explanation.algorithm,
        **compared,
        "instances_per_level": maps.levels.bincount().tolist(),
    }


def peak_memory(case: BenchmarkCase) -> dict:
    """
    Peak resident memory of two fresh processes on the CPU: one that runs plain inference, one that
    also explains. In MB: ``memory_plain_mb``, ``memory_explain_mb`` and ``memory_added_mb``.
    """
    plain, ours = (_peak_of_child(case, name) for name in ("plain", "ours"))
    return {
        "memory_plain_mb": plain,
        "memory_explain_mb": ours,
        "memory_added_mb": ours - plain,
    }


def _peak_of_child(case: BenchmarkCase, way: str) -> float:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(case, way, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise UserError(f"the process that measures memory ({way}) died") from None
    finally:
        process.join()


def _report_peak(case: BenchmarkCase, way: str, sender: Connection) -> None:
    register_datasets()  # a fresh process
    work = _build(case)
    with preserved(work.explanation.adapter.model):
        for _ in range(2):
            getattr(work, way)()
    sender.send(peak_of_this_process())


def peak_of_this_process() -> float:
    """Peak resident memory in MB."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found is not None:
        # getrusage's peak on Linux begins with that of the process that started this one.
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

"""Runs of several ways, in turns: medians, and the ranges that tell how far to trust them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

__all__ = ["ratio_figures", "seconds", "time_figures", "timed_in_turns"]


def timed_in_turns(ways: Sequence[Callable[[], object]], runs: int, what: str) -> list[list[float]]:
    """Seconds of ``runs`` runs of each way, in turns, after one that is not counted."""
    with tqdm(range(runs + 1), what, unit="run") as bar:  # closed before an error is told
        rounds = [[seconds(way) for way in ways] for _ in bar]
    return [list(times) for times in zip(*rounds[1:], strict=True)]


def seconds(way: Callable[[], object]) -> float:
    """Of one run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_figures(name: str, times: Sequence[float]) -> dict:
    """``NAME_s``, the median of runs, and ``NAME_s_range``, the fastest and the slowest."""
    return {f"{name}_s": statistics.median(times), f"{name}_s_range": [min(times), max(times)]}


def ratio_figures(name: str, times: Sequence[float], base: Sequence[float]) -> dict:
    """
    Runs in turns with others: ``NAME_ratio`` and ``NAME_ratio_median``, that of their medians, and
    ``NAME_ratio_range``, the least and the largest ratio of runs that followed each other.
    """
    ratio = statistics.median(times) / statistics.median(base)
    each = [ours / theirs for ours, theirs in zip(times, base, strict=True)]
    return {
        f"{name}_ratio": ratio,
        f"{name}_ratio_median": ratio,
        f"{name}_ratio_range": [min(each), max(each)],
    }

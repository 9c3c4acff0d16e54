"""What is told of several runs, by hand; and the memory of a process."""

import multiprocessing
import sys

import pytest
import torch

from benchmarks.explaining import peak_of_this_process
from benchmarks.timing import ratio_figures, time_figures, timed_in_turns


def test_the_median_of_runs_and_their_range():
    assert time_figures("x", [4.0, 1.0, 9.0]) == {"x_s": 4, "x_s_range": [1, 9]}
    assert time_figures("x", [4.0, 1.0])["x_s"] == 2.5


def test_ratios_are_of_medians_and_their_range_of_runs_in_turn():
    found = ratio_figures("x", [4.0, 2.0, 12.0], [2.0, 4.0, 3.0])
    assert found == {"x_ratio": 4 / 3, "x_ratio_median": 4 / 3, "x_ratio_range": [0.5, 4]}


def test_ways_take_turns_and_the_first_round_is_not_counted():
    calls = []
    times = timed_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 2, "test")
    assert calls == ["a", "b"] * 3
    assert [len(of_way) for of_way in times] == [2, 2]


def _peak(sender):
    sender.send(peak_of_this_process())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_does_not_count_the_memory_of_the_one_that_started_it():
    """getrusage's peak does: then explaining seems to need none where much was used before."""
    used = torch.ones(2**30 // 4)  # 1 GB
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(sender,))
    process.start()
    peak = receiver.recv()
    process.join()
    assert 50 < peak < peak_of_this_process() - 500
    del used

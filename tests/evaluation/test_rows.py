"""Rows of images: taken again where they fit, whole lines only, and by how many processes ever."""

import json
import logging

import numpy as np
import pytest
import torch.multiprocessing as mp
from detectron2.utils import comm
from two_processes import process_group

from odam_d2.errors import UserError
from odam_d2.evaluation.rows import RowFiles

KEYS = {number: f"key {number}" for number in range(6)}
RUN = {"config": {"A": 1}, "weights": "abc"}


def written(folder, rows, fingerprint=RUN, keys=KEYS):
    files = RowFiles(str(folder), fingerprint, keys)
    files.open()
    for number in rows:
        files.add(number, {"value": number / 3})
    files.close()
    return folder / "rows_0.jsonl"


def resumed(folder, fingerprint=RUN, keys=KEYS):
    return RowFiles(str(folder), fingerprint, keys, resume=True).by_image


def test_rows_come_back_as_they_were(tmp_path):
    written(tmp_path, [np.int64(2), 1])
    assert resumed(tmp_path) == {2: {"value": 2 / 3}, 1: {"value": 1 / 3}}
    assert RowFiles(str(tmp_path), RUN, KEYS).by_image == {}


def test_those_of_another_run_are_left_and_the_log_says_why(tmp_path, caplog):
    written(tmp_path, [1, 2])
    with caplog.at_level(logging.INFO):
        assert resumed(tmp_path, {**RUN, "config": {"A": 2}}) == {}
    assert "config.A (1, now 2)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert list(resumed(tmp_path, keys=KEYS | {2: "another"})) == [1]
    assert "1 images, or their annotations, have changed" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"5", b'"x"', b"{}", b'{"content": 1}', b"\xff\xfe\n", b"[" * 100_000,
     b'{"content": null, "checksum": ""}'],
)  # fmt: skip
def test_a_file_that_is_none_of_ours(tmp_path, content):
    (tmp_path / "rows_0.jsonl").write_bytes(content)
    (tmp_path / "rows_1.jsonl").write_bytes(content + b"\n" + content)
    assert resumed(tmp_path) == {}
    assert list(resumed(written(tmp_path, [3]).parent)) == [3]
    assert not (tmp_path / "rows_1.jsonl").exists()


def test_damaged_lines_are_left_out_and_no_other(tmp_path):
    path = written(tmp_path, [0, 1, 2, 3])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:-20] + b"\n"
    lines[3] = lines[3].replace(b"0.66", b"0.67")
    path.write_bytes(b"".join(lines) + lines[1][:15])
    assert list(resumed(tmp_path)) == [0, 3]


def test_every_image_comes_once(tmp_path):
    files = RowFiles(None, RUN, KEYS)
    files.open()
    files.add(4, 1)
    files.add(0, 2)
    assert list(files.gather()) == [0, 4]
    assert files.gather([4]) == {4: 1}
    with pytest.raises(UserError, match="2 of 4 images were evaluated by no process, such as 1"):
        files.gather([0, 1, 2, 4])


def _evaluate(folder, numbers):
    """What each process has left of its share, as Detectron2's sampler deals it."""
    world, rank = comm.get_world_size(), comm.get_rank()
    files = RowFiles(f"{folder}/rows", RUN, KEYS, resume=True)
    seen = comm.all_gather(sorted(files.by_image))
    assert all(other == seen[0] for other in seen)
    files.open()
    left = [number for number in numbers if number not in files.by_image]
    share = -(-len(left) // world)
    for number in left[rank * share : (rank + 1) * share]:
        files.add(number, {"value": number, "of": [world, rank]})
    files.close()
    found = files.gather(numbers)
    assert (found is None) == (rank > 0)
    if rank == 0:
        (folder / f"{len(numbers)}.json").write_text(json.dumps(list(found.items())))


def _process(rank, folder, numbers):
    meeting = folder / f"meeting_{len(numbers)}"
    meeting.mkdir(exist_ok=True)
    with process_group(rank, meeting):
        _evaluate(folder, numbers)
        if len(numbers) == len(KEYS):
            _twice(rank, folder)


def _twice(rank, folder):
    """An image that both processes have is told."""
    files = RowFiles(f"{folder}/twice", RUN, KEYS)
    files.open()
    files.add(3, {})
    if rank > 0:
        files.gather()
        return
    with pytest.raises(UserError, match="1 images were evaluated by two processes, such as 3"):
        files.gather()


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path):
    """Three images by two processes, five by one, six by two: none twice, none by nobody."""
    whose = {}
    for world, numbers in ((2, [0, 1, 2]), (1, [0, 1, 2, 3, 4]), (2, [0, 1, 2, 3, 4, 5])):
        if world > 1:
            mp.spawn(_process, (tmp_path, numbers), nprocs=world)
        else:
            _evaluate(tmp_path, numbers)
        found = dict(json.loads((tmp_path / f"{len(numbers)}.json").read_text()))
        assert sorted(found) == numbers
        for number in numbers:
            whose.setdefault(number, found[number])
            assert found[number] == whose[number]
    assert [whose[number]["of"] for number in range(6)] == [
        [2, 0], [2, 0], [2, 1], [1, 0], [1, 0], [2, 0],
    ]  # fmt: skip


def test_a_kill_while_the_files_are_collected_loses_nothing(tmp_path, monkeypatch):
    """At every step on the disk of `open`, what a next process finds is all that was there."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    names = ("os.replace", "os.unlink", "os.open")
    for step in range(1, 12):
        folder = tmp_path / str(step)
        folder.mkdir()
        written(folder, [0, 1]).rename(folder / "rows_1.jsonl")
        written_alone = RowFiles(str(folder), RUN, KEYS, resume=True)
        with monkeypatch.context() as patch:
            count = [0]
            for name in names:
                patch.setattr(name, _dying(_find(name), count, step))
            try:
                written_alone.open()
                done = True
            except _Killed:
                done = False
        assert sorted(resumed(folder)) == [0, 1], step
        if done:
            assert step > 2
            return
    raise AssertionError("it never came to its end")


class _Killed(BaseException):
    pass


def _find(name):
    import os

    return getattr(os, name.split(".")[1])


def _dying(original, count, step):
    def called(*args, **kwargs):
        count[0] += 1
        if count[0] >= step:
            raise _Killed
        return original(*args, **kwargs)

    return called

"""Files and folders that are whole or not there, and what is read back of them."""

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import resource
import signal
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from odam_d2.engine.checkpointer import SafeCheckpointer
from odam_d2.errors import run_tool
from odam_d2.files import (
    drop_unfinished_line,
    read_json,
    read_torch,
    remove_leftovers,
    whole_file,
    whole_folder,
    write_json,
    write_png,
    write_text,
    write_torch,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_all_is_written(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first")
    with whole_file(path, "w") as file:
        file.write("second, much longer")
        file.flush()
        assert path.read_text() == "first"
    assert path.read_text() == "second, much longer"
    with contextlib.suppress(ZeroDivisionError), whole_file(path, "w") as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "second, much longer"
    assert names(tmp_path) == ["a.txt"]


def test_all_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a machine that goes down may keep the name and lose the content."""
    events, replace, sync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("named"), replace(*a)))
    write_text(tmp_path / "a.txt", "12345")
    assert events[:2] == [5, "named"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join()
    assert found == ["through"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new " * 10_000),
        lambda path: write_json(path, ["new"] * 10_000),
        lambda path: write_png(path, np.random.default_rng(0).integers(0, 255, (99, 99, 3), "u1")),
        lambda path: write_torch(path, {"new": torch.zeros(10_000)}),
    ],
)
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, write, monkeypatch, capsys):
    path = tmp_path / "a"
    path.write_text("old")
    real = os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run_tool(lambda: write(path)) == 1
    assert capsys.readouterr().err == f"error: No space left on device: {str(path)!r}\n"
    monkeypatch.setattr(os, "fsync", real)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def in_a_process(work, *arguments):
    """Exit status of a process of its own, which is a copy of this one."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def _limited(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with pytest.raises(OSError, match="File too large") as caught:
        write_torch(path, torch.zeros(10_000))
    assert caught.value.filename == str(path)


def test_a_write_that_fails_half_way_is_told(tmp_path):
    """By the system itself: a limit on the size of files."""
    assert in_a_process(_limited, tmp_path / "a.pth") == 0
    assert names(tmp_path) == []


def test_a_picture_that_cannot_be_encoded_is_told(tmp_path):
    with pytest.raises((OSError, cv2.error)):
        write_png(tmp_path / "a.png", np.zeros((0, 0, 3), np.uint8))
    write_png(tmp_path / "a.png", np.full((3, 4, 3), (1, 2, 3), np.uint8))
    assert cv2.imread(str(tmp_path / "a.png"))[0, 0].tolist() == [3, 2, 1]


def test_a_folder_takes_its_place_when_all_is_in_it(tmp_path):
    final = tmp_path / "final"
    for round_ in ("one", "two"):
        with whole_folder(final) as place:
            assert place.parent == tmp_path
            (place / round_).write_text(round_)
            assert not (final / round_).exists()
        assert names(final) == [round_]
    with contextlib.suppress(ZeroDivisionError), whole_folder(final) as place:
        (place / "three").write_text("")
        1 / 0  # noqa: B018
    assert names(final) == ["two"]
    assert names(tmp_path) == ["final"]


def _killed_at(folder, step):
    calls = itertools.count(1)

    def dying(call):
        def called(*args, **kwargs):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return called

    for name in ("open", "mkdir", "replace", "rename", "unlink", "fsync", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    with whole_folder(folder / "folder") as place:
        write_text(place / "a", "new a")
        write_text(place / "b", "new b")
    write_text(folder / "file", "new")


def test_killed_anywhere(tmp_path):
    """At each step on the disk: whole, old or new, and nothing but that after the next run."""
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        (folder / "folder").mkdir(parents=True)
        for name in ("a", "b"):
            (folder / "folder" / name).write_text(f"old {name}")
        (folder / "file").write_text("old")
        status = in_a_process(_killed_at, folder, step)
        assert status in (0, -signal.SIGKILL)
        if (folder / "folder").exists():  # between two renames, it is not there
            found = {(folder / "folder" / name).read_text() for name in ("a", "b")}
            assert found in ({"old a", "old b"}, {"new a", "new b"}), step
        assert (folder / "file").read_text() in ("old", "new")
        remove_leftovers(folder)
        assert set(names(folder)) <= {"file", "folder"}, step
        if status == 0:
            break
    assert step > 20


def _writes_for_ever(path, begun):
    with whole_file(path):
        begun.set()
        time.sleep(60)


def test_what_a_process_is_at_work_on_is_no_leftover(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=_writes_for_ever, args=(tmp_path / "a", begun))
    process.start()
    assert begun.wait(60)
    (before,) = names(tmp_path)
    remove_leftovers(tmp_path)
    write_text(tmp_path / "b", "")
    assert names(tmp_path) == [before, "b"]
    process.kill()
    process.join()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["b"]


def test_what_is_not_ours_is_left_alone(tmp_path):
    theirs = [".odam-1.partial", "odam.partial", ".partial-abc", ".odam-" + 32 * "a"]
    for name in theirs:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(theirs)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"5", b'"text"', b"\xff\xfe", b"[" * 100_000, b"{}"]
)
def test_json_that_is_damaged_is_made_again(tmp_path, content, caplog):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    assert read_json(path, lambda found: isinstance(found["a"], int)) is None
    assert f"{path} is damaged and is made again" in caplog.text
    write_json(path, {"a": 1})
    assert read_json(path, lambda found: isinstance(found["a"], int)) == {"a": 1}
    caplog.clear()
    assert read_json(tmp_path / "none.json", bool) is None
    assert not caplog.text


def test_tensors_that_are_damaged_are_made_again(tmp_path, caplog):
    path = tmp_path / "state.pth"

    def check(found):
        return found["a"].shape == (300,)

    write_torch(path, {"a": torch.arange(300)})
    assert torch.equal(read_torch(path, check)["a"], torch.arange(300))
    whole = path.read_bytes()
    for part in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], json.dumps({}).encode()):
        path.write_bytes(part)
        assert read_torch(path, check) is None
    for wrong in ({"a": torch.zeros(3)}, {"b": 1}, [1], None, {"a": "text"}):
        write_torch(path, wrong)
        assert read_torch(path, check) is None
    assert "is not of the form that this version writes" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ('{"a": 1}\n', '{"a": 1}\n'),
        ('{"a": 1}\n{"a"', '{"a": 1}\n'),
        ('{"a"', ""),
        ("x" * 70_000 + "\n" + "y" * 70_000, "x" * 70_000 + "\n"),
    ],
)
def test_half_a_line_is_dropped(tmp_path, before, after):
    path = tmp_path / "metrics.json"
    path.write_text(before)
    drop_unfinished_line(path)
    assert path.read_text() == after
    drop_unfinished_line(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_training_that_has_nothing_left_to_save_removes_leftovers_too(tmp_path):
    left = tmp_path / f".odam-{'0' * 32}.partial"
    left.write_bytes(b"half")
    SafeCheckpointer(nn.Linear(1, 1), str(tmp_path))
    assert not left.exists()

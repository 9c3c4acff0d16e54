"""Running the command line tools, each in a forked process, and judging what came of it."""

import json
import os
import re
import resource
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .case import RIGHT, Refused, Wrong, expect

__all__ = [
    "ROOT", "Ran", "differences", "judge", "leftovers", "limit_file_size", "refusal", "tool",
    "whole",
]  # fmt: skip

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """How a tool ended: the exit status (negative for a signal), and what it printed."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The sentences of refusal, ``error: ...`` or argparse's ``NAME.py: error: ...``."""
        lines = self.err.replace("\r", "\n").splitlines()
        return [x for x in lines if re.match(r"(error: |[\w]+\.py: error: )", x)]


def tool(
    name: str,
    *arguments: object,
    before: Callable[[], object] | None = None,
    cwd: Path | None = None,
) -> Ran:
    """
    Run ``tools/NAME.py`` as from the command line.

    Args:
        name: of the tool, without ``.py``.
        arguments: of its command line.
        before: runs in the process first, for example to register a data set.
        cwd: working directory; by default the project's root.
    """
    pipes = [os.pipe() for _ in range(2)]
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        for number, (_, write) in enumerate(pipes, start=1):
            os.dup2(write, number)
        _run(name, [str(x) for x in arguments], before, cwd or ROOT)
    for _, write in pipes:
        os.close(write)
    with ThreadPoolExecutor(2) as readers:
        texts = list(readers.map(_read_all, [read for read, _ in pipes]))
    return Ran(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *texts)


def _read_all(pipe: int) -> str:
    with os.fdopen(pipe, errors="replace") as stream:
        return stream.read()


def _run(name: str, arguments: list[str], before: Callable | None, cwd: Path) -> None:
    # Python's own streams: those of the runner may be captured.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    status = 1
    try:
        os.chdir(cwd)
        sys.argv = [f"tools/{name}.py", *arguments]
        if before is not None:
            before()
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def refusal(ran: Ran) -> Refused:
    """Of a tool that failed: one sentence and a status, or it is wrong."""
    expect(ran.status != 0, "status 0")
    last = " | ".join([x for x in ran.err.replace("\r", "\n").splitlines() if x.strip()][-2:])
    expect(ran.status > 0, f"ended by signal {-ran.status}: {last[-300:]}")
    # On stderr: Detectron2 logs what ends a training, whatever it is.
    expect("Traceback (most recent" not in ran.err, f"a traceback: {last[-400:]}")
    expect(
        len(ran.errors) == 1, f"status {ran.status} and {len(ran.errors)} sentences: {last[-300:]}"
    )
    return Refused(ran.errors[0])


def judge(ran: Ran, folder: Path, right: Callable[[], object] | None = None) -> str:
    """Right, with what must hold then; or refused. Either way nothing is left half-written."""
    whole(folder)
    if ran.status != 0:
        return refusal(ran)
    expect("Traceback (most recent" not in ran.err, f"status 0, and a traceback: {ran.err[-300:]}")
    if right is not None:
        right()
    return RIGHT


def leftovers(folder: Path) -> list[str]:
    """Files that were to become others."""
    odd = re.compile(r"\.partial|\.tmp|\.unfinished")
    return sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if odd.search(x.name))


def whole(folder: Path, remains: bool = False) -> None:
    """
    Every file under a folder can be read to its end.

    Args:
        folder: of results.
        remains: whether files that were to become others, and lines that were being appended,
            may be there, as after a kill.
    """
    left = leftovers(folder)
    expect(remains or not left, f"left over: {', '.join(left[:3])}")
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(x in str(path.relative_to(folder)) for x in left):
            continue
        try:
            _read(path, remains)
        except Exception as error:
            what = " ".join(str(error).split())[:200]
            raise Wrong(
                f"half-written: {path.relative_to(folder)} ({type(error).__name__}: {what})"
            ) from error


def _read(path: Path, remains: bool) -> None:
    if path.name == "metrics.json" and not remains:  # Detectron2 appends to it
        [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".json" and path.name != "metrics.json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":  # appended to: the last line may be cut off, and is not counted
        [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            [arrays[name] for name in arrays.files]
    elif path.suffix == ".pth":
        torch.load(path, map_location="cpu", weights_only=False)
    elif path.suffix == ".html":
        expect(path.read_text(encoding="utf-8").rstrip().endswith("</html>"), "no end of the page")


def limit_file_size(size: int) -> None:
    """From now on no file of this process grows beyond so many bytes: a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def differences(one: Path, other: Path) -> list[str]:
    """Names of files of results that are in one folder only, or say other things there."""
    odd = re.compile(r"log\.txt|tfevents|metrics\.json|\.jsonl$|\.(svg|pdf)$|config\.yaml")
    names = [
        {str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()}
        for folder in (one, other)
    ]
    shared = sorted(x for x in names[0] | names[1] if not odd.search(x))
    return [
        name for name in shared
        if not all(name in found for found in names) or not _same(one / name, other / name)
    ]  # fmt: skip


def _same(one: Path, other: Path) -> bool:
    if one.suffix == ".json":
        return _alike(json.loads(one.read_text()), json.loads(other.read_text()))
    if one.suffix == ".pth":
        loaded = [torch.load(x, map_location="cpu", weights_only=False) for x in (one, other)]
        return _alike(*loaded)
    if one.suffix == ".npz":
        with np.load(one) as a, np.load(other) as b:
            return a.files == b.files and all(np.array_equal(a[k], b[k]) for k in a.files)
    return one.read_bytes() == other.read_bytes()


def _alike(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b or (a != a and b != b)

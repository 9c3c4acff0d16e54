"""Two processes that resume an evaluation, with rows of an earlier one there."""

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from detectron2.utils import comm

from .case import RIGHT, Case, expect
from .material import coco, config_file, register
from .runs import SMALL_EVALUATION

__all__ = ["cases"]

_COUNT = 5


def _rank(rank: int, world: int, port: int, path: Path, output: Path, late: int) -> None:
    from odam_d2.engine import setup_cfg
    from odam_d2.engine.explanation_run import evaluate_methods

    register(path)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
        )
        comm.create_local_process_group(world)
        if rank == late:
            time.sleep(6)  # processes do not start at the same time
    cfg = setup_cfg(config_file(), SMALL_EVALUATION)
    results = evaluate_methods(cfg, ["odam"], output)
    if rank == 0:
        output.with_suffix(".json").write_text(json.dumps(results))


def _evaluate(world: int, path: Path, output: Path, late: int = -1) -> dict:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                _rank(rank, world, port, path, output, late)
            except BaseException:
                traceback.print_exc(file=sys.stderr)
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        expect(status == 0, f"a process of {world} ended with status {status}")
    return json.loads(output.with_suffix(".json").read_text())


def _resumed(kept: int, before: int, after: int, late: int, folder: Path) -> str:
    """
    So many images were done by so many processes; others go on.

    Args:
        kept: images of the first process's rows that stay.
        before, after: processes.
        late: the one of those that go on which starts later.
    """
    path = coco(folder / "data", _COUNT)
    truth = _evaluate(1, path, folder / "fresh")
    expect(_evaluate(before, path, folder / "used") == truth, f"{before} processes: other figures")
    for file in (folder / "used").rglob("rows_*.jsonl"):
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[: 1 + kept]) + "\n")
    found = _evaluate(after, path, folder / "used", late)
    expect(found == truth, f"figures {str(found)[:200]}, not {str(truth)[:200]}")
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for kept, before, after in (
        (2, 1, 2),
        (1, 2, 2),
        (1, 2, 1),
        (0, 1, 2),
        (2, 2, 3),
        (_COUNT, 1, 2),
    ):
        for late in range(-1, after if after > 1 else 0):
            name = f"{kept}-images-{before}-then-{after}" + (f"-{late}-late" if late >= 0 else "")
            yield Case(name, partial(_resumed, kept, before, after, late),
                       "1.5 several processes resume", seconds=120)  # fmt: skip

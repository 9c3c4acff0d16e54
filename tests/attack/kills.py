"""Tools that are killed at some event on their files, and run again: nothing may be lost."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from .case import RIGHT, Case, expect
from .killed import FileEvents
from .runs import RUNS, again, reference
from .tools import differences, whole

__all__ = ["cases", "prepare"]

_POINTS = 14


def prepare() -> None:
    for name in RUNS:
        reference(name)


def _kill(name: str, place: float, overwriting: bool, folder: Path) -> str:
    run = again(name, folder, finished=overwriting)
    events = FileEvents(folder / "out", 1 + int(place * run.events))
    killed = run(folder, before=events.watch)
    if killed.status != -9:  # it had fewer events than the reference, and ended
        expect(killed.status == 0, f"status {killed.status}: {killed.err[-300:]}")
    if (folder / "out").is_dir() and name != "train":  # Detectron2 writes where ours do not
        whole(folder / "out", remains=True)
    ran = run(folder, again=True)
    where = f"killed at event {events.kill_at} of {run.events}, "
    said = " | ".join(ran.err.strip().splitlines()[-2:])
    expect(ran.status == 0, f"{where}run again it fails: {said[-400:]}")
    whole(folder / "out")
    found = differences(run.folder / "out", folder / "out", run.exact)
    expect(not found, f"{where}then other results: {', '.join(found[:4])}")
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for name in RUNS:
        for point in range(_POINTS):
            place = (point + rng.random()) / _POINTS
            overwriting = name == "demo" and point % 2 == 1
            yield Case(
                f"{name}-{point}" + "-overwriting" * overwriting,
                partial(_kill, name, place, overwriting),
                fault="3.4 a demo killed while overwriting" if overwriting
                else f"3 killed and run again: {name}",
            )  # fmt: skip

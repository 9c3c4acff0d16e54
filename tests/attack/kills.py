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

_POINTS = {"crowd": 10}
"""At which a tool is killed, where it is not 14 times: the experiment takes long."""


def prepare() -> None:
    for name in RUNS:
        reference(name)


def _kill(name: str, place: float | str, overwriting: bool, folder: Path) -> str:
    """
    Args:
        place: among the events of the reference, from 0 to 1, or part of the name of a file that
            gets written by half, or is not given its name.
    """
    run = again(name, folder, finished=overwriting)
    if isinstance(place, str):
        events = FileEvents(folder / "out", kill_in=place)
    else:
        events = FileEvents(folder / "out", 1 + int(place * run.events))
    killed = run(folder, before=events.watch)
    expect(killed.status == -9 or not isinstance(place, str), f"{place} was not written")
    if killed.status != -9:  # it had fewer events than the reference, and ended
        expect(killed.status == 0, f"status {killed.status}: {killed.err[-300:]}")
    if (folder / "out").is_dir() and name != "train":  # Detectron2 writes where ours do not
        whole(folder / "out", remains=True)
    ran = run(folder, again=True)
    where = f"killed at event {events.count} of {run.events}, "
    said = " | ".join(ran.err.strip().splitlines()[-2:])
    expect(ran.status == 0, f"{where}run again it fails: {said[-400:]}")
    whole(folder / "out")
    found = differences(run.folder / "out", folder / "out")
    expect(not found, f"{where}then other results: {', '.join(found[:4])}")
    return RIGHT


def _seconds(name: str) -> int:
    """Of computing, at most."""
    return 200 if name == "crowd" else 60


def cases(rng: Random) -> Iterator[Case]:
    for name in RUNS:
        points = _POINTS.get(name, 14)
        for point in range(points):
            place = (point + rng.random()) / points
            overwriting = name == "demo" and point % 2 == 1
            yield Case(
                f"{name}-{point}" + "-overwriting" * overwriting,
                partial(_kill, name, place, overwriting),
                fault="3.4 a demo killed while overwriting" if overwriting
                else f"3 killed and run again: {name}",
                seconds=_seconds(name),
            )  # fmt: skip
    for name, file, fault in (
        ("train", "model_final", "3.1 model_final.pth cut off by a kill"),
        ("train", "model_0000001", "3.1 model_final.pth cut off by a kill"),
        ("train", "last_checkpoint", "3.2 a kill at last_checkpoint"),
        ("evaluate", "methods.json", ""), ("evaluate", "results.json", ""),
        ("analyse", "errors.json", ""),
        ("demo", "maps.npz", ""), ("demo", "index.html", ""),
        ("crowd", "model_final", ""), ("crowd", "candidates_train", ""), ("crowd", "figures", ""),
        ("crowd", "training.json", ""),
    ):  # fmt: skip
        yield Case(f"{name}-in-{file}", partial(_kill, name, file, False), fault,
                   seconds=_seconds(name))  # fmt: skip

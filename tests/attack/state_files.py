"""Files that tools left for themselves, cut off or of another shape: made again, or named."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch

from .case import RIGHT, Case, Refused, expect
from .material import picture, shipped
from .runs import again, reference
from .tools import differences, refusal, whole

__all__ = ["cases", "prepare"]

_JSON = {
    "list": "[]", "object": "{}", "null": "null", "number": "17", "string": '"rows"',
    "true": "true", "nested": "[[[]]]", "nan": "NaN", "strange": '{"image_id": [], "rows": 3}',
}  # fmt: skip
_STATES = {
    "evaluate": ("attack_a/odam/rows_0.jsonl", "attack_a/methods.json", "attack_a/odam/*.json"),
    "analyse": ("detections/rows_0.jsonl", "*.json"),
    "demo": ("*/maps.json", "index.html", "*/maps.npz"),
    "train": ("last_checkpoint", "model_final.pth"),
}


def prepare() -> None:
    for name in _STATES:
        reference(name)


def _altered(name: str, pattern: str, change: Callable[[Path], object], folder: Path) -> str:
    run = again(name, folder)
    paths = sorted((folder / "out").glob(pattern))
    if not paths:
        return RIGHT  # this version keeps no such file
    change(paths[0])
    ran = run(folder, again=True)
    if ran.status:
        return refusal(ran)
    whole(folder / "out")
    found = differences(run.folder / "out", folder / "out")
    expect(not found, f"status 0, and other results: {', '.join(found[:3])}")
    return RIGHT


def _cut(place: float, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(place * len(data))])


def _flip(place: float, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    path.write_bytes(data)


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _second_line(text: str, path: Path) -> None:
    """The first line says for which settings; what follows it is of another shape."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], text, *lines[2:]]) + "\n")


def _folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def _d_rise(change: Callable[[Path], object], folder: Path) -> str:
    """Sums of D-RISE: the maps are those of an uninterrupted run."""
    from odam_d2 import explain
    from odam_d2.modeling.settings import DRiseSettings

    def maps(place: Path, masks: int):
        settings = DRiseSettings(num_masks=masks, grid=4, batch_size=2, check_every=2, settled=1,
                                 state_dir=str(place))  # fmt: skip
        found = explain(shipped(), [picture(1)], ["class"], method="d_rise", d_rise=settings)
        return found[0]["instances"].odam_maps.values

    used = folder / "used"
    maps(used, 4)
    (state,) = used.iterdir()
    change(state)
    try:
        found = maps(used, 8)
    except (ValueError, OSError) as error:
        expect("\n" not in str(error) and state.name in str(error), f"refused by: {error}")
        return Refused(str(error))
    expect(torch.equal(found, maps(folder / "fresh", 8)), "other maps than in a fresh folder")
    return RIGHT


def _other_sums(path: Path) -> None:
    torch.save({"halves": torch.zeros(2, 1, 3, 3), "count": 4}, path)


def _no_sums(path: Path) -> None:
    torch.save([1, 2], path)


def _crowd_state(file: str, change: Callable, folder: Path) -> str:
    """The experiment's files."""
    from .stale import crowd_run

    first = crowd_run(folder, "used")
    shutil.copytree(folder / "used", folder / "fresh")
    path = next((folder / "used").rglob(file))
    change(path)
    later = {"model_final.pth": ["figures.json", "candidates_train.pth", "candidates_val.pth"]}
    for name in later.get(file, ["figures.json"] if file != "figures.json" else []):
        path.with_name(name).unlink()
    ran = crowd_run(folder, "used", check=False)
    if ran.status:
        return refusal(ran)
    found = differences(folder / "used", folder / "fresh")
    expect(not found, f"other results than before: {', '.join(found[:4])}")
    expect(first.status == 0, "the first run failed")
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for name, patterns in _STATES.items():
        for pattern in patterns:
            for what, change in _changes(pattern, rng):
                yield Case(f"{name}-{pattern.replace('/', ':')}-{what}",
                           partial(_altered, name, pattern, change),
                           _fault(name, pattern, what))  # fmt: skip
    fault = "3.7 truncated D-RISE files"
    for place in (0.0, rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.95)):
        yield Case(f"d-rise-cut-{place:.2f}", partial(_d_rise, partial(_cut, place)), fault)
    for change in (_other_sums, _no_sums, _folder_there):
        yield Case(f"d-rise{change.__name__}", partial(_d_rise, change), fault)
    for file in ("figures.json", "candidates_val.pth", "candidates_train.pth", "model_final.pth"):
        fault = "3.7 truncated figure files"
        if file == "model_final.pth":
            fault = "3.1 model_final.pth cut off (crowds)"
        yield Case(f"crowd-{file}-cut", partial(_crowd_state, file, partial(_cut, 0.5)), fault, 200)
    yield Case("crowd-figures.json-list", partial(_crowd_state, "figures.json",
        partial(_write, "[]")),
               "3.6 state files of another shape (crowds)", 200)  # fmt: skip


def _changes(pattern: str, rng: Random) -> Iterator[tuple[str, Callable]]:
    for place in (0.0, rng.uniform(0.01, 0.95), 0.999):
        yield f"cut-{place:.3f}", partial(_cut, place)
    yield "folder", _folder_there
    yield "dangling", _dangling
    if pattern.endswith((".json", ".jsonl", "last_checkpoint")):
        for what, text in _JSON.items():
            yield what, partial(_write, text)
    if pattern.endswith(".jsonl"):
        for what, text in _JSON.items():
            yield f"second-line-{what}", partial(_second_line, text)
        yield "second-line-pair", partial(_second_line, '["no such image", {}]')
        yield "second-line-id", partial(_second_line, '[1, {"rows": 7}]')
    if not pattern.endswith(".html"):
        yield "flipped", partial(_flip, rng.random())


def _fault(name: str, pattern: str, what: str) -> str:
    if name == "train":
        return {"model_final.pth": "3.1 model_final.pth cut off", "last_checkpoint":
                "3.2 last_checkpoint cut off"}.get(pattern, "")  # fmt: skip
    return f"3.6 state files of another shape ({name})"

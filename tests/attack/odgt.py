"""Lines of .odgt files of all kinds: read as they say, or refused by the line's number."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from PIL import Image

from .case import RIGHT, Case, Refused, expect, put

__all__ = ["cases"]

_ODD = {
    "none": None, "string": "7", "list": [1], "object": {"a": 1}, "true": True, "nan": float("nan"),
    "inf": float("inf"), "1e308": 1e308, "huge": 10**400, "negative": -5,
}  # fmt: skip


def _person(rng: Random) -> dict:
    x, y, w, h = (rng.randrange(1, 90) for _ in range(4))
    return {
        "tag": rng.choice(["person", "person", "mask"]),
        "fbox": [x, y, w, h], "vbox": [x, y, w, max(1, h // 2)],
        "hbox": [x, y, max(1, w // 3), max(1, h // 4)],
        "extra": rng.choice([{}, {"ignore": 1}, {"ignore": 0, "box_id": 3}]),
        "head_attr": rng.choice([{}, {"ignore": 1}, {"occ": 0}]),
    }  # fmt: skip


def _records(rng: Random, count: int) -> list[dict]:
    return [{"ID": f"image,{k}", "gtboxes": [_person(rng) for _ in range(rng.randrange(1, 5))]}
            for k in range(count)]  # fmt: skip


def load(text: bytes, folder: Path, box: str = "full") -> list | Refused:
    from odam_d2.data.crowdhuman import load_odgt

    path = folder / "annotation.odgt"
    path.write_bytes(text)
    try:
        return load_odgt(str(path), str(folder / "images"), box)
    except ValueError as error:
        expect("\n" not in str(error), f"not one line: {error}")
        expect(path.name in str(error), f"the file is not named: {error}")
        return Refused(str(error))


def _lines(records: list) -> bytes:
    return "\n".join(json.dumps(x) for x in records).encode()


def _good(seed: int, box: str, end: str, folder: Path) -> str:
    """As a reader written from the format's description understands it."""
    records = _records(Random(seed), 3)
    found = load(_lines(records).replace(b"\n", end.encode()) + end.encode(), folder, box)
    expect(not isinstance(found, Refused), f"a good file is refused: {found}")
    key = {"full": "fbox", "visible": "vbox", "head": "hbox"}[box]
    expect([x["image_id"] for x in found] == [r["ID"] for r in records], "other images")
    for entry, record in zip(found, records, strict=True):
        expect(entry["file_name"].endswith(record["ID"] + ".jpg"), f"file {entry['file_name']}")
        for annotation, person in zip(entry["annotations"], record["gtboxes"], strict=True):
            ignored = person["tag"] != "person" or person["extra"].get("ignore", 0) == 1
            ignored |= box == "head" and person["head_attr"].get("ignore", 0) == 1
            expect(
                list(annotation["bbox"]) == person[key],
                f"box {annotation['bbox']}, not {person[key]}",
            )
            expect(
                bool(annotation["iscrowd"]) == ignored,
                f"iscrowd {annotation['iscrowd']} of {person}",
            )
    return RIGHT


def _changed(path: tuple, value: object, line: int, must: bool, folder: Path) -> str:
    """One value of one line is another: refused by that line's number, or of no effect."""
    records = _records(Random(1), 3)
    for record in records:  # so that the changed one counts
        record["gtboxes"] = [
            {**record["gtboxes"][0], "tag": "person", "extra": {}, "head_attr": {}}
        ]
    put(records[line], path, value)
    found = load(_lines(records), folder)
    if isinstance(found, Refused):
        expect(f"line {line + 1}" in found, f"line {line + 1} is not named: {found}")
        return found
    refused = _check(found, folder)
    expect(refused or not must, "was to be refused")
    for entry in found if refused is None else []:
        for annotation in entry["annotations"]:
            box = annotation["bbox"]
            expect(len(box) == 4 and all(abs(v) <= 1e9 for v in box), f"box {box} is accepted")
    return refused or RIGHT


def _check(entries: list, folder: Path) -> Refused | None:
    """What tools say of the data set before a run."""
    from odam_d2.data.checks import DatasetUse, check_entries
    from odam_d2.errors import UserError

    for entry in entries:
        Path(entry["file_name"]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 100)).save(entry["file_name"])
    try:
        use = DatasetUse(training=True, annotations=True, image_ids=True)
        check_entries("attack", entries, {"thing_classes": ["person"]}, use)
    except UserError as error:
        expect("box" in str(error) and "\n" not in str(error), f"refused by: {error}")
        return Refused(str(error))
    return None


def _bytes(text: bytes, must: bool, folder: Path) -> str:
    found = load(text, folder)
    if isinstance(found, Refused):
        return found
    expect(not must, f"was to be refused, and is read as {str(found)[:100]}")
    return RIGHT


def _noise(seed: int, folder: Path) -> str:
    rng = Random(seed)
    data = bytearray(_lines(_records(rng, 3)))
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    found = load(bytes(data), folder)
    return found if isinstance(found, Refused) else RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for number in range(20):
        box, end = rng.choice(["full", "visible", "head"]), rng.choice(["\n", "\r\n", "\n\n"])
        yield Case(f"good-{number}-{box}", partial(_good, rng.randrange(2**32), box, end))
    for what, value in _ODD.items():
        large = what in ("nan", "inf", "1e308", "huge")
        for index in range(4):
            must = what not in ("negative", "true")
            fault = "1.8 boxes of 1e30 pixels (.odgt)" if what in ("1e308",) else ""
            yield Case(f"fbox-{index}-{what}",
                       partial(_changed, ("gtboxes", 0, "fbox", index), value, index % 3, must),
                       fault)  # fmt: skip
        for key in ("fbox", "tag", "extra", "head_attr"):
            must = key == "fbox" or (key == "tag" and what == "none" and False)
            yield Case(f"{key}-{what}", partial(_changed, ("gtboxes", 0, key), value, 1, must))
        for key in ("ID", "gtboxes"):
            must = not (key == "ID" and what == "string")
            yield Case(
                f"{key}-{what}", partial(_changed, (key,), value, 2, (must and not large) or must)
            )
        yield Case(f"person-{what}", partial(_changed, ("gtboxes", 0), value, 1, True))
        yield Case(
            f"ignore-{what}",
            partial(
                _changed,
                (
                    "gtboxes",
                    0,
                    "extra",
                ),
                {"ignore": value},
                1,
                False,
            ),
        )
    for value in (1e9, 1e12, 1e30):
        yield Case(f"fbox-{value:g}", partial(_changed, ("gtboxes", 0, "fbox", 2), value * 10, 1,
            True),
                   "1.8 boxes of 1e30 pixels (.odgt)")  # fmt: skip
    for key in ("ID", "gtboxes"):
        yield Case(f"no-{key}", partial(_changed, (key,), KeyError, 1, True))
    for key in ("fbox", "tag"):
        yield Case(f"no-{key}", partial(_changed, ("gtboxes", 0, key), KeyError, 1, True))
    for key in ("vbox", "hbox", "extra", "head_attr"):
        yield Case(f"no-{key}", partial(_changed, ("gtboxes", 0, key), KeyError, 1, False))
    for count in (0, 1, 3, 5, 40):
        yield Case(
            f"fbox-of-{count}", partial(_changed, ("gtboxes", 0, "fbox"), [1.0] * count, 0, True)
        )
    good = _lines(_records(Random(3), 2))
    raw = {
        "empty": b"", "lines": b"\n\n\n", "not-json": b"hello", "zero": b"\0" * 100,
        "half": good[: len(good) // 3],
        "twice": good + b"\n" + good, "list": b"[1, 2]", "number": b"7",
        "latin": b'{"ID": "\xe9", "gtboxes": []}',
        "deep": b"[" * 100000 + b"]" * 100000, "deep-object": b'{"ID":' * 50000,
    }  # fmt: skip
    for what, text in raw.items():
        yield Case(f"bytes-{what}", partial(_bytes, text, True))
    yield Case("bytes-bom", partial(_bytes, b"\xef\xbb\xbf" + good, False))
    for number in range(60):
        yield Case(f"noise-{number}", partial(_noise, rng.randrange(2**32)))

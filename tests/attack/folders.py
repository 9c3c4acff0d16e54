"""Folders of pictures with odd ones among them: the others are explained."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from .case import RIGHT, Case, expect
from .material import config_file, crop
from .tools import leftovers, refusal, tool, whole

__all__ = ["cases"]


def _picture(name: str, size: tuple[int, int] | None, folder: Path) -> None:
    image = (
        crop(2)
        if size is None
        else np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    )
    Image.fromarray(image).save(folder / "written.png")
    (folder / "written.png").rename(folder / name)


def _bytes(name: str, data: bytes, folder: Path) -> None:
    (folder / name).write_bytes(data)


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "b.png")


def _socket(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)
    socket.socket(socket.AF_UNIX).bind("b.png")
    os.chdir(before)


def _link(target: str, folder: Path) -> None:
    (folder / "b.png").symlink_to(target)


def _folder(folder: Path) -> None:
    (folder / "b.png").mkdir()


def _growing(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    threading.Thread(target=lambda: None).start()


_ODD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "wide": (partial(_picture, "b.png", (5000, 1)), "either", "5 a picture of 5000 x 1"),
    "high": (partial(_picture, "b.png", (1, 5000)), "either", "5 a picture of 5000 x 1"),
    "dot": (partial(_picture, "b.png", (1, 1)), "either", ""),
    "thin": (partial(_picture, "b.png", (2, 300)), "either", ""),
    "line-break": (partial(_picture, "b\nc.png", None), "either", "5 a line break in the name"),
    "carriage": (partial(_picture, "b\rc.png", None), "either", ""),
    "escape": (partial(_picture, "b\x1b[31m.png", None), "either", ""),
    "html": (partial(_picture, "<script>b&amp'\".png", None), "right", ""),
    "spaces": (partial(_picture, "  b .png", None), "right", ""),
    "percent": (partial(_picture, "b%20c#d?e.png", None), "right", ""),
    "unicode": (partial(_picture, "Köln 東京 \u202e.png", None), "right", ""),
    "not-utf8": (
        partial(_picture, os.fsdecode(b"b\xff.png"), None),
        "either",
        "5 a name that is no text",
    ),
    "long": (partial(_picture, "b" * 250 + ".png", None), "either", ""),
    "index": (partial(_picture, "index.html.png", None), "right", ""),
    "glob": (partial(_picture, "b[1]*.png", None), "right", ""),
    "dash": (partial(_picture, "--output.png", None), "right", ""),
    "same-stem": (partial(_picture, "a.jpg", None), "right", ""),
    "case": (partial(_picture, "A.png", None), "right", ""),
    "dots": (partial(_picture, "b..png", None), "right", ""),
    "fifo": (_fifo, "left-out", "5 a FIFO"),
    "socket": (_socket, "left-out", ""),
    "folder": (_folder, "left-out", ""),
    "loop": (partial(_link, "b.png"), "left-out", ""),
    "dangling": (partial(_link, "nowhere"), "left-out", ""),
    "device": (partial(_link, "/dev/zero"), "left-out", ""),
    "random": (partial(_link, "/dev/urandom"), "left-out", ""),
    "empty": (partial(_bytes, "b.png", b""), "left-out", ""),
    "text": (partial(_bytes, "b.png", b"hello\n" * 100), "left-out", ""),
    "growing": (_growing, "left-out", ""),
}


def _demo(add: Callable[[Path], object], expected: str, single: bool, folder: Path) -> str:
    pictures = folder / "pictures"
    pictures.mkdir()
    add(pictures)
    odd = os.listdir(pictures)
    for name in ("a.png", "z.png"):
        Image.fromarray(crop(1)).save(pictures / name)
    inputs = [f"pictures/{x}" for x in ("a.png", *odd, "z.png")] if single else ["pictures"]
    ran = tool("demo", "--config-file", config_file(), "--input", *inputs, "--output", "out",
               "--targets", "class", "--max-detections", "1", "--opts", "INPUT.MIN_SIZE_TEST",
               "144",
               "MODEL.DEVICE", "cpu", cwd=folder)  # fmt: skip
    last = ran.err.strip().splitlines()[-1:]
    if single and ran.status == 1 and not (folder / "out").exists() and expected == "left-out":
        return refusal(ran)  # what was named is told at once
    made = [x.parent.name for x in (folder / "out").glob("*/maps.json")]
    made = [x.removesuffix("-2") for x in made]
    expect({"a", "z"} <= set(made), f"the others are not explained, only {made}: {last}")
    expect((folder / "out" / "index.html").is_file(), "no page")
    expect(not leftovers(folder / "out"), "left over")
    whole(folder / "out")
    if ran.status == 0:
        expect(expected != "left-out" or len(made) == 2, f"{made}")
        expect(expected != "left-out" or not single, f"status 0, {odd} is no picture")
        return RIGHT
    sentence = refusal(ran)
    expect(expected != "right", f"a good picture is left out: {sentence}")
    expect(
        any(x[:20].split("\n")[0].split("\r")[0].strip("\x1b\udcff")[:1] in sentence for x in odd),
        "not named",
    )
    return sentence


def cases(rng: Random) -> Iterator[Case]:
    for what, (add, expected, fault) in _ODD.items():
        for single in (False, True):
            if what in ("dash",) and single:
                continue
            name = f"{what}-{'named' if single else 'in-folder'}"
            yield Case(name, partial(_demo, add, expected, single), fault, seconds=20)

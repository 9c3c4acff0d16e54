"""Picture files of all formats, orientations and depths, broken ones too, against known pixels."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from .case import RIGHT, Case, Refused, Wrong, expect
from .material import SMALL, config_file, crop
from .tools import judge, tool

__all__ = ["cases"]

_TURNS = {
    2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
    6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270,
}  # fmt: skip
"""How an upright picture is stored, by its orientation tag."""

_MODES = {
    "png": ("RGB", "L", "RGBA", "P", "LA", "1"), "jpg": ("RGB", "L", "CMYK"),
    "tif": ("RGB", "L", "RGBA", "P", "CMYK", "1"), "webp": ("RGB", "RGBA"),
    "bmp": ("RGB", "L", "P"), "ppm": ("RGB", "L"),
}  # fmt: skip
_TAGGED = ("png", "jpg", "tif", "webp")


def read(path: Path) -> np.ndarray | Refused:
    """(H, W, 3) as the tools see it, or the sentence of a refusal."""
    from odam_d2.demo import read_picture
    from odam_d2.errors import UserError

    try:
        return read_picture(str(path))
    except UserError as error:
        expect("\n" not in str(error) and str(error), f"not one line: {error}")
        return Refused(str(error))


def _rectangle(rng_seed: int) -> Image.Image:
    """Not square, nor symmetric, smooth enough for JPEG."""
    return Image.fromarray(crop(rng_seed % 20)[:96, :128])


def _compare(path: Path, truth: np.ndarray, most: float) -> str:
    seen = read(path)
    if isinstance(seen, Refused):
        return seen
    expect(
        seen.dtype == np.uint8 and seen.shape == truth.shape,
        f"{seen.dtype} {seen.shape}, not {truth.shape}",
    )
    error = np.abs(seen.astype(int) - truth.astype(int)).mean()
    expect(error <= most, f"pixels differ by {error:.1f} on average")
    return RIGHT


def _oriented(kind: str, mode: str, tag: int, seed: int, folder: Path) -> str:
    upright = _rectangle(seed).convert(mode)
    stored = upright.transpose(_TURNS[tag]) if tag in _TURNS else upright
    path, exif = folder / f"picture.{kind}", Image.Exif()
    if tag:
        exif[0x0112] = tag
    stored.save(path, exif=exif) if kind in _TAGGED else stored.save(path)
    if mode in ("RGBA", "LA"):
        upright = upright.convert("RGBA" if mode == "RGBA" else "LA")
    truth = np.asarray(upright.convert("RGB"))
    found = _compare(path, truth, 8 if kind in ("jpg", "webp") or mode in ("P", "CMYK") else 0.51)
    expect(found == RIGHT, f"a good picture is refused: {found}")
    return RIGHT


def _depth(kind: str, what: str, seed: int, folder: Path) -> str:
    """Grey of more than 8 bits: scaled by a documented rule, or refused; never dark."""
    grey = np.asarray(_rectangle(seed).convert("L"))
    arrays = {
        "16bit": (grey.astype(np.uint16) * 257), "12bit": grey.astype(np.uint16) * 16,
        "10bit": grey.astype(np.uint16) * 4, "8in16": grey.astype(np.uint16),
        "int32": grey.astype(np.int32) * 257, "float-1": grey.astype(np.float32) / 255,
        "float-255": grey.astype(np.float32), "float-65535": grey.astype(np.float32) * 257,
        "float-nan": np.where(grey > np.median(grey), np.nan, grey).astype(np.float32),
        "float-inf": np.where(grey > np.median(grey), np.inf, grey).astype(np.float32),
        "float-signed": grey.astype(np.float32) - 128, "float-huge": grey.astype(np.float32) * 1e30,
    }  # fmt: skip
    path = folder / f"picture.{kind}"
    Image.fromarray(arrays[what]).save(path)
    seen = read(path)
    if isinstance(seen, Refused):
        return seen
    expect(seen.shape == (*grey.shape, 3), f"shape {seen.shape}")
    if what in ("float-nan", "float-inf", "float-signed", "float-huge"):
        raise Wrong(
            f"{what} is read as values from {seen.min()} to {seen.max()}, and nothing is said"
        )
    same = np.corrcoef(seen[..., 0].ravel(), grey.ravel())[0, 1]
    expect(same > 0.98, f"correlation with the true picture {same:.2f}")
    brightest, true = int(seen.max()), int(grey.max())
    expect(brightest > 0.6 * true, f"brightest pixel {brightest}, of the true picture {true}")
    return RIGHT


def _colour16(seed: int, folder: Path) -> str:
    """16 bits a channel in PNG."""
    truth = np.asarray(_rectangle(seed))
    height, width = truth.shape[:2]
    rows = (truth.astype(">u2") * 257).reshape(height, -1)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    path = folder / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR",
        struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
                     + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b""))  # fmt: skip
    return _compare(path, truth, 1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _broken(kind: str, change: Callable[[bytearray], bytes], folder: Path) -> str:
    """Whatever bytes: a picture of the same shape, or a sentence."""
    buffer = io.BytesIO()
    _rectangle(3).save(buffer, {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}.get(kind, kind.upper()))
    path = folder / f"picture.{kind}"
    path.write_bytes(bytes(change(bytearray(buffer.getvalue()))))
    seen = read(path)
    if isinstance(seen, Refused):
        expect(path.name in seen, f"the file is not named: {seen}")
        return seen
    expect(
        seen.dtype == np.uint8 and seen.ndim == 3 and seen.shape[2] == 3,
        f"{seen.dtype} {seen.shape}",
    )
    expect(seen.nbytes < 2**28, f"{seen.nbytes} bytes")
    return RIGHT


def _cut(place: float, data: bytearray) -> bytes:
    return data[: int(place * len(data))]


def _noise(seed: int, count: int, data: bytearray) -> bytes:
    rng = Random(seed)
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def _bomb(width: int, height: int, folder: Path) -> str:
    """A header that promises a picture of any size."""
    path = folder / "bomb.png"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
                     + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND",
                         b""))  # fmt: skip
    seen = read(path)
    expect(isinstance(seen, Refused), f"read as {getattr(seen, 'shape', seen)}")
    return seen


def _animated(kind: str, folder: Path) -> str:
    frames = [_rectangle(k) for k in range(3)]
    path = folder / f"picture.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return _compare(path, np.asarray(frames[0]), 12)


def _same_in_all_tools(kind: str, tag: int, folder: Path) -> str:
    """The demo and the evaluation find the same in one file; its size in the file is upright."""
    import json

    from odam_d2.visualization.maps_file import load_maps  # noqa: F401  (what the demo writes)

    from .material import coco, register

    path = coco(folder / "data", 1)
    upright = Image.open(folder / "data" / "0.png").convert("RGB")
    exif, content = Image.Exif(), json.loads(path.read_text())
    exif[0x0112] = tag
    (upright.transpose(_TURNS[tag]) if tag in _TURNS else upright).save(
        folder / "data" / f"turned.{kind}", exif=exif
    )
    content["images"][0]["file_name"] = f"turned.{kind}"
    path.write_text(json.dumps(content))
    small = ["INPUT.MIN_SIZE_TEST", "200", "MODEL.DEVICE", "cpu"]
    demo = tool("demo", "--config-file", config_file(), "--input", f"data/turned.{kind}",
        "--targets",
                "class", "--max-detections", "100", "--opts", *small, cwd=folder)  # fmt: skip
    expect(demo.status == 0, f"the demo fails: {demo.err[-300:]}")
    (listing,) = (folder / "output" / "demo").glob("*/maps.json")
    boxes = sorted(
        tuple(round(v, 1) for v in x["box"]) for x in json.loads(listing.read_text())["maps"]
    )
    ran = tool("analyze_errors", "--config-file", config_file(), "--output", "out", *SMALL,
               "DATASETS.TEST", "('attack_a',)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5",
               before=lambda: register(path), cwd=folder)  # fmt: skip

    def right():
        (rows,) = (folder / "out").rglob("rows_0.jsonl")
        line = json.loads(rows.read_text().splitlines()[1])
        record = line["content"][1]
        found = sorted(tuple(round(v, 1) for v in box) for box in record["boxes"])
        expect(found == boxes, f"the demo finds {boxes[:2]}, the analysis {found[:2]}")

    return judge(ran, folder / "out", right)


def cases(rng: Random) -> Iterator[Case]:
    for kind, modes in _MODES.items():
        for mode in modes:
            tags = range(9) if kind in _TAGGED else (0,)
            for tag in tags:
                fault = "1.7 TIFF orientation" if kind == "tif" and tag > 1 else ""
                yield Case(f"{kind}-{mode}-orientation-{tag}",
                           partial(_oriented, kind, mode, tag, rng.randrange(20)),
                           fault)  # fmt: skip
    for kind in ("png", "tif"):
        for what in ("16bit", "12bit", "10bit", "8in16", "int32", "float-1", "float-255",
            "float-65535",
                     "float-nan", "float-inf", "float-signed", "float-huge"):  # fmt: skip
            if kind == "png" and what.startswith(("float", "int32")):
                continue
            fault = "1.7 12 bits in 16" if what in ("12bit", "10bit", "8in16") else ""
            fault = "1.7 floats" if what.startswith("float") else fault
            yield Case(f"{kind}-{what}", partial(_depth, kind, what, rng.randrange(20)), fault)
    yield Case("png-colour-16bit", partial(_colour16, rng.randrange(20)))
    for kind in ("png", "jpg", "tif", "webp", "bmp", "ppm"):
        for number in range(12):
            yield Case(
                f"{kind}-cut-{number}", partial(_broken, kind, partial(_cut, rng.random() ** 2))
            )
            noise = partial(_noise, rng.randrange(2**32), 1 + number * number)
            yield Case(f"{kind}-noise-{number}", partial(_broken, kind, noise))
    for size in ((60000, 60000), (2**31 - 1, 1), (1, 2**31 - 1), (200000, 200000), (0, 10)):
        yield Case(f"bomb-{size[0]}x{size[1]}", partial(_bomb, *size))
    for kind in ("gif", "webp", "png", "tif"):
        yield Case(f"animated-{kind}", partial(_animated, kind))
    for kind, tag in (("tif", 6), ("tif", 3), ("png", 6), ("jpg", 8), ("webp", 5), ("png", 1)):
        yield Case(f"all-tools-{kind}-{tag}", partial(_same_in_all_tools, kind, tag),
                   "1.7 demo and evaluation read one file differently" if tag != 1
                       else "")  # fmt: skip

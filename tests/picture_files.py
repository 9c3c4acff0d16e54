"""Picture files for tests: turned, of odd depths, ordinary ones of many modes."""

import os
import struct

import cv2
import numpy as np
from PIL import Image

__all__ = ["COLORS", "SHADES", "STORED", "H", "W", "ordinary", "stored", "tiff"]

H, W = 6, 9
# How a picture is stored so that a tag says how to turn it upright: what undoes the tag's turn.
STORED = {
    1: None,
    2: Image.FLIP_LEFT_RIGHT,
    3: Image.ROTATE_180,
    4: Image.FLIP_TOP_BOTTOM,
    5: Image.TRANSPOSE,
    6: Image.ROTATE_90,
    7: Image.TRANSVERSE,
    8: Image.ROTATE_270,
}
SHADES = np.arange(H * W).reshape(H, W)  # no two pixels alike, the last one 53
COLORS = np.stack([4 * SHADES, 216 - 4 * SHADES, 2 * SHADES + 50], axis=2).astype(np.uint8)


def stored(path, pixels, tag=1, **options):
    """Save an upright array so that ``tag`` is needed to see it upright."""
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = tag
    if STORED[tag] is not None:
        picture = picture.transpose(STORED[tag])
    picture.save(path, exif=exif, **options)
    return str(path)


def tiff(path, pixels, bits, interpretation=1, tag=1):
    """A TIFF file of one strip, (H, W) or (H, W, 3) of 12 or 16 bits, as Pillow cannot write it."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else 3
    if bits == 12:  # two values in three bytes, rows begin with a byte
        digits = ["".join(f"{value:03x}" for value in row) for row in pixels.tolist()]
        data = b"".join(bytes.fromhex(row + "0" * (len(row) % 2)) for row in digits)
    else:
        data = pixels.astype("<u2").tobytes()
    entries = [
        (256, width), (257, height), (258, bits), (259, 1), (262, interpretation), (273, 0),
        (274, tag), (277, channels), (278, height), (279, len(data)),
    ]  # fmt: skip
    place = 8 + 2 + 12 * len(entries) + 4
    body = struct.pack("<H", len(entries))
    for key, value in entries:
        if key == 258 and channels == 3:
            body += struct.pack("<HHII", key, 3, 3, place)
        else:
            value = place + 6 if key == 273 else value
            body += struct.pack("<HHII", key, 4, 1, value)
    depths = struct.pack("<3H", bits, bits, bits)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + b"\0" * 4 + depths + data)
    return str(path)


def ordinary(folder):
    """Files of 8 bits and less, in many modes."""
    picture = Image.fromarray(COLORS)
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.fromarray((SHADES * 4).astype(np.uint8)))
    palette = picture.quantize(8)
    palette.info["transparency"] = 0
    kinds = {
        "rgb.png": picture, "rgb.jpg": picture, "rgb.webp": picture, "rgb.bmp": picture,
        "rgb.tif": picture, "grey.png": picture.convert("L"), "bit.png": picture.convert("1"),
        "rgba.png": transparent, "la.png": transparent.convert("LA"), "palette.png": palette,
        "cmyk.jpg": picture.convert("CMYK"), "cmyk.tif": picture.convert("CMYK"),
        "ycbcr.tif": picture.convert("YCbCr"), "rgb.gif": picture,
    }  # fmt: skip
    for name, of_kind in kinds.items():
        of_kind.save(folder / name)
    stored(folder / "turned.jpg", COLORS, 6)
    stored(folder / "turned.png", COLORS, 7)
    cv2.imwrite(str(folder / "deep.png"), COLORS.astype(np.uint16) * 256)
    return sorted(os.listdir(folder))

"""What every tool sees in a picture: orientation, ranges of values, and Detectron2's own reader."""

import logging
import os
import socket
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from picture_files import COLORS, SHADES, STORED, H, W, ordinary, stored, tiff
from PIL import Image

from odam_d2.data.pictures import PictureHandler, read_picture
from odam_d2.errors import UserError


def in_grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "jpg", "webp"])
def test_colors_are_upright_in_every_format(tag, kind, tmp_path):
    large = np.kron(COLORS, np.ones((16, 16, 1), np.uint8))  # blocks survive compression
    options = {"lossless": True} if kind == "webp" else {}
    path = stored(tmp_path / f"x.{kind}", large, tag, **options)
    shown = read_picture(path)
    assert shown.shape == large.shape
    tolerance = 12 if kind == "jpg" else 0
    assert np.abs(shown[8::16, 8::16].astype(int) - COLORS).max() <= tolerance


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "pixels", "white"),
    [
        ("png", (SHADES * 1200).astype(np.uint16), 65535),
        ("tif", (SHADES * 1200).astype(np.uint16), 65535),
        ("png", (SHADES * 70).astype(np.uint16), 4095),
        ("tif", (SHADES * 70).astype(np.uint16), 4095),
        ("tif", (SHADES / 53).astype(np.float32), 1),
        ("tif", (SHADES * 4).astype(np.uint8), 255),
    ],
)
def test_grey_is_upright_and_scaled(tag, kind, pixels, white, tmp_path):
    shown = read_picture(stored(tmp_path / f"x.{kind}", pixels, tag))
    assert (shown == in_grey(np.rint(pixels.astype(float) / white * 255))).all()


@pytest.mark.parametrize(
    ("dtype", "most", "white"),
    [
        (np.uint16, 255, 255),
        (np.uint16, 256, 1023),
        (np.uint16, 1023, 1023),
        (np.uint16, 1024, 4095),
        (np.uint16, 4080, 4095),
        (np.uint16, 4096, 16383),
        (np.uint16, 16384, 65535),
        (np.int32, 65536, 2**24 - 1),
        (np.int32, 2**31 - 1, 2**31 - 1),
        (np.float32, 0.5, 1),
        (np.float32, 1.04, 1),
        (np.float32, 26.0, 255),
        (np.float32, 267.0, 255),
        (np.float32, 1000.0, 1023),
        (np.float32, 60000.0, 65535),
    ],
)
def test_the_largest_value_says_what_is_white(dtype, most, white, tmp_path, caplog):
    path = tmp_path / "x.tif"
    values = np.array([[0, most // 2, most]], dtype=dtype)
    Image.fromarray(values).save(path)
    with caplog.at_level(logging.WARNING, "odam_d2.data.pictures"):
        shown = read_picture(str(path))
        read_picture(str(path))
    expected = np.clip(np.rint(values.astype(float) * 255 / white), 0, 255)
    assert (shown == in_grey(expected)).all()
    lines = [line for line in caplog.messages if str(path) in line]
    if white == 65535:  # what 16 bits are for
        assert lines == []
    else:  # once, though it was read twice
        assert len(lines) == 1
        assert lines[0].endswith(f"{white} is taken for white")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.array([[0, np.nan]], np.float32), "values that are not finite"),
        (np.array([[0, np.inf]], np.float32), "values that are not finite"),
        (np.array([[-0.5, 1]], np.float32), "negative values, down to -0.5"),
        (np.array([[0, 9]], np.float32), "go up to 9, where 1 or 255"),
        (np.array([[0, 1e30]], np.float32), r"go up to 1e\+30"),
        (np.array([[-1, 200]], np.int32), "negative values, down to -1"),
    ],
)
def test_ranges_that_say_nothing_are_refused(values, sentence, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"^'.*x\.tif' cannot be read as an image: .*{sentence}"):
        read_picture(str(tmp_path / "x.tif"))


def test_what_resampling_adds_is_cut_off(tmp_path):
    Image.fromarray(np.array([[-0.02, 0.5, 1.03]], np.float32)).save(tmp_path / "x.tif")
    assert read_picture(tmp_path / "x.tif")[0, :, 0].tolist() == [0, 128, 255]


def test_what_a_tiff_file_states(tmp_path):
    """12 bits per sample are 12 bits in a dark picture too; white may be zero."""
    path = tiff(tmp_path / "12.tif", SHADES, bits=12)
    assert (read_picture(path) == in_grey(np.rint(SHADES * 255 / 4095))).all()
    path = tiff(tmp_path / "inverted.tif", SHADES * 70, bits=16, interpretation=0)
    assert (read_picture(path) == 255 - in_grey(np.rint(SHADES * 70 * 255 / 4095))).all()


def test_a_portable_graymap_states_its_white(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">2H", 100, 4095))
    assert read_picture(tmp_path / "x.pgm")[0, :, 0].tolist() == [6, 255]  # 100 / 4095 * 255 = 6.2
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">2H", 0, 50))
    assert read_picture(tmp_path / "dark.pgm")[0, :, 0].tolist() == [0, 3]


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_colors(tag, kind, tmp_path):
    """Of Pillow's, only the higher half of each value is seen: 12 bits would be black."""

    def saved(name, values):
        path = tmp_path / f"{name}.{kind}"
        if kind == "tif":
            return tiff(path, turned(values), 16, interpretation=2, tag=tag)
        cv2.imwrite(str(path), turned(values)[..., ::-1])
        exif = Image.Exif()
        exif[0x0112] = tag
        content, chunk = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:33] + chunk + content[33:])  # after the header
        return str(path)

    def turned(values):
        channels = [Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(values, 2, 0)]
        if STORED[tag] is not None:
            channels = [c.transpose(STORED[tag]) for c in channels]
        return np.stack([np.asarray(c) for c in channels], axis=2)

    deep = COLORS.astype(np.uint16) * 256
    assert (read_picture(saved("full", deep)) == COLORS).all()
    path = saved("few", COLORS.astype(np.uint16) * 16)
    if kind == "tif" and tag >= 5:  # OpenCV fails there
        with pytest.raises(UserError, match="its colours use few of their 16 bits"):
            read_picture(path)
    else:
        expected = np.rint(COLORS.astype(float) * 16 * 255 / 4095)
        assert (read_picture(path) == expected).all()


def test_colors_of_more_than_14_bits_are_read_as_by_detectron2(tmp_path):
    """The least that needs a 15th bit, 2^14; what is below has the higher half of its bits."""
    colors = np.full((H, W, 3), 2**14 - 1, np.uint16)
    colors[0, 0] = 2**14
    path = str(tmp_path / "deep.png")
    cv2.imwrite(path, colors)
    shown = read_picture(path)
    assert (shown == read_image(path, format="RGB")).all()
    assert (shown[0, 0].tolist(), shown[1, 1].tolist()) == ([64] * 3, [63] * 3)


@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L", "YUV-BT.601"])
def test_ordinary_files_are_detectrons_to_the_bit(image_format, tmp_path):
    for name in ordinary(tmp_path):
        path = str(tmp_path / name)
        expected = read_image(path, format=image_format)
        found = read_image(PictureHandler.PREFIX + path, format=image_format)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), name
        assert np.array_equal(read_picture(path), read_image(path, format="RGB")), name


def test_other_files_are_one_picture_for_the_demo_and_for_detectron(tmp_path):
    paths = [
        stored(tmp_path / "turned.tif", COLORS, 6),
        stored(tmp_path / "deep.png", (SHADES * 70).astype(np.uint16), 8),
        stored(tmp_path / "float.tif", (SHADES / 53).astype(np.float32)),
    ]
    for path in paths:
        found = read_image(PictureHandler.PREFIX + path, format="BGR")
        assert np.array_equal(found[..., ::-1], read_picture(path))
        assert not np.array_equal(found, read_image(path, format="BGR"))


@pytest.mark.parametrize("kind", ["gif", "webp", "tif", "png"])
def test_the_first_frame_is_read_and_said(kind, tmp_path, caplog):
    frames = [Image.fromarray(np.full((H, W, 3), value, np.uint8)) for value in (60, 120, 180)]
    path = tmp_path / f"x.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.INFO, "odam_d2.data.pictures"):
        assert (read_picture(path) == 60).all()
    assert f"{str(path)!r}: the first of its 3 frames or pages is read" in caplog.messages


def test_transparency_is_ignored_and_said(tmp_path, caplog):
    path = tmp_path / "x.png"
    Image.fromarray(np.dstack([COLORS, np.zeros((H, W), np.uint8)])).save(path)
    with caplog.at_level(logging.INFO, "odam_d2.data.pictures"):
        assert (read_picture(path) == COLORS).all()
    assert f"{str(path)!r}: its transparency is ignored" in caplog.messages


class TestRefused:
    def complaint(self, path):
        with pytest.raises(UserError) as error:
            read_picture(str(path))
        sentence = str(error.value)
        assert sentence.startswith(f"{str(path)!r} cannot be read as an image: ")
        assert "\n" not in sentence
        return sentence

    def test_what_is_no_regular_file_is_not_opened(self, tmp_path):
        os.mkfifo(tmp_path / "fifo.png")  # opening it would wait for a writer for ever
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / "s.png"))
        sentences = []
        names = ["fifo", "folder", "dangling", "s"]

        def read_all():
            sentences.extend(self.complaint(tmp_path / f"{name}.png") for name in names)
            sentences.append(self.complaint("/dev/zero"))

        reader = threading.Thread(target=read_all, daemon=True)
        reader.start()
        reader.join(timeout=20)
        assert not reader.is_alive()
        reasons = ["no regular file", "a folder", "No such file", "no regular file"]
        for sentence, reason in zip(sentences, [*reasons, "no regular file"], strict=True):
            assert reason in sentence

    def test_broken_files(self, tmp_path):
        Image.fromarray(COLORS).save(tmp_path / "whole.png")
        whole = (tmp_path / "whole.png").read_bytes()
        for number, content in enumerate([b"", b"some text", whole[:-30], whole[:20]]):
            path = tmp_path / f"{number}\n<b>'.png"
            path.write_bytes(content)
            self.complaint(path)

    def test_files_that_are_programs(self, tmp_path):
        path = tmp_path / "x.png"
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\n")
        assert "EPS files are not made of pixels" in self.complaint(path)

    def test_a_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 54 are more than twice that
        Image.fromarray(COLORS).save(tmp_path / "x.png")
        assert "decompression bomb" in self.complaint(tmp_path / "x.png")


def test_the_address_is_for_reading_only(tmp_path):
    with pytest.raises(ValueError, match="for reading bytes only"):
        PathManager.open(f"{PictureHandler.PREFIX}{tmp_path}/x.png", "wb")

"""From names on the command line to pictures, and names of files."""

import os

import numpy as np
import pytest
from PIL import Image

from odam_d2.demo import expand_inputs, read_picture
from odam_d2.demo.names import slug, unique_names
from odam_d2.errors import UserError


class TestInputs:
    def test_order_duplicates_and_what_counts(self, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        names = ["b.JPG", "a.png", "notes.txt", ".hidden.png", "c[1].png", "c1.png"]
        for name in names:
            (folder / name).touch()
        (folder / "deeper").mkdir()
        (folder / "deeper" / "d.png").touch()

        def names_of(*inputs):
            return [os.path.basename(path) for path in expand_inputs([str(i) for i in inputs])]

        assert names_of(folder) == ["a.png", "b.JPG", "c1.png", "c[1].png"]
        assert names_of(folder / "c1.png", folder) == ["c1.png", "a.png", "b.JPG", "c[1].png"]
        assert names_of(folder / "c[1].png") == ["c[1].png"]
        assert names_of(folder / "*.png", f"{folder}/../photos/a.png") == [
            "a.png", "c1.png", "c[1].png",
        ]  # fmt: skip
        assert names_of(folder / "**/d.*") == ["d.png"]
        assert names_of(folder / "notes.txt") == ["notes.txt"]

    def test_a_pattern_leaves_out_folders_only(self, tmp_path):
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
        os.mkfifo(tmp_path / "fifo.png")
        found = expand_inputs([str(tmp_path / "*.png")])  # what cannot be read is told later
        assert [os.path.basename(path) for path in found] == ["dangling.png", "fifo.png"]

    def test_rotation_by_exif(self, tmp_path):
        for name, mode in (("photo.png", np.uint8), ("deep.png", np.uint16)):
            pixels = np.zeros((6, 9), mode)
            pixels[0, 0] = np.iinfo(mode).max
            picture = Image.fromarray(pixels)
            exif = picture.getexif()
            exif[0x0112] = 6  # the camera was turned: the top row is the right column
            picture.save(tmp_path / name, exif=exif)
            shown = read_picture(str(tmp_path / name))
            assert shown.shape == (9, 6, 3)
            assert (shown[0, 5] == 255).all()
            assert shown.sum() == 3 * 255

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
    def test_kinds_of_pictures(self, tmp_path, mode):
        path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        Image.new("RGB", (9, 6), (255, 255, 255)).convert(mode).save(path)
        shown = read_picture(str(path))
        assert shown.shape == (6, 9, 3)
        assert shown.dtype == np.uint8
        assert (shown == 255).all()

    def test_16_bits_keep_their_shades(self, tmp_path):
        shades = np.linspace(0, 65535, 256).astype(np.uint16).reshape(8, 32)
        Image.fromarray(shades).save(tmp_path / "deep.png")
        shown = read_picture(str(tmp_path / "deep.png"))
        assert (shown[..., 0].reshape(-1) == np.arange(256)).all()
        assert (shown[..., 0] == shown[..., 2]).all()

    def test_reason_is_one_line(self, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"^'.*bad\.png' cannot be read as an image: [^\n]+$"):
            read_picture(str(tmp_path / "bad.png"))


def test_names():
    assert unique_names(["a", "A", "a-2", "b"], reserved=["B"]) == ["a", "A-2", "a-2-2", "b-2"]
    assert slug("class:traffic light") == "class-traffic-light"
    assert slug("../..") == "unnamed"
    assert len(slug("x" * 300)) == 40
    longest = "é" * 127 + "x"  # 255 bytes, as long as a name can be
    assert unique_names([longest] * 2) == [longest, "é" * 126 + "-2"]

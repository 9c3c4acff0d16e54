"""tools/demo.py with bad input, and stopped in the middle: one sentence, nothing half-written."""

import os
import pathlib

import pytest
from demo_tool import config, files_in, links, run, save_image

from odam_d2.core.errors import InputError
from odam_d2.demo import image_writer

pytest_plugins = ["demo_tool"]


class TestInterrupt:
    def test_finished_images_are_kept_and_on_the_page(self, tmp_path, capsys, fake):
        images = [save_image(tmp_path / f"{i}.png") for i in range(3)]
        out = tmp_path / "out"
        fake.interrupt_at = 2
        status, _, err = run(capsys, *config(tmp_path), "--input", *images, "--output", out)
        assert status == 130
        assert err == [f"interrupted after 1 of 3 images; they are in {out / 'index.html'}"]
        assert sorted(os.listdir(out)) == ["0", "index.html"]
        assert links(out / "index.html") == set(files_in(out)) - {"index.html"}

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
    def test_nothing_is_half_written(self, tmp_path, capsys, fake, monkeypatch, error):
        images = [save_image(tmp_path / f"{i}.png") for i in range(3)]
        out, sheet = tmp_path / "out", image_writer.contact_sheet

        def interrupted(*args, **kwargs):  # all overlays are written by then
            if kwargs["title"] == "1.png":
                raise error
            return sheet(*args, **kwargs)

        monkeypatch.setattr(image_writer, "contact_sheet", interrupted)
        status, _, err = run(capsys, *config(tmp_path), "--input", *images, "--output", out)
        assert (status, len(err)) == ((130, 1) if error is KeyboardInterrupt else (1, 1))
        assert sorted(os.listdir(out)) == ["0", "index.html"]

    def test_before_the_first_image_nothing_is_written(self, tmp_path, capsys, fake):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        fake.interrupt_at = 1
        status, _, err = run(capsys, *config(tmp_path), "--input", image, "--output", out)
        assert (status, err) == (130, ["interrupted after 0 of 1 images"])
        assert not out.exists()


class TestBadInput:
    def complaint(self, capsys, tmp_path, *argv, status=1):
        """The sentence of a call that must fail without writing anything."""
        before = files_in(tmp_path)
        found, _, err = run(capsys, *argv)
        assert found == status
        assert len(err) == 1
        assert err[0].startswith("error: ")
        assert files_in(tmp_path) == before
        return err[0].removeprefix("error: ")

    @pytest.fixture(autouse=True)
    def place(self, tmp_path, fake):
        self.image = save_image(tmp_path / "street.png")
        self.out = tmp_path / "out"
        self.rest = [*config(tmp_path), "--output", self.out]

    def test_missing_file(self, capsys, tmp_path):
        text = self.complaint(capsys, tmp_path, *self.rest, "--input", self.image, "no.jpg")
        assert text == "input 'no.jpg' does not exist"

    def test_pattern_without_match(self, capsys, tmp_path):
        pattern = f"{tmp_path}/*.gif"
        text = self.complaint(capsys, tmp_path, *self.rest, "--input", pattern)
        assert text == f"no file matches {pattern!r}"

    def test_empty_folder(self, capsys, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "notes.txt").touch()
        text = self.complaint(capsys, tmp_path, *self.rest, "--input", tmp_path / "empty")
        assert "holds no image" in text

    def test_corrupt_image_alone(self, capsys, tmp_path):
        (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
        text = self.complaint(capsys, tmp_path, *self.rest, "--input", tmp_path / "bad.jpg")
        assert text.startswith(f"'{tmp_path}/bad.jpg' cannot be read as an image: ")
        assert not self.out.exists()

    def test_corrupt_images_among_others(self, capsys, tmp_path):
        (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
        whole = pathlib.Path(self.image).read_bytes()
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
        inputs = [tmp_path / "bad.jpg", self.image, tmp_path / "cut.png"]
        status, _, err = run(capsys, *self.rest, "--input", *inputs)
        assert (status, len(err)) == (1, 1)
        assert err[0].startswith("error: 2 images were left out: ")
        assert "bad.jpg" in err[0]
        assert "cut.png" in err[0]
        assert sorted(os.listdir(self.out)) == ["index.html", "street"]
        assert "bad.jpg" in (self.out / "index.html").read_text()

    @pytest.mark.parametrize("threshold", ["-0.1", "1.5", "nan"])
    def test_threshold(self, capsys, tmp_path, threshold):
        text = self.complaint(
            capsys, tmp_path, *self.rest, "--input", self.image, "--confidence-threshold", threshold
        )
        assert "must be in [0, 1]" in text

    def test_max_detections(self, capsys, tmp_path):
        text = self.complaint(
            capsys, tmp_path, *self.rest, "--input", self.image, "--max-detections", "0"
        )
        assert text == "--max-detections must be at least 1, not 0"

    def test_output_is_a_file(self, capsys, tmp_path):
        for output in (self.image, f"{self.image}/deeper"):
            text = self.complaint(
                capsys, tmp_path, *self.rest, "--input", self.image, "--output", output
            )
            assert text.startswith(f"output {output!r} cannot be a folder")

    def test_output_not_writable(self, capsys, tmp_path, monkeypatch):
        # The test may run as root, who may write everywhere.
        monkeypatch.setattr(os, "access", lambda *_: False)
        text = self.complaint(capsys, tmp_path, *self.rest, "--input", self.image)
        assert text.startswith(f"output '{self.out}' cannot be written to")

    @pytest.mark.parametrize("name", ["street/diary.txt", "index.html"])
    def test_files_of_others_are_not_replaced(self, capsys, tmp_path, name):
        (self.out / "street").mkdir(parents=True)
        (self.out / name).write_text("mine")
        text = self.complaint(capsys, tmp_path, *self.rest, "--input", self.image)
        assert "choose another output" in text

    @pytest.mark.parametrize("flag", [["--webcam"], ["--video-input", "film.mp4"]])
    def test_not_available_yet(self, capsys, tmp_path, flag):
        text = self.complaint(capsys, tmp_path, *self.rest, *flag, status=2)
        assert f"{flag[0]} is not available yet" in text

    def test_no_input(self, capsys, tmp_path):
        assert "--input" in self.complaint(capsys, tmp_path, *self.rest, status=2)

    def test_config(self, capsys, tmp_path):
        arguments = ["--config-file", "no.yaml", "--input", self.image, "--output", self.out]
        assert "'no.yaml' does not exist" in self.complaint(capsys, tmp_path, *arguments)


class TestOddPictures:
    """Each is left out and named, or shown; the others are done."""

    NAMES = ("line\nbreak", "quote'\"<script>alert(1)", "caf\udce9", "x" * 251, "index.html")

    def test_a_folder_of_them(self, tmp_path, capsys, slim):
        photos, out = tmp_path / "photos", tmp_path / "out"
        photos.mkdir()
        for name in (*self.NAMES, "last"):
            save_image(photos / f"{name}.png", height=20, width=30)
        save_image(photos / "dot.png", height=1, width=1)
        save_image(photos / "thin.png", height=1, width=5000)
        save_image(photos / "tall.png", height=5000, width=1)
        os.mkfifo(photos / "fifo.png")
        (photos / "folder.png").mkdir()
        (photos / "dangling.png").symlink_to(photos / "nothing")
        (photos / "empty.png").touch()
        (photos / "text.png").write_text("no picture\n")
        status, _, err = run(
            capsys, "--config-file", slim, "--input", photos, "--output", out,
            "--confidence-threshold", "0", "--max-detections", "1", "--targets", "class",
        )  # fmt: skip
        assert status == 1
        assert err[-1].startswith("error: 7 images were left out: ")
        left_out = ("dangling", "empty", "fifo", "folder", "tall", "text", "thin")
        for name in left_out:
            assert f"photos/{name}.png'" in err[-1]
        assert err[-1].count("the picture is too thin") == 2
        done = {"dot", "index.html", "index.html-2", "last", *self.NAMES}
        assert set(os.listdir(out)) == done
        page = (out / "index.html").read_text(encoding="utf-8")
        assert "line?break.png" in page
        assert "caf?.png" in page
        assert "<script>" not in page
        for name in left_out:
            assert f"{name}.png" in page

    def test_one_that_cannot_be_explained(self, tmp_path, capsys, fake, monkeypatch):
        images = [save_image(tmp_path / f"{i}.png", width=80 + i) for i in range(3)]
        explained = fake.__call__

        def picky(self, image):
            if image.shape[1] == 81:
                raise InputError("this picture is odd")
            return explained(self, image)

        monkeypatch.setattr(fake, "__call__", picky)
        out = tmp_path / "out"
        status, _, err = run(capsys, *config(tmp_path), "--input", *images, "--output", out)
        assert (status, len(err)) == (1, 1)
        assert err[0].startswith(f"error: {images[1]!r}: this picture is odd (the other 2 are in ")
        assert sorted(os.listdir(out)) == ["0", "2", "index.html"]


class TestMisfit:
    """What only a real detector can find to be wrong."""

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("lefft", "unknown target 'lefft'; there are class, class:NAME, class:K, left"),
            ("class:3", "classes are numbered 0 to 2"),
        ],
    )
    def test_unknown_target_or_class(self, tmp_path, capsys, slim, target, message):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        status, _, err = run(
            capsys, "--config-file", slim, "--input", image, "--output", out, "--targets", target
        )
        assert status == 1
        assert message in err[-1]
        assert not out.exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--preset", "gradients"], "preset is 'gradients'; it must be one of faithful, "),
            (["--compare", "faithfull"], "preset is 'faithfull'; it must be one of faithful, "),
            (["--signed", "--targets", "combined"], "targets has 'combined'"),
            (["--signed", "--opts", "MODEL.ODAM.METHOD", "box_blob"], "maps without a sign"),
        ],
    )
    def test_ways_to_make_maps_that_there_are_not(self, tmp_path, capsys, slim, arguments, message):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        status, _, err = run(
            capsys, "--config-file", slim, "--input", image, "--output", out, *arguments
        )
        assert status == 1
        assert message in err[-1].replace("MODEL.ODAM.PRESET", "preset").replace(
            "MODEL.ODAM.TARGETS", "targets"
        )
        assert not out.exists()

    def test_weights_that_do_not_fit(self, tmp_path, capsys, slim):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        status, _, err = run(
            capsys, "--config-file", slim, "--input", image, "--output", out,
            "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "5",
        )  # fmt: skip
        assert status == 1
        assert "do not fit the model" in err[-1]
        assert not out.exists()

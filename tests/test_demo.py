"""tools/demo.py, as a user calls it."""

import html.parser
import importlib.util
import json
import os
import pathlib
import re
import urllib.parse

import numpy as np
import pytest
import torch
from blob_maps import blob_detections
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

from odam_d2 import add_odam_config
from odam_d2.demo import Demo, expand_inputs, image_writer, predictor, read_picture
from odam_d2.demo.names import slug, unique_names
from odam_d2.errors import UserError, run_tool
from odam_d2.visualization import load_maps

ROOT = pathlib.Path(__file__).parents[1]
BOXES = [(10.0, 5.0, 40.0, 30.0), (30.0, 20.0, 70.0, 45.0)]
# A Faster R-CNN small enough to be built and run in a fraction of a second.
SLIM = [
    "MODEL.META_ARCHITECTURE", "OdamRCNN",
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]],
    "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    "INPUT.MIN_SIZE_TEST", 64,
    "TEST.DETECTIONS_PER_IMAGE", 6,
    "DATASETS.TEST", [],
    "DATASETS.TRAIN", [],
]  # fmt: skip


def load_tool():
    spec = importlib.util.spec_from_file_location("demo_tool", ROOT / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def save_image(path, height=50, width=80, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the detector by made-up detections; ``fake.calls`` counts the images it saw."""

    class FakePredictor:
        class_names = ("star", "half/moon")
        calls = 0
        boxes = BOXES
        interrupt_at = None

        def __init__(self, cfg, targets=None):
            self.targets = tuple(cfg.MODEL.ODAM.TARGETS if targets is None else targets)

        def __call__(self, image):
            FakePredictor.calls += 1
            if FakePredictor.calls == FakePredictor.interrupt_at:
                raise KeyboardInterrupt
            classes = [i % 2 for i in range(len(self.boxes))]
            return blob_detections(
                image.shape[:2], self.boxes, classes=classes, targets=self.targets
            )

    monkeypatch.setattr(tool, "ExplainingPredictor", FakePredictor)
    return FakePredictor


@pytest.fixture
def slim(tmp_path):
    """A config file and weights of a small random detector."""
    cfg = get_cfg()
    add_odam_config(cfg)
    cfg.merge_from_list(SLIM)
    torch.manual_seed(0)
    model = build_model(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "slim.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    path = tmp_path / "slim.yaml"
    path.write_text(cfg.dump())
    return str(path)


def run(capsys, *argv):
    """Exit status, stdout and stderr without the progress bar of a call of the tool."""
    try:
        status = run_tool(lambda: tool.main([str(arg) for arg in argv]))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    lines = captured.err.replace("\r", "\n").splitlines()
    lines = [line for line in lines if line and not re.search(r"(image/s|s/image)\]$", line)]
    return status, captured.out, lines


def config(tmp_path):
    """A config for tests with a made-up detector."""
    path = tmp_path / "fake.yaml"
    path.write_text("MODEL:\n  DEVICE: cpu\n")
    return ["--config-file", path]


def links(page):
    found = []

    class Collector(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(value for name, value in attrs if name in ("href", "src"))

    Collector().feed(page.read_text(encoding="utf-8"))
    return {urllib.parse.unquote(link) for link in found if not link.startswith("#")}


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


class TestFiles:
    def test_one_folder_for_each_image(self, tmp_path, capsys, fake):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        status, stdout, _ = run(
            capsys,
            *config(tmp_path),
            "--input",
            image,
            "--output",
            out,
            "--targets",
            "class",
            "top",
        )
        assert status == 0
        assert files_in(out) == [
            "index.html",
            "street/00_star_class.png",
            "street/00_star_top.png",
            "street/01_half-moon_class.png",
            "street/01_half-moon_top.png",
            "street/contact_sheet.png",
            "street/maps.json",
            "street/maps.npz",
        ]
        assert f"1 images, 4 heat maps: {out / 'index.html'}" in stdout

    def test_page_links_to_every_file(self, tmp_path, capsys, fake):
        names = ["a b#1.png", "100%.png", "ü.png", "q?.png", "index.html.png"]
        images = [save_image(tmp_path / name) for name in names]
        out = tmp_path / "out"
        assert run(capsys, *config(tmp_path), "--input", *images, "--output", out)[0] == 0
        assert links(out / "index.html") == set(files_in(out)) - {"index.html"}
        assert len(links(out / "index.html")) == 5 * (10 + 3)

    def test_listing_matches_the_raw_maps(self, tmp_path, capsys, fake):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        run(capsys, *config(tmp_path), "--input", image, "--output", out)
        listing = json.loads((out / "street" / "maps.json").read_text())
        maps = load_maps(out / "street" / "maps.npz")
        expected = blob_detections((50, 80), BOXES, classes=[0, 1])
        assert (listing["height"], listing["width"]) == (50, 80)
        assert len(listing["maps"]) == 2 * 5
        for item in listing["maps"]:
            number, target = item["index"]
            assert item["image"] == image
            # In pixels of the original image, though the overlays are larger.
            assert item["box"] == list(BOXES[number])
            assert item["class"] == {"id": number, "name": ("star", "half/moon")[number]}
            assert item["score"] == pytest.approx(expected.scores[number].item())
            assert item["target"] == maps.targets[target]
            assert item["stride"] == maps.strides[number] == 4
            assert item["level"] == maps.levels[number] == number
            assert item["window"]["origin"] == maps.origins[number].tolist()
            assert item["window"]["size"] == list(maps.values.shape[-2:])
            assert (out / "street" / item["file"]).is_file()
            with Image.open(out / "street" / item["overlay"]) as overlay:
                assert overlay.size == (480, 300)  # enlarged six times
        assert {item["overlay"] for item in listing["maps"]} == {
            path.name for path in (out / "street").glob("0*.png")
        }
        assert (maps.values == expected.odam_maps.values).all()

    def test_images_of_one_stem_do_not_overwrite_each_other(self, tmp_path, capsys, fake):
        images = []
        for folder in ("left", "right"):
            (tmp_path / folder).mkdir()
            images.append(save_image(tmp_path / folder / "frame.png"))
        images.append(save_image(tmp_path / "right" / "FRAME.bmp"))
        out = tmp_path / "out"
        assert run(capsys, *config(tmp_path), "--input", *images, "--output", out)[0] == 0
        for image, folder in zip(images, ("frame", "frame-2", "FRAME-3"), strict=True):
            assert json.loads((out / folder / "maps.json").read_text())["image"] == image

    def test_a_second_run_replaces_the_first(self, tmp_path, capsys, fake):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        arguments = [*config(tmp_path), "--input", image, "--output", out, "--targets"]
        assert run(capsys, *arguments, "class", "left")[0] == 0
        assert run(capsys, *arguments, "top")[0] == 0
        assert not list(out.rglob("*_left.png"))
        assert len(list(out.rglob("*_top.png"))) == 2

    def test_no_detection(self, tmp_path, capsys, fake):
        fake.boxes = []
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        status, stdout, _ = run(capsys, *config(tmp_path), "--input", image, "--output", out)
        assert status == 0
        assert "1 images, 0 heat maps" in stdout
        assert "No detection has a score above the threshold" in (out / "index.html").read_text()
        assert len(load_maps(out / "street" / "maps.npz")) == 0

    def test_max_detections_are_the_best_and_said(self, tmp_path, capsys, caplog, fake):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        arguments = [*config(tmp_path), "--input", image, "--output", out, "--max-detections", "1"]
        run(capsys, *arguments)
        assert "street.png: the best 1 of 2 detections are drawn" in caplog.text
        assert "the best 1 of 2 detections" in (out / "index.html").read_text()
        assert {p.name[:2] for p in out.rglob("*_*.png") if p.name[0] == "0"} == {"00"}
        assert len(load_maps(out / "street" / "maps.npz")) == 1


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


class TestRealDetector:
    """The whole path with a small random model: no made-up detections."""

    def test_explains(self, tmp_path, capsys, slim):
        image, out = save_image(tmp_path / "street.png", 100, 140), tmp_path / "out"
        status, _, err = run(
            capsys, "--config-file", slim, "--input", image, "--output", out,
            "--confidence-threshold", "0", "--targets", "class", "class:2", "left", "combined",
        )  # fmt: skip
        assert status == 0, err
        listing = json.loads((out / "street" / "maps.json").read_text())
        assert listing["explained"] == 6
        boxes = np.array([item["box"] for item in listing["maps"]])
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= 140).all()
        assert (boxes[:, 3] <= 100).all()
        assert boxes.max() > 90  # pixels of the image, not of the network's input of 64 x 90
        maps = load_maps(out / "street" / "maps.npz")
        assert maps.targets == ("class", "class:2", "left", "combined")
        assert maps.image_sizes.tolist() == [[64, 90]] * 6
        assert maps.values.isfinite().all()
        assert {item["class"]["name"] for item in listing["maps"]} <= {
            f"class {k}" for k in range(3)
        }

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

    def test_weights_that_do_not_fit(self, tmp_path, capsys, slim):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        status, _, err = run(
            capsys, "--config-file", slim, "--input", image, "--output", out,
            "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "5",
        )  # fmt: skip
        assert status == 1
        assert "do not fit the model" in err[-1]
        assert not out.exists()

    @pytest.mark.parametrize("layout", ["RGB", "BGR"])
    def test_picture_is_prepared_as_by_the_default_predictor(self, slim, monkeypatch, layout):
        from odam_d2.engine import setup_cfg

        predict = predictor.ExplainingPredictor(setup_cfg(slim, ["INPUT.FORMAT", layout]))
        seen = {}

        def spy(model, inputs, **settings):
            seen.update(inputs[0])
            unsorted = blob_detections((50, 80), BOXES, scores=[0.2, 0.7])
            return [{"instances": unsorted}]

        monkeypatch.setattr(predictor, "explain", spy)
        image = np.zeros((50, 80, 3), np.uint8)
        image[..., 0] = 200  # red
        found = predict(image)
        assert (seen["height"], seen["width"]) == (50, 80)
        assert seen["image"].shape == (3, 64, 102)
        assert seen["image"].mean(dim=(1, 2)).tolist() == (
            [200, 0, 0] if layout == "RGB" else [0, 0, 200]
        )
        assert found.scores.tolist() == pytest.approx([0.7, 0.2])


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


def test_file_names_that_are_not_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.png")
    Image.new("RGB", (80, 50)).save(path)
    demo = Demo(lambda image: blob_detections((50, 80), BOXES), ["star"], str(tmp_path / "out"))
    page = pathlib.Path(demo.run([path]))
    assert b'src="%FF/00_star_class.png"' in page.read_bytes()

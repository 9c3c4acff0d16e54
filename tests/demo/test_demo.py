"""What tools/demo.py writes."""

import json
import os
import pathlib

import numpy as np
import pytest
from blob_maps import blob_detections
from demo_tool import BOXES, config, files_in, links, run, save_image
from PIL import Image

from odam_d2.demo import Demo
from odam_d2.engine import predictor, setup_cfg
from odam_d2.visualization import load_maps

pytest_plugins = ["demo_tool"]


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
            assert item["saturated"] is bool(maps.saturated[number, target])
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
        assert maps.saturated.any(dim=1).tolist() == [False, True]

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

    def test_max_detections_are_the_best_and_said(self, tmp_path, capsys, fake):
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        arguments = [*config(tmp_path), "--input", image, "--output", out, "--max-detections", "1"]
        _, printed, _ = run(capsys, *arguments)
        assert "street.png: the best 1 of 2 detections are drawn" in printed
        assert "the best 1 of 2 detections" in (out / "index.html").read_text()
        assert {p.name[:2] for p in out.rglob("*_*.png") if p.name[0] == "0"} == {"00"}
        assert len(load_maps(out / "street" / "maps.npz")) == 1


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

    def test_presets_beside_one_another(self, tmp_path, capsys, slim):
        """Each map is that of a run by itself, in the file and under the name of its method."""
        image = save_image(tmp_path / "street.png", 100, 140)

        def maps_of(out, *arguments):
            status, _, err = run(
                capsys, "--config-file", slim, "--input", image, "--output", tmp_path / out,
                "--confidence-threshold", "0", "--targets", "class", "left", *arguments,
            )  # fmt: skip
            assert status == 0, err
            return load_maps(tmp_path / out / "street" / "maps.npz")

        odam, gradient = maps_of("odam", "--signed"), maps_of("by", "--preset", "gradient")
        first = maps_of("both", "--signed", "--compare", "gradient")
        folder = tmp_path / "both" / "street"
        other = load_maps(folder / "maps_gradient.npz")
        assert (first.values == odam.values).all()
        assert (first.signed, other.signed, gradient.signed) == (True, True, False)
        assert (other.values.clamp(min=0) > 0).any()
        assert other.values.shape == gradient.values.shape != first.values.shape
        listing = json.loads((folder / "maps.json").read_text())
        assert listing["signed"] is True
        assert [(item["method"], item["target"]) for item in listing["maps"][:4]] == [
            ("odam", "class"), ("gradient", "class"), ("odam", "left"), ("gradient", "left"),
        ]  # fmt: skip
        for item in listing["maps"]:
            of_method = {"odam": first, "gradient": other}[item["method"]]
            assert item["file"] == ("maps" if of_method is first else "maps_gradient") + ".npz"
            assert item["stride"] == of_method.strides[item["detection"]]
            assert item["index"][1] == of_method.target_index(item["target"])
        assert links(tmp_path / "both" / "index.html") == set(files_in(tmp_path / "both")) - {
            "index.html"
        }
        page = (tmp_path / "both" / "index.html").read_text()
        assert "blue speaks against it" in page
        assert "Maps of sides want care" in page
        assert "odam beside gradient" in page

    def test_a_preset_in_the_config(self, slim):
        image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
        by_config = predictor.ExplainingPredictor(
            setup_cfg(slim, ["MODEL.ODAM.PRESET", "gradient"]), ["left"], 0.0
        )
        plain = predictor.ExplainingPredictor(setup_cfg(slim), ["left"], 0.0)
        found, other = (
            predict(image)["instances"] for predict in (by_config, plain.by_preset("gradient"))
        )
        assert (by_config.method, plain.method) == ("gradient", "odam")
        assert (found.odam_maps.values == other.odam_maps.values).all()
        assert found.odam_maps.strides.unique().tolist() == [4]  # on the finest layer

    @pytest.mark.parametrize("layout", ["RGB", "BGR"])
    def test_picture_is_prepared_as_by_the_default_predictor(self, slim, monkeypatch, layout):
        predict = predictor.ExplainingPredictor(setup_cfg(slim, ["INPUT.FORMAT", layout]))
        seen = {}

        def spy(model, inputs, **settings):
            seen.update(inputs[0])
            unsorted = blob_detections((50, 80), BOXES, scores=[0.2, 0.7])
            return [{"instances": unsorted}]

        monkeypatch.setattr(predictor, "explain", spy)
        image = np.zeros((50, 80, 3), np.uint8)
        image[..., 2] = 200  # red, of BGR
        found = predict(image)["instances"]
        assert (seen["height"], seen["width"]) == (50, 80)
        assert seen["image"].shape == (3, 64, 102)
        assert seen["image"].mean(dim=(1, 2)).tolist() == (
            [200, 0, 0] if layout == "RGB" else [0, 0, 200]
        )
        assert found.scores.tolist() == pytest.approx([0.2, 0.7])

    def test_the_best_detections_come_first(self, tmp_path):
        def predict(image):
            return {"instances": blob_detections((50, 80), BOXES, scores=[0.2, 0.7])}

        save_image(tmp_path / "street.png")
        Demo(predict, ["star"], str(tmp_path / "out")).run([str(tmp_path / "street.png")])
        listing = json.loads((tmp_path / "out" / "street" / "maps.json").read_text())
        scores = [item["score"] for item in listing["maps"]]
        assert scores == sorted(scores, reverse=True)

    def test_names_of_another_detector_are_not_used(self, slim, caplog):
        """The classes of a config's data set, often COCO's, are not those of every detector."""
        cfg = setup_cfg(slim, ["DATASETS.TEST", "('coco_2017_val',)"])
        assert predictor.ExplainingPredictor(cfg).class_names == ("class 0", "class 1", "class 2")
        assert "has 80 classes and the detector 3" in caplog.text

    def test_class_names_by_file(self, slim, capsys, tmp_path):
        (tmp_path / "names.txt").write_text("star\nmoon\nsun\n")
        image, out = save_image(tmp_path / "street.png"), tmp_path / "out"
        argv = ("--config-file", slim, "--input", image, "--output", out, "--class-names",
                tmp_path / "names.txt", "--confidence-threshold", 0, "--opts",
                "DATASETS.TEST", "('coco_2017_val',)")  # fmt: skip
        assert run(capsys, *argv)[0] == 0
        listing = json.loads((out / "street" / "maps.json").read_text())
        assert {item["class"]["name"] for item in listing["maps"]} <= {"star", "moon", "sun"}
        (tmp_path / "names.txt").write_text("star\nmoon\n")
        status, _, lines = run(capsys, *argv)
        assert (status, lines[-1].split(": ")[0]) == (1, "error")
        assert "has 2 names, and the detector has 3 classes" in lines[-1]


def test_file_names_that_are_not_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.png")
    Image.new("RGB", (80, 50)).save(path)
    found = {"instances": blob_detections((50, 80), BOXES)}
    demo = Demo(lambda image: found, ["star"], str(tmp_path / "out"))
    page = pathlib.Path(demo.run([path]))
    assert b'src="%FF/00_star_class.png"' in page.read_bytes()

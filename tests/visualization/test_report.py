"""The raw maps' file and the page."""

import html.parser
import os
import urllib.parse
from dataclasses import replace

import numpy as np
import pytest
import torch
from blob_maps import blob_detections

from odam_d2.visualization import load_maps, save_maps, write_report
from odam_d2.visualization.report import DetectionEntry, ImageEntry, OverlayEntry

FIELDS = (
    "values", "origins", "strides", "grid_sizes", "image_sizes", "levels", "saturated",
)  # fmt: skip
HEIGHT, WIDTH = 60, 100
BOX = (20.0, 10.0, 70.0, 40.0)


class TestMapsFile:
    def test_round_trip(self, tmp_path):
        instances = blob_detections((HEIGHT, WIDTH), [BOX, (1, 2, 30, 50)], classes=[2, 1])
        instances.odam_maps.origins[1] = torch.tensor([-3, 4])
        instances.odam_maps.saturated[1, 0] = True
        path = str(tmp_path / "maps.npz")
        save_maps(path, instances)
        maps = load_maps(path)
        original = instances.odam_maps
        assert maps.targets == original.targets
        for name in FIELDS:
            loaded, expected = getattr(maps, name), getattr(original, name)
            assert loaded.dtype == expected.dtype
            assert (loaded == expected).all()
        assert (maps.dense(47, 81) == original.dense(47, 81)).all()
        with np.load(path) as arrays:
            assert arrays["boxes"].tolist() == instances.pred_boxes.tensor.tolist()
            assert arrays["scores"].tolist() == instances.scores.tolist()
            assert arrays["classes"].tolist() == [2, 1]

    def test_no_detection_and_half_precision(self, tmp_path):
        path = str(tmp_path / "maps.npz")
        save_maps(path, blob_detections((HEIGHT, WIDTH), []))
        assert load_maps(path).dense(5, 7).shape == (0, 5, 5, 7)
        instances = blob_detections((HEIGHT, WIDTH), [BOX])
        instances.odam_maps = instances.odam_maps.to(torch.bfloat16)
        save_maps(path, instances)
        assert (load_maps(path).values == instances.odam_maps.values.float()).all()

    def test_the_sign_is_kept(self, tmp_path):
        path = str(tmp_path / "maps.npz")
        instances = blob_detections((HEIGHT, WIDTH), [BOX])
        for signed in (True, False):
            instances.odam_maps.signed = signed
            save_maps(path, instances)
            assert load_maps(path).signed is signed
        with np.load(path) as arrays:  # as older files are
            old = {name: arrays[name] for name in arrays if name != "signed"}
        np.savez(path, **old)
        assert load_maps(path).signed is False

    def test_a_file_of_before_there_was_a_flag(self, tmp_path):
        path = str(tmp_path / "maps.npz")
        save_maps(path, blob_detections((HEIGHT, WIDTH), [BOX]))
        with np.load(path) as arrays:
            np.savez(path, **{name: arrays[name] for name in arrays if name != "saturated"})
        assert load_maps(path).saturated.tolist() == [[False] * 5]

    def test_scores_in_bfloat16(self, tmp_path):
        """What a detector finds under autocast; NumPy knows no such dtype."""
        instances = blob_detections((HEIGHT, WIDTH), [BOX], scores=[0.75])
        instances.scores = instances.scores.bfloat16()
        save_maps(str(tmp_path / "maps.npz"), instances)
        with np.load(tmp_path / "maps.npz") as arrays:
            assert arrays["scores"].tolist() == [0.75]


class LinkCollector(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.links, self.images = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag == "img":
            self.images.append(attrs)


class TestReport:
    NAME = "a b#1 100% ü?&<i>"

    def entry(self, tmp_path):
        overlay = OverlayEntry("left", "left side · <b>star</b> 0.90", "00_ß #_left.png")
        entry = ImageEntry(
            f"folder/{self.NAME}.jpg", self.NAME, (60, 100), (300, 500), 3,
            [DetectionEntry("<b>star</b>", 0.9, BOX, [overlay])],
        )  # fmt: skip
        (tmp_path / self.NAME).mkdir(parents=True)
        for name in (overlay.file, entry.contact_sheet, entry.maps, entry.listing):
            (tmp_path / self.NAME / name).touch()
        return entry

    def test_links_are_relative_and_exist(self, tmp_path):
        write_report(str(tmp_path / "index.html"), [self.entry(tmp_path)])
        page = LinkCollector((tmp_path / "index.html").read_text(encoding="utf-8"))
        files = [link for link in page.links if not link.startswith("#")]
        assert len(set(files)) == 4
        for link in files:
            assert not set(link) & set(' #?&<"')
            assert not urllib.parse.urlsplit(link).scheme
            assert (tmp_path / urllib.parse.unquote(link)).is_file()

    def test_names_are_escaped_and_pictures_described(self, tmp_path):
        write_report(str(tmp_path / "index.html"), [self.entry(tmp_path)], notes=["<i>left out"])
        text = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert "<i>" not in text
        assert "<b>star" not in text
        assert "the best 1 of 3 detections" in text
        page = LinkCollector(text)
        assert len(page.images) == 2
        assert all(len(image["alt"]) > 20 for image in page.images)

    def test_a_lost_map_is_explained(self, tmp_path):
        pages = []
        for lost in (False, True):
            entry = self.entry(tmp_path / str(lost))
            (detection,) = entry.detections
            overlays = [replace(overlay, saturated=lost) for overlay in detection.overlays]
            entry = replace(entry, detections=[replace(detection, overlays=overlays)])
            write_report(str(tmp_path / "index.html"), [entry])
            pages.append((tmp_path / "index.html").read_text(encoding="utf-8"))
        assert ["MODEL.ODAM.SCORE logit" in page for page in pages] == [False, True]

    def test_a_page_that_fails_leaves_the_one_before(self, tmp_path, monkeypatch):
        path = tmp_path / "index.html"
        path.write_text("before")

        def fail(*_):
            raise OSError("no space left")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write_report(str(path), [])
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["index.html"]

"""The raw maps' file and the page."""

import html.parser
import os
import urllib.parse
from dataclasses import replace

import numpy as np
import pytest
import torch
from blob_maps import blob_detections

from odam_d2 import save_instances
from odam_d2.visualization import load_maps, write_report
from odam_d2.visualization.report import DetectionEntry, ImageEntry, OverlayEntry

FIELDS = (
    "values", "origins", "strides", "grid_sizes", "image_sizes", "levels", "saturated",
)  # fmt: skip
HEIGHT, WIDTH = 60, 100
BOX = (20.0, 10.0, 70.0, 40.0)


class TestMapsFile:
    @pytest.mark.parametrize("missing", [(), ("signed",), ("signed", "saturated")])
    def test_files_of_version_0_1(self, tmp_path, missing):
        """The demo wrote the same arrays under their bare names, the first ones not all."""
        maps = blob_detections((HEIGHT, WIDTH), [BOX]).odam_maps
        maps.signed, maps.saturated[0, 0] = "signed" not in missing, "saturated" not in missing
        arrays = {name: getattr(maps, name).numpy() for name in FIELDS if name not in missing}
        old = {"targets": np.array(maps.targets), "signed": np.array(maps.signed)}
        old = {name: array for name, array in old.items() if name not in missing}
        np.savez(tmp_path / "maps.npz", boxes=np.zeros((1, 4)), **old, **arrays)
        found = load_maps(tmp_path / "maps.npz")
        assert (found.targets, found.signed) == (maps.targets, maps.signed)
        assert torch.equal(found.saturated, maps.saturated)
        assert torch.equal(found.dense(47, 81), maps.dense(47, 81))

    def test_files_of_today(self, tmp_path):
        instances = blob_detections((HEIGHT, WIDTH), [BOX])
        save_instances(tmp_path / "maps.npz", instances)
        assert torch.equal(load_maps(tmp_path / "maps.npz").values, instances.odam_maps.values)


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

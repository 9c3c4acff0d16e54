"""Building the splits of CrowdShapes on disk and registering them with Detectron2."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock
from tqdm import tqdm

from odam_d2.files import whole_folder, write_png, write_text

from ..paths import datasets_root, require_writable
from .annotations import annotate
from .badge import CLASSES
from .scene import PRESETS, SceneConfig, layout_of, render_scene, sample_scene

GENERATOR_VERSION = 1
"""Recorded with every built split; raise it when any pixel or annotation changes."""

EXTRA_KEYS = (
    "part_segmentations", "part_names", "visibility", "area", "badge_place", "decoy_segmentations",
)  # fmt: skip
"""Annotation keys beyond Detectron2's own that survive loading."""


@dataclass(frozen=True)
class Split:
    """One registered data set: `num_images` scenes of a setting, from the seeds (seed, index)."""

    config: SceneConfig
    seed: int
    num_images: int


SPLITS = {
    "crowdshapes_train": Split(PRESETS["plain"], 101, 800),
    "crowdshapes_val": Split(PRESETS["plain"], 102, 120),
    "crowdshapes_crowded_train": Split(PRESETS["crowded"], 103, 300),
    "crowdshapes_crowded_val": Split(PRESETS["crowded"], 104, 80),
    "crowdshapes_scattered_train": Split(PRESETS["scattered"], 105, 3200),
    "crowdshapes_scattered_val": Split(PRESETS["scattered"], 106, 120),
}


def generate(config: SceneConfig, seed: int, index: int) -> tuple[np.ndarray, list[dict]]:
    """One image and its annotations; depends on nothing but the arguments.

    Args:
        config: size and crowding.
        seed: of the split.
        index: of the image in the split.

    Returns:
        The image, (H, W, 3) uint8 red green blue, and what :func:`annotate` says about it.
    """
    scene = sample_scene(config, (seed, index))
    return render_scene(scene), annotate(layout_of(scene))


def _write(split: Split, folder: Path, description: str) -> None:
    """Write the images, annotations.json and, last, version.json of a split into `folder`."""
    (folder / "images").mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in tqdm(range(split.num_images), desc=description, unit="image"):
        image, objects = generate(split.config, split.seed, index)
        name = f"{index:06d}.png"
        write_png(folder / "images" / name, image)
        height, width = image.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for annotation in objects:
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": index})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    info = {"description": f"CrowdShapes {description}", "version": GENERATOR_VERSION}
    content = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    for name, value in (("annotations.json", content), ("version.json", _version(split))):
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        write_text(folder / name, text + "\n")


def _version(split: Split) -> dict:
    """What version.json records: any difference makes a built split stale."""
    return json.loads(json.dumps({"generator": GENERATOR_VERSION, **asdict(split)}))


def is_built(split: Split, folder: Path) -> bool:
    """Whether `folder` holds exactly this split as this version of the generator makes it."""
    try:
        return json.loads((folder / "version.json").read_text("utf-8")) == _version(split)
    except (OSError, ValueError):
        return False


def build_split(name: str, root: Path | str | None = None, split: Split | None = None) -> Path:
    """Build a split unless it is there already.

    The folder appears when complete, so an interrupted build leaves nothing behind that looks
    finished. A lock makes a second process wait for the first. A split made by another version of
    the generator is replaced.

    Args:
        name: of the split, also the name of its folder.
        root: data folder; by default :func:`odam_d2.data.paths.datasets_root`.
        split: by default `SPLITS[name]`.

    Returns:
        The folder `root/crowdshapes/name`, with `images/` and `annotations.json`.

    Raises:
        PermissionError: the split is not built and the data folder cannot be written.
    """
    split = split or SPLITS[name]
    parent = Path(root or datasets_root()) / "crowdshapes"
    folder = parent / name
    if is_built(split, folder):
        return folder
    require_writable(parent)
    with file_lock(str(folder)):
        if is_built(split, folder):  # by the process that held the lock
            return folder
        with whole_folder(folder) as new:
            _write(split, new, name)
    return folder


def load_crowdshapes(name: str, root: Path | str | None = None) -> list[dict]:
    """A split as Detectron2's list of dicts, built first if need be.

    Each annotation also has the keys :data:`EXTRA_KEYS`; see :func:`annotate` for their meaning.
    """
    folder = build_split(name, root)
    return load_coco_json(
        str(folder / "annotations.json"), str(folder / "images"), name, list(EXTRA_KEYS)
    )


def register_crowdshapes(root: Path | str | None = None) -> None:
    """Register all splits with Detectron2; those already registered are left alone.

    Args:
        root: data folder, by default that of the environment at this moment (as Detectron2 does).
    """
    root = Path(root or datasets_root())
    for name in SPLITS:
        if name in DatasetCatalog.list():
            continue
        DatasetCatalog.register(name, lambda name=name: load_crowdshapes(name, root))
        folder = root / "crowdshapes" / name
        MetadataCatalog.get(name).set(
            json_file=str(folder / "annotations.json"),
            image_root=str(folder / "images"),
            evaluator_type="coco",
            thing_classes=list(CLASSES),
            thing_dataset_id_to_contiguous_id={k + 1: k for k in range(len(CLASSES))},
        )

"""From a scene to COCO annotations with the masks of the parts that explain each box."""

import numpy as np
from pycocotools import mask as coco_mask

from .character import PART_LABEL, PARTS
from .scattered import ScatteredCharacter
from .scene import Layout

SIDES = ("left", "top", "right", "bottom")


def encode_mask(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict:
    """A mask as compressed COCO RLE with text counts.

    Args:
        mask: (h, w) boolean, a crop of the image; nothing is set outside.
        corner: (x, y) of the crop in the image, pixels.
        size: (H, W) of the image.
    """
    whole = np.zeros(size, np.uint8, order="F")
    whole[corner[1] : corner[1] + mask.shape[0], corner[0] : corner[0] + mask.shape[1]] = mask
    rle = coco_mask.encode(whole)
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def side_labels(part: np.ndarray) -> dict[str, int]:
    """Label of the part that reaches furthest to each side.

    Args:
        part: (h, w) labels cropped to the tight box, 0 where the object is not visible.

    Returns:
        For each of :data:`SIDES` the label that owns most of the outermost line of pixels (the
        smallest such label, if several own as many).
    """
    lines = (part[:, 0], part[0], part[:, -1], part[-1])
    counts = (np.bincount(line[line > 0], minlength=len(PARTS) + 1) for line in lines)
    return {side: int(np.argmax(count)) for side, count in zip(SIDES, counts, strict=True)}


def annotate(layout: Layout) -> list[dict]:
    """One COCO annotation for each object, without `id` and `image_id`.

    All coordinates are image pixels; all masks are of visible pixels and (H, W) of the image.
    Beside COCO's keys:

    - `part_segmentations`: RLE of the part that decides the class (`class`, the badge) and of the
      part that ends each side of the box (`left`, `top`, `right`, `bottom`);
    - `part_names`: the names of these parts;
    - `visibility`: visible fraction of the whole `object` and of its badge (`class`), three
      decimals.

    And of scattered characters:

    - `badge_place`: where the badge is, a name in :data:`.character.PLACES`;
    - `decoy_segmentations`: RLE of each decoy that is visible, by its place.
    """
    result = []
    for index, placement in enumerate(layout.placements):
        x0, y0, x1, y1 = layout.box(index)
        mask = layout.owner[y0:y1, x0:x1] == index
        part = np.where(mask, layout.part[y0:y1, x0:x1], 0)
        labels = {"class": PART_LABEL["badge"], **side_labels(part)}
        where = (x0, y0), layout.owner.shape
        parts = {name: encode_mask(part == label, *where) for name, label in labels.items()}
        fractions = zip(layout.visible[index], layout.full[index], strict=True)
        visible = [(2000 * seen + full) // (2 * full) / 1000 for seen, full in fractions]
        annotation = {
            "category_id": placement.character.category + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": encode_mask(mask, *where),
            "part_segmentations": parts,
            "part_names": {k: PARTS[v - 1] for k, v in labels.items()},
            "visibility": dict(zip(("object", "class"), visible, strict=True)),
        }
        if isinstance(placement.character, ScatteredCharacter):
            annotation |= _scattered(placement.character, part, *where)
        result.append(annotation)
    return result


def _scattered(
    character: ScatteredCharacter, part: np.ndarray, corner: tuple[int, int], size: tuple[int, int]
) -> dict:
    """What only scattered characters have.

    Args:
        character: the object.
        part: (h, w) labels of its visible parts, 0 elsewhere.
        corner, size: as for :func:`encode_mask`.
    """
    masks = {d.place: part == PART_LABEL[f"decoy_{d.place}"] for d in character.decoys}
    return {
        "badge_place": character.badge_place,
        "decoy_segmentations": {
            place: encode_mask(mask, corner, size) for place, mask in masks.items() if mask.any()
        },
    }

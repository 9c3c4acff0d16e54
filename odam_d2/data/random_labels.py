"""
Data sets whose classes mean nothing: a detector that is trained on one learns nothing that decides
a class (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018).
"""

from __future__ import annotations

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["SUFFIX", "register_random_labels"]

SUFFIX = "_random_labels"


def register_random_labels(name: str, seed: int = 0) -> str:
    """
    Register ``NAME_random_labels``: the images and boxes of a registered data set, the classes of
    all its objects in random order. One that is registered already is left alone.

    Args:
        name: of the registered data set.
        seed: of the order.

    Returns:
        The name.
    """
    other = name + SUFFIX
    if other not in DatasetCatalog.list():
        DatasetCatalog.register(other, lambda: _relabelled(DatasetCatalog.get(name), seed))
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None:
            MetadataCatalog.get(other).thing_classes = classes
    return other


def _relabelled(entries: list[dict], seed: int) -> list[dict]:
    labels = [a["category_id"] for entry in entries for a in entry["annotations"]]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = iter(order.tolist())
    return [
        {**entry, "annotations": [{**a, "category_id": labels[next(drawn)]}
                                  for a in entry["annotations"]]}
        for entry in entries
    ]  # fmt: skip

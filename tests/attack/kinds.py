"""All kinds of attacks, in the order in which they run."""

import importlib
import pkgutil
import random

import matplotlib.pyplot  # noqa: F401  (takes long to import)
import torch
from PIL import Image

import odam_d2

from .case import Case
from .material import SHIPPED, entries, shipped

__all__ = ["KINDS", "all_cases", "warm"]

KINDS = (
    "kills", "full_disk", "processes", "stale", "state_files", "annotations", "folders",
    "overrides", "settings", "configs", "checkpoints", "pictures", "odgt", "arguments", "outputs",
    "heads", "numbers", "threads", "registry",
)  # fmt: skip
"""Those with long cases first, so that no process waits for another at the end."""


def all_cases(seed: int, kinds: list[str] | None = None) -> dict[str, Case]:
    """``{"KIND/NAME": case}``; each kind has random numbers of its own."""
    found = {}
    for kind in kinds or KINDS:
        module = importlib.import_module(f".{kind}", __package__)
        for case in module.cases(random.Random(f"{kind} {seed}")):
            name = f"{kind}/{case.name}"
            if name in found:
                raise ValueError(f"two cases are called {name!r}")
            found[name] = case
    return found


def warm(kinds: set[str] = frozenset()) -> None:
    """What every case needs, and some kinds, made once before processes are forked."""
    torch.set_num_threads(1)
    Image.init()
    for module in pkgutil.walk_packages(odam_d2.__path__, "odam_d2."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    entries()
    for kind in SHIPPED:
        shipped(kind)
    for kind in kinds:
        getattr(importlib.import_module(f".{kind}", __package__), "prepare", lambda: None)()

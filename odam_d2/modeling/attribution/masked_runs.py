"""What methods that run a detector on masked images share: batches, a bar, and going on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.errors import InputError
from odam_d2.core.masks import STRIDE
from odam_d2.digests import digest
from odam_d2.files import read_torch, write_torch
from odam_d2.fingerprint import differences
from odam_d2.modeling.mask_settings import MaskSettings, StateSettings
from odam_d2.modeling.settings import ExplainSettings

__all__ = ["StateFile", "cell_means", "in_batches", "refuse"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateFile:
    """
    Where results of so many masks are kept.

    Attributes:
        path: of the file; None for none.
        fingerprint: what they depend on; those of another one are not gone on with.
    """

    path: Path | None = None
    fingerprint: object = None

    @classmethod
    def of(
        cls, settings: StateSettings, about: object, fingerprint: Callable[[], object]
    ) -> StateFile:
        """
        Args:
            about: the image and its detections, after which the file is named.
            fingerprint: what else results depend on.
        """
        if not settings.state_dir:
            return cls()
        name = f"{settings.NODE.lower()}_{digest(about)}.pth"
        return cls(Path(settings.state_dir) / name, fingerprint())

    def read(self, check: Callable[[dict], bool]) -> dict | None:
        """What is kept, where there is something of use, and ``check`` finds it whole."""
        if self.path is None:
            return None
        state = read_torch(self.path, lambda x: isinstance(x["fingerprint"], dict) and check(x))
        if state is None:
            return None
        if why := differences(state["fingerprint"], self.fingerprint):
            logger.info("%s is of an earlier run, and is made again: %s.", self.path, why)
            return None
        return state

    def write(self, state: dict) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_torch(self.path, {**state, "fingerprint": self.fingerprint})


def in_batches(
    name: str,
    start: int,
    settings: MaskSettings,
    see: Callable[[range], None],
    save: Callable[[], None],
    settled: Callable[[tqdm], bool] = lambda bar: False,
) -> None:
    """
    See masks in batches, with a bar. What was seen is saved now and then, and at the end, also
    where Ctrl-C was the end.

    Args:
        name: in the bar.
        start: masks that were seen before.
        see: gets the numbers of the masks of a batch.
        settled: whether so many masks are enough; asked before something is saved.
    """
    bar = tqdm(total=settings.num_masks, initial=start, desc=name, unit="mask", leave=False,
               disable=None)  # fmt: skip
    enough = False
    try:
        while start < settings.num_masks and not enough:
            numbers = range(start, min(start + settings.batch_size, settings.num_masks))
            see(numbers)
            bar.update(len(numbers))
            start = numbers.stop
            if start // settings.check_every > numbers.start // settings.check_every:
                enough = settled(bar)
                save()
    finally:
        bar.close()
        save()


def cell_means(masks: Tensor) -> Tensor:
    """Means (B, h, w) over cells of :data:`STRIDE` pixels; those at the border over what is in."""
    return F.avg_pool2d(masks, STRIDE, ceil_mode=True)


def refuse(settings: ExplainSettings, name: str, without: dict[str, object]) -> None:
    """Raise an ``InputError`` where settings of gradients and layers are not left as they are."""
    for setting, value in without.items():
        if getattr(settings, setting) != value:
            raise InputError(
                f"{settings.argument(setting)} is {getattr(settings, setting)!r}; {name} "
                f"differentiates nothing, so it must be {value!r}"
            )

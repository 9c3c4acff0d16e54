"""
A training that, with a seed, ends the same whether it was interrupted or not.

Detectron2's checkpoints hold weights, optimizer and schedule. What a resumed training lacks is
where it was among the images, and in which state the random numbers were. So here both follow from
the seed and the number of the iteration: nothing has to be stored.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

from odam_d2.data.pictures import read_picture

__all__ = ["LossNormalizers", "SeededStream", "seeded_iterations", "seeded_loader"]


class SeededStream(IterableDataset):
    """
    Training images in the order of a sampler, each mapped with random numbers of its own place in
    that order.

    Args:
        entries: of the data set, in Detectron2's format.
        mapper: makes a training sample of an entry, and may draw random numbers.
        sampler: gives the indices of this process without end.
        seed: of the training.
        batch_size: images of a batch of this process.
        grouped: whether the batches are made of images of like aspect ratio by Detectron2's
            ``AspectRatioGroupedDataset``.

    Attributes:
        seed: of the training.
        first_batch: the batch that comes first: as many are skipped, none of whose images is read.
            Set it before iterating.
    """

    def __init__(
        self,
        entries: Sequence[dict],
        mapper: Callable[[dict], dict],
        sampler: Sequence[int],
        *,
        seed: int,
        batch_size: int,
        grouped: bool,
    ):
        self.first_batch = 0
        self._entries = DatasetFromList(list(entries), copy=False)
        self._grouped = grouped
        self._wide = [_is_wide(entry) for entry in entries] if grouped else []
        self._mapper, self._sampler, self.seed = mapper, sampler, seed
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A worker makes whole batches, or where others batch, single samples in turn.
        chunk = 1 if self._grouped else self._batch_size
        for number, (position, index) in enumerate(self.draws()):
            if number // chunk % workers == worker:
                with _random_numbers_of(self.seed, comm.get_rank(), position, 0):
                    sample = self._mapper(self._entries[index])
                yield sample

    def draws(self) -> Iterator[tuple[int, int]]:
        """Position in the sampler's order, and index of the entry, from ``first_batch`` on."""
        draws = enumerate(self._sampler)
        if self._grouped:
            yield from self._skip_grouped(draws)
        else:
            for _ in range(self.first_batch * self._batch_size):
                next(draws)
        yield from draws

    def _skip_grouped(self, draws: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
        """Go past the batches that were made; returns the draws that wait for their batch."""
        waiting: tuple[list, list] = ([], [])
        batches = 0
        while batches < self.first_batch:
            position, index = next(draws)
            group = waiting[self._group_of(index)]
            group.append((position, index))
            if len(group) == self._batch_size:
                group.clear()
                batches += 1
        return sorted(waiting[0] + waiting[1])

    def _group_of(self, index: int) -> bool:
        """Whether an image is wide; of a data set that does not say so, the picture does."""
        wide = self._wide[index]
        if wide is None:
            height, width = read_picture(self._entries[index]["file_name"]).shape[:2]
            wide = self._wide[index] = width > height
        return wide


def _is_wide(entry: dict) -> bool | None:
    return entry["width"] > entry["height"] if {"width", "height"} <= entry.keys() else None


def seeded_loader(arguments: dict, seed: int) -> Iterable[list[dict]]:
    """
    A training loader whose images follow from the seed and the number of the iteration, if the
    training has the hooks of :func:`seeded_iterations`.

    Args:
        arguments: of Detectron2's ``build_detection_train_loader``, with a list of entries as
            ``dataset`` and a sampler.
        seed: 0 or more.
    """
    arguments = dict(arguments)
    stream = SeededStream(
        arguments.pop("dataset"),
        arguments.pop("mapper"),
        arguments.pop("sampler"),
        seed=seed,
        batch_size=arguments["total_batch_size"] // comm.get_world_size(),
        grouped=arguments.get("aspect_ratio_grouping", True),
    )
    # With a seed, a loader that begins draws nothing from the random numbers of the iteration.
    return build_detection_train_loader(stream, mapper=None, sampler=None, seed=seed, **arguments)


def seeded_iterations(loader: object) -> list[HookBase]:
    """What a training that reads a loader of :func:`seeded_loader` needs; nothing for others."""
    while not isinstance(loader, SeededStream):
        if not hasattr(loader, "dataset"):
            return []
        loader = loader.dataset
    return [_SeededIterations(loader)]


class _SeededIterations(HookBase):
    """
    Begins with the images of the first iteration, and each iteration with random numbers of its
    own.
    """

    def __init__(self, stream: SeededStream):
        self.stream = stream

    def before_train(self) -> None:
        self.stream.first_batch = self.trainer.start_iter

    def before_step(self) -> None:
        _set_random_numbers(self.stream.seed, comm.get_rank(), self.trainer.iter, 1)


class LossNormalizers:
    """
    The running means by which dense detectors of Detectron2 divide their losses, as a part of a
    checkpoint: they are no buffers of the model.
    """

    NAME = "loss_normalizer"

    def __init__(self, model: nn.Module):
        self.model = model

    def state_dict(self) -> dict[str, float]:
        modules = self.model.named_modules()
        return {name: float(m.loss_normalizer) for name, m in modules if hasattr(m, self.NAME)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        modules = dict(self.model.named_modules())
        for name, value in state.items():
            modules[name].loss_normalizer = value


@contextlib.contextmanager
def _random_numbers_of(*key: int) -> Iterator[None]:
    """Random numbers that follow from a key inside, and those of before outside."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 -- what mappers draw from
    try:
        with torch.random.fork_rng(devices=[]):
            _set_random_numbers(*key)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _set_random_numbers(*key: int) -> None:
    words = [int(x) for x in np.random.SeedSequence(key).generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    torch.manual_seed(words[2])

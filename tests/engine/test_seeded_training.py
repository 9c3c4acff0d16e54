"""With a seed, a training that was interrupted goes on as if it had not been."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from odam_d2.engine.seeded_training import (
    LossNormalizers,
    SeededStream,
    seeded_iterations,
    seeded_loader,
)


def draw():
    """A random number of each kind that augmentations draw from."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def mapper(entry):
    """A sample that shows which random numbers it was made with."""
    return {**entry, "drawn": draw()}


def batches(entries, batch_size, grouped, count, skip=0, workers=0, mapper=mapper):
    arguments = {
        "dataset": entries,
        "mapper": mapper,
        "sampler": TrainingSampler(len(entries), seed=3),
        "total_batch_size": batch_size,
        "aspect_ratio_grouping": grouped,
        "num_workers": workers,
    }
    loader = seeded_loader(arguments, seed=5)
    (hook,) = seeded_iterations(loader)
    hook.trainer = type("Trainer", (), {"start_iter": skip})
    hook.before_train()
    return list(islice(loader, count))


def images(shapes):
    return [{"id": n, "width": w, "height": h} for n, (w, h) in enumerate(shapes)]


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(4, 3), (3, 4), (2, 2)]), min_size=1, max_size=9),
    batch_size=st.integers(1, 4),
    grouped=st.booleans(),
    skip=st.integers(0, 12),
)
def test_what_is_left_of_the_stream_is_the_rest_of_the_whole(shapes, batch_size, grouped, skip):
    entries = images(shapes)
    whole = batches(entries, batch_size, grouped, skip + 5)
    assert batches(entries, batch_size, grouped, 5, skip) == whole[skip:]


@pytest.mark.parametrize("grouped", [True, False])
def test_worker_processes_change_nothing(grouped):
    entries = images([(4, 3), (3, 4), (4, 3), (4, 2), (2, 4)])
    alone = batches(entries, 2, grouped, 8)
    assert batches(entries, 2, grouped, 5, skip=3, workers=2) == alone[3:]


def test_sizes_that_a_data_set_does_not_say_are_those_of_the_pictures(tmp_path):
    """Detectron2's mapper adds them; what comes next is as in a data set that has them."""
    shapes = [(4, 3), (3, 4), (4, 3), (4, 2), (2, 4)]
    for number, (width, height) in enumerate(shapes):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
    files = [{"id": n, "file_name": str(tmp_path / f"{n}.png")} for n in range(len(shapes))]
    with_sizes = [x | y for x, y in zip(files, images(shapes), strict=True)]

    def sized(entry):
        return mapper(with_sizes[entry["id"]])

    expected = batches(with_sizes, 2, True, 5, skip=3)
    assert batches(files, 2, True, 5, skip=3, mapper=sized) == expected


def test_each_image_is_drawn_as_often_and_with_numbers_of_its_own():
    samples = [x for batch in batches(images([(4, 3)] * 3), 2, True, 6) for x in batch]
    assert sorted(x["id"] for x in samples) == sorted([0, 1, 2] * 4)  # four rounds of a sampler
    assert len({x["drawn"] for x in samples}) == 12


def test_mapping_leaves_the_random_numbers_of_the_training_alone():
    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002

    seed()
    expected = draw()
    seed()
    stream = SeededStream(images([(4, 3)] * 3), mapper, [2, 0, 1], seed=5, batch_size=2,
                          grouped=True)  # fmt: skip
    assert len(list(stream)) == 3
    assert draw() == expected


def test_a_loader_of_another_kind_gets_no_hook():
    assert seeded_iterations([1, 2]) == []
    assert seeded_iterations(torch.utils.data.DataLoader([1, 2])) == []


def test_running_means_of_losses_are_kept():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[1].loss_normalizer = 87.25
    state = LossNormalizers(model).state_dict()
    model[1].loss_normalizer = 100
    LossNormalizers(model).load_state_dict(state)
    assert model[1].loss_normalizer == 87.25
    assert not hasattr(model[0], "loss_normalizer")

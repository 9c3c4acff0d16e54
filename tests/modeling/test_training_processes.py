"""Odam-Train in two processes, and in trainings that stop and go on."""

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel
from training_cases import labelled_images, losses_of, training_model
from two_processes import process_group

CASE = "retinanet"


def _gradients(rank, folder):
    """One of two processes: its image, through DistributedDataParallel."""
    torch.set_num_threads(1)
    with process_group(rank, folder):
        model = DistributedDataParallel(training_model(CASE))  # as Detectron2's, but on the CPU
        for _ in range(2):  # the second time, what the first one left behind would be found
            model.zero_grad()
            with EventStorage():
                sum(model(labelled_images()[rank : rank + 1]).values()).backward()
        gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
        torch.save(gradients, f"{folder}/{rank}.pth")


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    mp.spawn(_gradients, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    expected = []
    for image in labelled_images():
        model = training_model(CASE)
        losses_of(model, [image])  # moves the mean number of positives, which RetinaNet divides by
        losses, _ = losses_of(model, [image])
        sum(losses.values()).backward()
        expected.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
        mean = (expected[0][name] + expected[1][name]) / 2
        assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()) + 1e-9)
    alone = losses_of(training_model(CASE), labelled_images()[:1])[0]["loss_odam"]
    assert alone > 0

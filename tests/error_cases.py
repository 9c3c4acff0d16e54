"""Detections and objects to sort by error types."""

import torch
from hypothesis import strategies as st

from odam_d2.analysis.ap_costs import AnalysedImage
from odam_d2.analysis.error_types import sort_detections


def tensors(detections, objects, ignore=()):
    """
    Args:
        detections: (box, score, class) each; objects: (box, label) each; ignore: boxes.
    """
    return (
        torch.tensor([x[0] for x in detections]).float().view(-1, 4),
        torch.tensor([x[1] for x in detections]).float(),
        torch.tensor([x[2] for x in detections], dtype=torch.int64),
        torch.tensor([x[0] for x in objects]).float().view(-1, 4),
        torch.tensor([x[1] for x in objects], dtype=torch.int64),
        torch.tensor(list(ignore)).float().view(-1, 4),
    )


def sort(detections, objects, ignore=(), **options):
    return sort_detections(*tensors(detections, objects, ignore), **options)


def analysed(detections, objects, ignore=(), **options):
    given_tensors = tensors(detections, objects, ignore)
    return AnalysedImage(*given_tensors, sort_detections(*given_tensors, **options))


def kinds(*args, **options):
    return [x.kind for x in sort(*args, **options)]


A, B = [0, 0, 20, 10], [40, 0, 60, 10]  # of class 0
C, D = [0, 30, 10, 60], [40, 30, 60, 40]  # of class 1
FAR = [100, 100, 120, 110]
A_LOW, B_HALF, C_LOW, D_LOW = (
    [0, 0, 20, 8],  # with A 20*8 / 200 = 0.8
    [50, 0, 70, 10],  # with B 10*10 / (200 + 200 - 100) = 1/3
    [0, 30, 10, 54],  # with C 10*24 / 300 = 0.8
    [40, 35, 60, 55],  # with D 20*5 / (200 + 400 - 100) = 0.2
)

# On a small grid, so that boxes overlap, and coincide.
corner = st.integers(0, 6)
box_strategy = st.builds(
    lambda x, y, w, h: [x, y, x + w, y + h], corner, corner, st.integers(1, 7), st.integers(1, 4)
)
label = st.integers(0, 1)
image_strategy = st.tuples(
    st.lists(st.tuples(box_strategy, st.sampled_from([0.25, 0.5, 0.75]), label), max_size=6),
    st.lists(st.tuples(box_strategy, label), max_size=4),
    st.lists(box_strategy, max_size=1),
)

"""
Mutants that change nothing anybody could notice, each with its reason: ten at most of a sample.
"""

# ruff: noqa: E501
# Of a file, the lines of the diff, and why.
EQUIVALENT: list[tuple[str, str, str, str]] = [
    (
        "odam_d2/core/probabilities.py",
        "exponents = (top / math.log(2)).floor().nan_to_num(0, neginf=0)",
        "exponents = (top / math.log(2)).floor().nan_to_num( -1, neginf=0)",
        "Without a number for the derivative, the map has none either, whatever its exponent.",
    ),
    (
        "odam_d2/evaluation/explanation_files.py",
        "figsize=(1.6 + 0.85 * len(shares) + 3.2 * len(curves), 3.6),",
        "figsize=( 0.6000000000000001 + 0.85 * len(shares) + 3.2 * len(curves), 3.6),",
        "Inches of a plot, in which no label gets lost either way: a matter of looks.",
    ),
    (
        "odam_d2/core/nms.py",
        "return torch.where(union > 0, overlap / union.clamp(min=torch.finfo(union.dtype).tiny), 0)",
        "return torch.where(union > -1, overlap / union.clamp(min=torch.finfo(union.dtype).tiny), 0)",
        "Where the union is 0, so is the overlap, and 0 by the least number is 0.",
    ),
    (
        "odam_d2/analysis/explained_errors.py",
        "@dataclass(frozen=True)",
        "@dataclass(frozen=False)",
        "A private class that nothing writes to.",
    ),
    (
        "odam_d2/evaluation/explanation.py",
        "_RENDERED = 16  # maps that are rendered over the image at once",
        "_RENDERED = 17  # maps that are rendered over the image at once",
        "How many maps are rendered at once; each is rendered by itself.",
    ),
    (
        "odam_d2/data/crowdshapes/character.py",
        "@functools.lru_cache(maxsize=64)",
        "@functools.lru_cache(maxsize= 65)",
        "Size of a cache: a drawing that is not in it is made again, the same.",
    ),
    (
        "odam_d2/evaluation/crowd_files.py",
        "objects=np.array(objects, dtype=np.float64).reshape(-1, 4),",
        "objects=np.array(objects, dtype=np.float64).reshape(- 2, 4),",
        "Any negative number is the unknown length to numpy.",
    ),
    (
        "odam_d2/core/nms.py",
        "return chosen, scores, by, lost.nonzero()[:, 0]",
        "return chosen, scores, by, lost.nonzero()[:, -1]",
        "The only axis of indices of a vector, from the front or the back.",
    ),
    (
        "odam_d2/core/full_convolution.py",
        "if len(grid) == 1:",
        "if len(grid) == 0:",
        "One tile also goes through what adds up several; this way is only shorter.",
    ),
    (
        "odam_d2/modeling/explanation.py",
        "like = trace.features[0]",
        "like = trace.features[ -1]",
        "All levels of a pyramid have one dtype and lie on one device, which is all that is asked here.",
    ),
    (
        "odam_d2/modeling/adapters/rcnn.py",
        "heads = with_limits(heads, test_nms_thresh=NO_NMS, test_topk_per_image=-1)",
        "heads = with_limits(heads, test_nms_thresh=NO_NMS, test_topk_per_image=- 2)",
        "Any negative number is no limit to Detectron2.",
    ),
    (
        "odam_d2/modeling/adapters/rcnn_decisions.py",
        "count = trace.features[0].shape[1]",
        "count = trace.features[ -1].shape[1]",
        "What is pooled from all levels is one tensor, so all of them have as many channels.",
    ),
    (
        "odam_d2/modeling/adapters/rcnn_decisions.py",
        "_COMPARED_BYTES = 64 * 2**20",
        "_COMPARED_BYTES = 64 * 3**20",
        "How much is compared at once; each detection is compared by itself.",
    ),
    (
        "odam_d2/modeling/adapters/anchors.py",
        "anchor = rows.indices[0] if len(rows.indices) == 1 else None",
        "anchor = rows.indices[ -1] if len(rows.indices) == 1 else None",
        "The only one, from the front or the back.",
    ),
    (
        "odam_d2/modeling/adapters/pooled_calls.py",
        "out = torch.where(here, read[(rows - start).clamp(0, len(read) - 1)], out)",
        "out = torch.where(here, read[(rows - start).clamp( -1, len(read) - 1)], out)",
        "Rows below the start are not taken, whatever is read in their place.",
    ),
    (
        "odam_d2/modeling/training/dense.py",
        "with torch.autocast(read[0].device.type, enabled=False):",
        "with torch.autocast(read[ -1].device.type, enabled=False):",
        "All levels of a pyramid lie on one device.",
    ),
]

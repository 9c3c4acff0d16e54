"""The greedy search of Visual Precision Search, by hand and against plain sets."""

import pytest
import torch

from odam_d2.core.subset_search import Search, greedy_search, passes_of


def test_the_order_and_its_heat_by_hand():
    """
    Three regions worth 5, 1 and 2, so that v(S) is their sum: a score is v(S) + 1 - (8 - v(S)). In
    the order 0, 2, 1 the scores are -7, 3, 7, 9 (of all, once more), whose steps are 10, 4, 2, 0.
    """
    worth, seen = torch.tensor([5.0, 1, 2]), []

    def value(subsets):
        seen.append(len(subsets))
        return subsets.float() @ worth

    found = greedy_search(value, 3, 100)
    assert found == Search([0, 2, 1], [-7.0, 3, 7, 9, 9])
    assert found.heat(3).tolist() == [6, 0, 2]
    assert seen == [4, 6, 4, 2]  # no region and all, then two for each that is left


@pytest.mark.parametrize(("most", "order", "heat"), [
    (11, [0, 2], [6, 0, 2]), (10, [0, 2], [6, 0, 2]), (9, [0], [6, 0, 0]), (5, [], [0, 0, 0]),
])  # fmt: skip
def test_what_is_left_counts_as_the_last_one(most, order, heat):
    worth = torch.tensor([5.0, 1, 2])
    found = greedy_search(lambda subsets: subsets.float() @ worth, 3, most)
    assert found.order == order
    assert found.heat(3).tolist() == heat
    assert passes_of(3, most) == sum([6, 4, 2][: len(order)])


def plain_search(value, count):
    """The authors' way: a list that grows, and an attribution that falls by each step's size."""
    rest, chosen, scores = list(range(count)), [], []
    everything = frozenset(rest)
    while rest:
        found = [
            value(frozenset([*chosen, region])) + 1 - value(everything - {*chosen, region})
            for region in rest
        ]
        best = max(range(len(rest)), key=found.__getitem__)
        scores.append(found[best])
        chosen.append(rest.pop(best))
    before = [1 - value(everything) + value(frozenset()), *scores[:-1]]
    attribution, level = [0.0] * count, 0.0
    for region, now, then in zip(chosen, scores, before, strict=True):
        level -= abs(now - then)
        attribution[region] = level
    return chosen, [x - min(attribution) for x in attribution]


def test_equal_to_plain_sets():
    """Values of subsets drawn at random, so that scores go up and down."""
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(2**5, generator=generator, dtype=torch.float64)

    def of_bits(subsets):
        return table[(subsets * 2 ** torch.arange(5)).sum(dim=1)]

    order, heat = plain_search(lambda subset: float(table[sum(2**x for x in subset)]), 5)
    found = greedy_search(of_bits, 5, 30)
    assert found.order == order
    torch.testing.assert_close(found.heat(5).tolist(), heat)

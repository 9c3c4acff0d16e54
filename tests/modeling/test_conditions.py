"""Conditions are looked at once, at the end, and none is lost."""

import pytest
import torch
from pretend_device import DEVICE, counted, pretend

from odam_d2.modeling.conditions import conditions_together, require

HOLDS, FAILS = torch.tensor(True), torch.tensor(False)


def error(number):
    return lambda: ValueError(f"condition {number}")


def test_by_itself_a_condition_is_looked_at_at_once():
    require(HOLDS, error(1))
    with pytest.raises(ValueError, match="condition 1"):
        require(FAILS, error(1))


def together(*conditions, breaks=None):
    """Require some conditions together; then something breaks."""
    with conditions_together():
        for number, holds in enumerate(conditions):
            require(holds, error(number))
        if breaks is not None:
            raise breaks
        return "not at the end"


def test_together_the_first_that_does_not_hold_raises_at_the_end():
    with pytest.raises(ValueError, match="condition 2"):
        together(HOLDS, HOLDS, FAILS, FAILS)
    assert together(HOLDS, HOLDS)  # nothing is left of those before


def test_the_inner_ones_are_looked_at_at_the_inner_end():
    with conditions_together():
        with pytest.raises(ValueError, match="condition 1"):
            together(HOLDS, FAILS)
        require(HOLDS, error(2))


def test_what_breaks_because_of_a_condition_is_told_by_it():
    with pytest.raises(ValueError, match="condition 1") as told:
        together(HOLDS, FAILS, breaks=KeyError("a consequence"))
    assert isinstance(told.value.__cause__, KeyError)
    with pytest.raises(KeyError):
        together(HOLDS, breaks=KeyError("of its own"))


def test_the_host_waits_once():
    with pretend(), counted() as counts, conditions_together():
        for number in range(5):
            require((torch.ones(3, device=DEVICE) > 0).all(), error(number))
    assert dict(counts.waits) == {"tolist": 1}

"""What the tests of heads by third parties share."""

import pytest
import torch

from odam_d2 import UnsupportedModelError

WEAK = 1e-3
"""Size of a change by which a score moves by less than one per cent."""

BOXES = [torch.tensor([[20.0, 20, 120, 200], [5, 5, 60, 60]]), torch.tensor([[20.0, 30, 70, 140]])]
CLASSES = [torch.tensor([0, 5]), torch.tensor([2])]
"""Given boxes at the output of ``two_images``."""


def assert_refused(run, cls, reason):
    """In one sentence, with the class as its author knows it, the reason, and the general way."""
    with pytest.raises(UnsupportedModelError) as refusal:
        run()
    message = str(refusal.value)
    assert f"{cls.__module__}.{cls.__name__}" in message
    assert reason in message
    assert "explain_outputs" in message
    assert not any(word in message for word in ("Traced", "Explaining", "Reading", "\n"))

"""What cannot be explained, and what to do about it."""

from odam_d2.core.errors import InputError

__all__ = ["GENERAL_WAY", "UnsupportedModelError", "unexplained"]

GENERAL_WAY = "explain it by odam_d2.explain_outputs (docs/your_own_head.md)"
"""What to do about a head that no adapter knows, for error messages."""


class UnsupportedModelError(InputError, TypeError):
    """No adapter knows this model, or a part of it; the message names the part."""


def unexplained(why: str) -> UnsupportedModelError:
    """The error that says why a model has no maps, and what to do about it."""
    return UnsupportedModelError(f"{why}; {GENERAL_WAY}")

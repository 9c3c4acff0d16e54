"""Errors about what the caller asked for."""

__all__ = ["InputError"]


class InputError(ValueError):
    """What the caller asked for cannot be; the message is one sentence for the user."""

"""Building what a config says, with an error that a user can read where it cannot be."""

import contextlib
from collections.abc import Iterator

from odam_d2.core.errors import InputError
from odam_d2.errors import UserError, one_line

__all__ = ["building_errors"]


@contextlib.contextmanager
def building_errors() -> Iterator[None]:
    """
    Around building a model of a YAML config: what Detectron2 and torch raise for a name that is not
    registered, or a value that nothing can be built of, becomes a :class:`UserError`.
    """
    try:
        yield
    except (UserError, InputError):
        raise
    except (
        AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError,
        ZeroDivisionError,
    ) as error:  # fmt: skip
        words = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"the model cannot be built from the config ({words})") from error

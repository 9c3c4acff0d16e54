"""Errors that the user can mend, told in one sentence."""

import re
import sys
from collections.abc import Callable

from torch.multiprocessing.spawn import ProcessRaisedException
from tqdm import tqdm

from odam_d2.core.errors import InputError

__all__ = ["UserError", "one_line", "run_tool"]

# An error of ours, or the system's, in the traceback of another process, which is all that PyTorch
# passes on. The last one counts: those before it are its causes.
_PASSED_ON = re.compile(
    r"^(?:odam_d2\.(?:\w+\.)*\w*Error: |\w*Error: \[Errno \d+\] )(.+)$", re.MULTILINE
)


class UserError(Exception):
    """Something outside the program is wrong; the message is one sentence for the user."""


def one_line(error: BaseException) -> str:
    """The message of an exception without line breaks."""
    return " ".join(str(error).split())


def run_tool(main: Callable[[], object]) -> int:
    """
    Run the main function of a command line tool and turn what the user can mend into one line.

    Args:
        main: the tool. What it returns is ignored.

    Returns:
        The exit status: 0 for success, 1 after a :class:`UserError` or :class:`InputError` (also
        one that was raised in a process that Detectron2's ``launch`` or a data loader started) or
        an :class:`OSError`, or where memory does not suffice, 130 after Ctrl-C.
        Other exceptions pass.
    """
    try:
        main()
    except (UserError, InputError, ProcessRaisedException) as error:
        if passed_on := _PASSED_ON.findall(str(error)):
            return _report(passed_on[-1])
        if isinstance(error, ProcessRaisedException):
            raise
        return _report(str(error))
    except OSError as error:  # a file or folder that is not as it should be, a full disk
        if passed_on := _PASSED_ON.findall(str(error)):
            return _report(passed_on[-1])
        where = f": {error.filename!r}" if error.filename else ""
        return _report(f"{error.strerror}{where}" if error.strerror else str(error))
    except MemoryError as error:
        return _report(f"there is not enough memory {error}".strip())
    except KeyboardInterrupt as interrupt:
        _tell(f"interrupted {interrupt}".strip())
        return 130
    return 0


def _report(sentence: str) -> int:
    _tell(f"error: {sentence}")
    return 1


def _tell(sentence: str) -> None:
    """On a line of its own, also where a progress bar still stands."""
    tqdm.write(sentence, file=sys.stderr)

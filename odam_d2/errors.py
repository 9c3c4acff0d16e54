"""Errors that the user can mend, told in one sentence."""

import re
import sys
from collections.abc import Callable

from torch.multiprocessing.spawn import ProcessRaisedException

__all__ = ["UserError", "run_tool"]


class UserError(Exception):
    """Something outside the program is wrong; the message is one sentence for the user."""


def run_tool(main: Callable[[], object]) -> int:
    """
    Run the main function of a command line tool and turn what the user can mend into one line.

    Args:
        main: the tool. What it returns is ignored.

    Returns:
        The exit status: 0 for success, 1 after a :class:`UserError` (also one that was raised in
        a process that Detectron2's ``launch`` started), 130 after Ctrl-C. Other exceptions pass.
    """
    try:
        main()
    except UserError as error:
        return _report(str(error))
    except ProcessRaisedException as error:
        sentence = re.search(r"^odam_d2\.errors\.UserError: (.+)$", str(error), re.MULTILINE)
        if sentence is None:
            raise
        return _report(sentence.group(1))
    except KeyboardInterrupt as interrupt:
        print(f"interrupted {interrupt}".strip(), file=sys.stderr)
        return 130
    return 0


def _report(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1

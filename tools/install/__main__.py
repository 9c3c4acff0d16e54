"""
Make or find the environment that odam_d2 runs in: ``python tools/install``. Standard library only.

If the Python that runs this has torch and detectron2, it is used, and only what is missing is
added. Otherwise ``.venv`` in the checkout is made, with pinned versions.
"""

import argparse
import os
import sys

from checks import InstallError, check_python


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/install", description=__doc__)
    parser.add_argument(
        "--print-python", action="store_true", help="print the environment's Python, do no more"
    )
    parser.add_argument(
        "--exact-python",
        action="store_true",
        help="make .venv again if it has another Python than the one that runs this",
    )
    parser.add_argument("--dev", action="store_true", help="also what tests and linter need")
    parser.add_argument(
        "--use-env",
        choices=["0", "1", ""],
        default=os.environ.get("USE_ENV", ""),
        help="1: use the environment of this Python; 0: use .venv (default: $USE_ENV, or decide)",
    )
    parser.add_argument(
        "--detectron2",
        default=os.environ.get("DETECTRON2", ""),
        metavar="REQUIREMENT_OR_PATH",
        help="the Detectron2 that .venv gets by pip instead of the reviewed wheel, such as a "
        "checkout of its repository (default: $DETECTRON2)",
    )
    return parser


def main():
    """Run the command line; return the exit status."""
    args = get_parser().parse_args()
    try:
        check_python(newest=None)
        from select_environment import select_environment  # not before Python is new enough

        environment = select_environment(args.use_env, detectron2=args.detectron2)
        if args.print_python:
            print(environment.python)
        else:
            environment.install(exact_python=args.exact_python, dev=args.dev)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

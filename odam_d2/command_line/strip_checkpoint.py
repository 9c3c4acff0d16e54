"""
Reduce a training checkpoint to the weights of its model.

    tools/strip_checkpoint.py output/crowdshapes/retinanet/model_final.pth retinanet.pth
"""

import argparse

from odam_d2.errors import run_tool
from odam_d2.model_zoo.strip import strip_checkpoint


def run(argv: list[str] | None = None) -> None:
    """Parse the arguments and strip."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "source", help="checkpoint written by tools/train_net.py or tools/train_scattered.py"
    )
    parser.add_argument("target", help="file to write")
    parser.add_argument("--without", default="", metavar="PREFIX",
                        help="leave out weights whose names begin with it: probes. of those that "
                        "tools/train_scattered.py trained")  # fmt: skip
    args = parser.parse_args(argv)
    size = strip_checkpoint(args.source, args.target, args.without)
    print(f"{args.target}: {size / 1e6:.1f} MB")


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)

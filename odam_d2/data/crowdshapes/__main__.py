"""Build splits of CrowdShapes: `python -m odam_d2.data.crowdshapes --split crowdshapes_val`."""

import argparse

from ..paths import datasets_root
from .dataset import SPLITS, build_split


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m odam_d2.data.crowdshapes", description="Build CrowdShapes."
    )
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=list(SPLITS), help="which")
    parser.add_argument("--out", default=None, help="data folder (default: %(const)s)",
                        const=str(datasets_root()), nargs="?")  # fmt: skip
    return parser


def main() -> None:
    args = get_parser().parse_args()
    for name in args.split:
        print(build_split(name, args.out))


if __name__ == "__main__":
    main()

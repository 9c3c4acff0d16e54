"""Starting a tool in as many processes as its arguments ask for."""

import argparse
from collections.abc import Callable

from detectron2.engine import default_argument_parser, launch

from odam_d2.data.given import add_data_arguments

from .checks import check_num_gpus
from .project import add_import_argument

__all__ = ["launch_tool"]


def launch_tool(
    main: Callable[[argparse.Namespace], object], epilog: str, argv: list[str] | None = None
) -> None:
    """
    Parse Detectron2's default arguments, and ours for projects and data, and run ``main`` in a
    process for each GPU, or a single one.

    Args:
        main: runs once in each process; gets the arguments.
        epilog: examples for ``--help``.
        argv: the command line, by default that of the program.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    parser = default_argument_parser(epilog=epilog)
    add_import_argument(parser)
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    check_num_gpus(args.num_gpus)
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )

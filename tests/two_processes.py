"""Tests with two processes that talk to each other, as Detectron2's ``launch`` starts them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.utils import comm


@contextmanager
def process_group(rank: int, folder: Path | str) -> Iterator[None]:
    """
    Be one of two processes.

    Args:
        rank: 0 or 1.
        folder: where they meet: not at a port, which may not be free any more when it is used.
            Each pair of processes needs one of its own.
    """
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    yield
    # Threads of a group that is still there, or still talked to, when Python ends abort it.
    torch.distributed.barrier()
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    torch.distributed.destroy_process_group()

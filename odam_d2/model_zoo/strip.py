"""Making a training checkpoint small enough to ship."""

from collections.abc import Mapping
from pathlib import Path

import torch

from odam_d2.errors import UserError
from odam_d2.files import write_torch

__all__ = ["strip_checkpoint"]


def strip_checkpoint(source: str | Path, target: str | Path, without: str = "") -> int:
    """
    Keep only the weights of a checkpoint that Detectron2's trainer wrote: no optimizer, scheduler
    or iteration, floating point values in float32. It loads by ``MODEL.WEIGHTS`` as before.

    Args:
        source: a ``.pth`` file of the trainer.
        target: where to write the result; replaced only when complete.
        without: names of weights that begin with it are left out as well, if it is not empty.

    Returns:
        The size of the result in bytes.

    Raises:
        UserError: ``source`` is missing or is not such a checkpoint.
        OSError: it cannot be read.
    """
    try:
        model = torch.load(source, map_location="cpu", weights_only=True)["model"]
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {str(source)!r} does not exist") from error
    except OSError:
        raise
    except Exception as error:  # whatever unpickling a foreign file may raise
        raise UserError(f"{str(source)!r} is not a checkpoint of the trainer") from error
    tensors = isinstance(model, Mapping) and all(
        isinstance(v, torch.Tensor) for v in model.values()
    )
    if not tensors or not model:
        raise UserError(
            f"{str(source)!r} is not a checkpoint of the trainer: its 'model' holds no weights"
        )
    # clone: a view would drag its whole storage into the file
    kept = {
        name: (value.float() if value.is_floating_point() else value).clone()
        for name, value in model.items()
        if not (without and name.startswith(without))
    }
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_torch(target, {"model": kept})
    return target.stat().st_size

"""What can end a training early, for both kinds of trainer."""

import contextlib
from collections.abc import Iterator

from detectron2.engine import TrainerBase

from odam_d2.errors import UserError, one_line

from .checkpointer import SafeCheckpointer

__all__ = ["nothing_lost"]


@contextlib.contextmanager
def nothing_lost(
    trainer: TrainerBase, checkpointer: SafeCheckpointer, rate_key: str
) -> Iterator[None]:
    """
    Around a training: on Ctrl-C, what was trained so far is saved first, so that ``--resume``
    continues after the last finished iteration.

    Args:
        trainer: what runs.
        checkpointer: saves the model and the state of ``trainer``.
        rate_key: where the config has the learning rate, for the message.

    Raises:
        UserError: the loss is not finite any more.
        KeyboardInterrupt: with a message that says up to where the training is saved.
    """
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"training diverged, a smaller {rate_key} may help: {one_line(error)}"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_save(trainer, checkpointer)) from None


def _save(trainer: TrainerBase, checkpointer: SafeCheckpointer) -> str:
    """Save a checkpoint in the middle of an iteration; say up to where it goes."""
    trainer.iter -= 1  # the iteration under way is repeated when resuming
    if trainer.iter < trainer.start_iter:
        return "before the first iteration"
    checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
    return f"after iteration {trainer.iter}, saved in {checkpointer.save_dir}: --resume goes on"

"""What can end a training early, for both kinds of trainer."""

import contextlib
import logging
import os
from collections.abc import Iterator

from detectron2.engine import TrainerBase, default_writers, train_loop
from detectron2.utils.events import EventWriter

from odam_d2.core.errors import InputError
from odam_d2.errors import UserError, one_line
from odam_d2.files import drop_unfinished_line

from .checkpointer import SafeCheckpointer
from .whole_checkpoints import is_whole, named_checkpoint

__all__ = ["event_writers", "nothing_lost", "save_if_finished"]

_TOLD = (UserError, InputError, OSError, FloatingPointError)
"""What a training may end with that is told in one sentence."""


def save_if_finished(
    trainer: TrainerBase, checkpointer: SafeCheckpointer, start_iter: int, max_iter: int
) -> None:
    """
    Save ``model_final.pth`` where a training that is resumed has no step left, and was killed
    after its last checkpoint and before that file, or it is damaged, or the name of it is:
    Detectron2 saves after a step only.

    Args:
        trainer: its state goes into the file.
        checkpointer: has loaded what the training goes on from.
        start_iter, max_iter: the first iteration, and the number of all.
    """
    final = os.path.join(checkpointer.save_dir, "model_final.pth")
    if not 0 < max_iter <= start_iter:
        return
    if not is_whole(final) or named_checkpoint(checkpointer.save_dir) != "model_final.pth":
        trainer.iter = start_iter - 1
        checkpointer.save("model_final", iteration=trainer.iter)


def event_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """Detectron2's, after what a killed training wrote last to ``metrics.json``, if it is whole."""
    drop_unfinished_line(os.path.join(output_dir, "metrics.json"))
    return default_writers(output_dir, max_iter)


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
    log = logging.getLogger(train_loop.__name__)
    log.addFilter(_without_traceback)
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"training diverged, a smaller {rate_key} may help: {one_line(error)}"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_save(trainer, checkpointer)) from None
    finally:
        log.removeFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Detectron2 logs every exception of a training; some are no mistake in the program."""
    if record.exc_info and isinstance(record.exc_info[1], _TOLD):
        record.msg, record.args = "%s", (f"{record.msg} {one_line(record.exc_info[1])}",)
        record.exc_info = None
    return True


def _save(trainer: TrainerBase, checkpointer: SafeCheckpointer) -> str:
    """Save a checkpoint in the middle of an iteration; say up to where it goes."""
    trainer.iter -= 1  # the iteration under way is repeated when resuming
    if trainer.iter < trainer.start_iter:
        return "before the first iteration"
    checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
    return f"after iteration {trainer.iter}, saved in {checkpointer.save_dir}: --resume goes on"

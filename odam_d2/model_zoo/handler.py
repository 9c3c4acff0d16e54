"""Addresses of the trained detectors that come with the project: ``odam://CrowdShapes/NAME.pth``."""

from pathlib import Path
from typing import IO

from detectron2.utils.file_io import PathHandler, PathManager

from odam_d2.errors import UserError

__all__ = ["OdamHandler", "available_weights"]

WEIGHTS_DIR = Path(__file__).parent / "weights"


def available_weights() -> list[str]:
    """The addresses of all shipped checkpoints, sorted."""
    files = sorted(WEIGHTS_DIR.rglob("*.pth"))
    return [OdamHandler.PREFIX + file.relative_to(WEIGHTS_DIR).as_posix() for file in files]


class OdamHandler(PathHandler):
    """Resolves ``odam://`` to the files below ``odam_d2/model_zoo/weights``; read only."""

    PREFIX = "odam://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        """
        The file behind an address.

        Raises:
            UserError: there is none; names those that there are.
        """
        if path not in available_weights():
            raise UserError(f"there is no {path!r}; available are {', '.join(available_weights())}")
        return str(WEIGHTS_DIR / path.removeprefix(self.PREFIX))

    def _isfile(self, path: str, **kwargs: object) -> bool:
        return path in available_weights()

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> IO:
        if set(mode) - set("rbt"):
            raise UserError(f"{path!r} comes with the project and cannot be written")
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(OdamHandler(), allow_override=True)

"""Where the configs of the project are: in the package once installed, else in the checkout."""

import os
from pathlib import Path

from odam_d2.errors import UserError

__all__ = ["available_configs", "find_config_file", "get_config_file"]

# In an installed package they lie below this one; in a checkout, at its top.
_INSTALLED = Path(__file__).parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"


def available_configs() -> list[str]:
    """Names of all configs, such as ``"CrowdShapes/fcos_R_50_FPN_slim.yaml"``, sorted."""
    files = [file.relative_to(CONFIGS) for file in CONFIGS.glob("*/*") if file.name[:4] != "Base"]
    return sorted(
        file.as_posix()
        for file in files
        if file.suffix in (".yaml", ".py") and file.parts[0] != "common"
    )


def get_config_file(config_path: str) -> str:
    """
    The file of a config.

    Args:
        config_path: name below ``configs/``, one of :func:`available_configs`.

    Returns:
        Its path on this machine.

    Raises:
        UserError: there is none; says how to see those that there are.
    """
    file = CONFIGS / config_path
    if config_path not in available_configs():
        raise UserError(
            f"there is no config {config_path!r} in odam_d2's model zoo; "
            "odam_d2.model_zoo.available_configs() lists those that there are"
        )
    return str(file)


def find_config_file(path: str) -> str:
    """``path`` where there is such a file; else the file of the project's config of that name."""
    return (
        get_config_file(path) if path in available_configs() and not os.path.exists(path) else path
    )

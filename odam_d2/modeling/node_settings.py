"""What the settings of a method that has a node of its own in the config have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeVar

from detectron2.config import CfgNode

from odam_d2.core.ranges import check_number

__all__ = ["MAX_NUMBER", "NodeSettings"]

MAX_NUMBER = 10**9
"""Far beyond what has a use, and still computed."""

S = TypeVar("S", bound="NodeSettings")


@dataclass(frozen=True)
class NodeSettings:
    """
    Attributes:
        NODE: of the config, in ``MODEL.ODAM``.
        named_by_keys: whether messages name the keys of a config, or arguments.
    """

    NODE: ClassVar[str]

    named_by_keys: bool = field(default=False, repr=False, compare=False, kw_only=True)

    def _check(self, words: str, low: int, high: int, *names: str) -> None:
        """Whole numbers."""
        for name in names:
            check_number(self.argument(name), getattr(self, name), words, low, high, whole=True)

    def _check_seed(self, name: str = "seed") -> None:
        self._check(
            f"a whole number of at most {MAX_NUMBER} in size", -MAX_NUMBER, MAX_NUMBER, name
        )

    def argument(self, name: str) -> str:
        """A setting as whoever gave it knows it."""
        return f"MODEL.ODAM.{self.NODE}.{name.upper()}" if self.named_by_keys else name

    @classmethod
    def from_config(cls: type[S], odam: CfgNode) -> S:
        """The settings in ``cfg.MODEL.ODAM``."""
        names = [f.name for f in fields(cls) if f.name != "named_by_keys"]
        values = {name: odam[cls.NODE][name.upper()] for name in names}
        return cls(**values, named_by_keys=True)

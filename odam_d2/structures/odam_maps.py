"""The structure that carries heat maps through Detectron2's ``Instances``."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odam_d2.core.heatmap import normalize
from odam_d2.core.resample import Axis, place_windows, window_weights

from .arrays_file import TENSORS, Saved
from .display import Display

__all__ = ["OdamMaps"]


class OdamMaps(Display, Saved):
    """
    Heat maps of N instances and T targets, kept as windows of feature cells.

    A detection sees a small part of the feature map, so a map is zero outside a window. Like
    Detectron2's ``ROIMasks`` beside its ``BitMasks``, this keeps the windows only; :meth:`dense`
    renders them over an image of any size. As a field of ``Instances`` it follows indexing, ``cat``
    and ``to``, and it needs no rescaling when the boxes are rescaled.

    Attributes:
        targets (tuple[str]): names of the T targets, such as ``("class", "left")``.
        values (Tensor): (N, T, h, w), raw maps, not negative unless ``signed``. h and w are the
            largest window's; a smaller one is padded with zeros.
        origins (Tensor): (N, 2) integers, (row, column) of the window's first cell on the feature
            map. It may be negative, or the window may stick out: such cells are zero.
        strides (Tensor): (N,) floats, network-input pixels per cell.
        grid_sizes (Tensor): (N, 2) integers, (rows, columns) of the whole feature map.
        image_sizes (Tensor): (N, 2) integers, (height, width) of the network's input image without
            its padding: the part of the feature map that shows the image.
        levels (Tensor): (N,) integers, index of the feature map among those that the head reads.
        saturated (Tensor): (N, T) bool, maps that are lost: of a probability so near 0 or 1 that
            the dtype of the values cannot hold its derivative. Explain the logit then.
        signed (bool): whether what lies below zero is evidence against a decision: what pushes a
            score down, a side inward. Otherwise there is evidence for it only.
    """

    def __init__(
        self,
        targets: Sequence[str],
        values: Tensor,
        *,
        origins: Tensor,
        strides: Tensor,
        grid_sizes: Tensor,
        image_sizes: Tensor,
        levels: Tensor,
        saturated: Tensor | None = None,
        signed: bool = False,
    ):
        self.targets = tuple(targets)
        self.values = values
        self.origins = origins
        self.strides = strides
        self.grid_sizes = grid_sizes
        self.image_sizes = image_sizes
        self.levels = levels
        self.signed = signed
        if saturated is None:
            saturated = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
        self.saturated = saturated
        count = len(values)
        if values.dim() != 4 or values.shape[1] != len(self.targets):
            raise ValueError(
                f"values must have the shape (N, {len(self.targets)}, h, w) for the targets "
                f"{self.targets}, not {tuple(values.shape)}"
            )
        for name, shape in (("origins", (2,)), ("grid_sizes", (2,)), ("image_sizes", (2,)),
                            ("strides", ()), ("levels", ()),
                            ("saturated", (len(self.targets),))):  # fmt: skip
            found = tuple(getattr(self, name).shape)
            if found != (count, *shape):
                raise ValueError(f"{name} must have the shape {(count, *shape)}, not {found}")

    @classmethod
    def empty(cls, targets: Sequence[str], like: Tensor, signed: bool = False) -> OdamMaps:
        """
        Maps of no instance.

        Args:
            targets: names of the T targets.
            like: has the dtype and the device that they shall have.

        Returns:
            Maps with N = 0.
        """
        pair = torch.zeros((0, 2), dtype=torch.long, device=like.device)
        return cls(
            targets,
            like.new_zeros((0, len(targets), 0, 0)),
            origins=pair,
            strides=like.new_zeros((0,)),
            grid_sizes=pair,
            image_sizes=pair,
            levels=pair[:, 0],
            signed=signed,
        )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        h, w = self.values.shape[-2:]
        signed = ", signed=True" if self.signed else ""
        return (
            f"OdamMaps(num_instances={len(self)}, targets={self.targets}, window={h}x{w}{signed})"
        )

    @property
    def device(self) -> torch.device:
        return self.values.device

    def _replace(
        self,
        targets: Sequence[str] | None = None,
        signed: bool | None = None,
        **tensors: Tensor,
    ) -> OdamMaps:
        fields = {name: getattr(self, name) for name in TENSORS} | tensors
        signed = self.signed if signed is None else signed
        return OdamMaps(self.targets if targets is None else targets, signed=signed, **fields)

    def to(self, *args: Any, **kwargs: Any) -> OdamMaps:
        """
        Like ``Tensor.to``. A dtype changes the values only; origins and sizes stay integers.

        Args:
            *args, **kwargs: of ``Tensor.to``.

        Returns:
            The maps there.
        """
        moved = {name: getattr(self, name).to(self.values.to(*args, **kwargs).device)
                 for name in TENSORS}  # fmt: skip
        return self._replace(**moved | {"values": self.values.to(*args, **kwargs)})

    def detach(self) -> OdamMaps:
        """The same maps outside the autograd graph."""
        return self._replace(values=self.values.detach())

    def __getitem__(self, item: Any) -> OdamMaps:
        """
        Select instances or targets.

        Args:
            item: of instances an int (keeping the axis, like ``Boxes``), a slice, a list of ints,
                or a boolean or integer tensor; of targets a name or several, as in
                ``maps["left", "class"]``.

        Returns:
            Their maps.

        Raises:
            IndexError: there are not so many instances, or it is nothing that chooses some.
            KeyError: a target was not explained.
        """
        if isinstance(item, str) or (isinstance(item, tuple) and item and isinstance(item[0], str)):
            return self.select(item)
        if item is None or isinstance(item, bool):
            raise IndexError(
                f"instances are chosen by an int, a slice, a list of ints or a tensor, not {item}"
            )
        index = self._index(item)
        return self._replace(**{name: getattr(self, name)[index] for name in TENSORS})

    def _index(self, item: int | slice | Tensor | Sequence[int]) -> slice | Tensor:
        """Integers for all tensors, where each would make the host wait for a mask of its own."""
        if isinstance(item, slice):
            return item
        if isinstance(item, Integral):  # numpy's, too
            number = int(item)
            if not -len(self) <= number < len(self):
                raise IndexError(f"instance {number} asked of {len(self)}")
            return slice(number % len(self), number % len(self) + 1)
        index = torch.as_tensor(item, device=self.device)
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {tuple(index.shape)} for {len(self)} instances")
            return index.nonzero().squeeze(1)
        return index if index.numel() else index.long()

    @staticmethod
    def cat(maps_list: Sequence[OdamMaps]) -> OdamMaps:
        """
        Join instances, as ``Instances.cat`` does.

        Args:
            maps_list: one or more, with the same targets.

        Returns:
            All of them, with windows padded with zeros to the largest.

        Raises:
            ValueError: there is none, or they differ in targets or in having a sign.
        """
        if not maps_list or not all(isinstance(maps, OdamMaps) for maps in maps_list):
            raise ValueError("cat needs a list of OdamMaps, at least one")
        targets = maps_list[0].targets
        if any(maps.targets != targets for maps in maps_list):
            raise ValueError(f"targets differ: {sorted({maps.targets for maps in maps_list})}")
        if len({maps.signed for maps in maps_list}) > 1:
            raise ValueError("some maps are signed and others are not: take positive() of those")
        if len(maps_list) == 1:
            return maps_list[0]
        height = max(maps.values.shape[-2] for maps in maps_list)
        width = max(maps.values.shape[-1] for maps in maps_list)
        fields = {n: torch.cat([getattr(m, n) for m in maps_list]) for n in TENSORS[1:]}
        values = [
            F.pad(m.values, (0, width - m.values.shape[-1], 0, height - m.values.shape[-2]))
            for m in maps_list
        ]
        return OdamMaps(targets, torch.cat(values), signed=maps_list[0].signed, **fields)

    def split(self, counts: Sequence[int]) -> list[OdamMaps]:
        """
        Like ``Tensor.split`` along N.

        Args:
            counts: so many instances each, N in sum.

        Returns:
            The parts.
        """
        pieces = zip(*(getattr(self, name).split(list(counts)) for name in TENSORS), strict=True)
        return [self._replace(**dict(zip(TENSORS, piece, strict=True))) for piece in pieces]

    def target_index(self, target: str) -> int:
        """
        The place of a target on the axis T.

        Args:
            target: one of :attr:`targets`.

        Returns:
            Its index.

        Raises:
            KeyError: it was not explained.
        """
        if target not in self.targets:
            raise KeyError(f"target {target!r} was not explained; there are {list(self.targets)}")
        return self.targets.index(target)

    def select(self, targets: str | Sequence[str]) -> OdamMaps:
        """
        The maps of some of the targets.

        Args:
            targets: one of :attr:`targets`, or a list of them.

        Returns:
            Maps of these, in the order given, also of one with the axis T.

        Raises:
            KeyError: one was not explained.
            ValueError: they are no names.
        """
        targets = [targets] if isinstance(targets, str) else targets
        if not isinstance(targets, (list, tuple)):
            raise ValueError(f"targets are {targets!r}; they must be names of {self.targets}")
        index = [self.target_index(target) for target in targets]

        def chosen(x: Tensor) -> Tensor:  # not by a list, which is copied to the device
            return torch.stack([x[:, at] for at in index], dim=1) if index else x[:, :0]

        return self._replace(targets, values=chosen(self.values), saturated=chosen(self.saturated))

    def positive(self) -> OdamMaps:
        """The evidence for the decisions: what is above zero, as maps without a sign."""
        return self._replace(values=self.values.relu(), signed=False) if self.signed else self

    def negative(self) -> OdamMaps:
        """
        The evidence against the decisions.

        Returns:
            How far values are below zero, without a sign.

        Raises:
            ValueError: the maps have no sign; explain with ``signed=True``.
        """
        if not self.signed:
            raise ValueError("these maps have no sign; explain with signed=True")
        return self._replace(values=(-self.values).relu(), signed=False)

    def normalized(self) -> OdamMaps:
        """
        Each map scaled to a maximum of one, signed ones in size: for looking, not for comparing
        instances.
        """
        return self._replace(values=normalize(self.values))

    def dense(self, height: int, width: int) -> Tensor:
        """
        Render the maps over the image, resized to any size.

        Args:
            height, width: pixels of the result, which shows the whole image: the original one, the
                network's input, or a thumbnail.

        Returns:
            (N, T, height, width). Of 100 instances x 5 targets at 800 x 1216 these are 1.9 GB in
            float32; index the maps first where that is too much.

        Raises:
            ValueError: the size is not in whole pixels above 0.
        """
        if not all(isinstance(side, Integral) and side > 0 for side in (height, width)):
            raise ValueError(
                f"the size is {height!r} x {width!r}; it must be whole pixels, 1 or more"
            )
        rows, columns = self.image_sizes.double().unbind(dim=1)
        steps = torch.stack([rows / height, columns / width], dim=1)
        return self.resampled(steps, (height, width))

    def on_grid(self, stride: float) -> Tensor:
        """
        Resample to one grid, so that maps of different levels can be compared cell by cell. All
        instances must be of one image.

        Args:
            stride: network-input pixels per cell of the grid.

        Returns:
            (N, T, ceil(image height / stride), ceil(image width / stride)).

        Raises:
            ValueError: the stride is not above 0, or the images differ in size.
        """
        if not (isinstance(stride, Real) and 0 < stride < float("inf")):
            raise ValueError(f"stride is {stride!r}; it must be a number of pixels above 0")
        sizes = sorted(set(map(tuple, self.image_sizes.tolist())))
        if len(sizes) > 1:
            raise ValueError(f"maps of images of different sizes share no grid: {sizes}")
        height, width = sizes[0] if sizes else (0, 0)
        shape = int(-(-height // stride)), int(-(-width // stride))
        return self.resampled(stride, shape)

    def similarity(self, target: str = "class", stride: float = 16.0) -> Tensor:
        """
        Correlation of every pair of instances' maps of one target: the cosine of the maps on one
        common grid (ODAM, section 3.3), of signed maps that of their positive parts. All instances
        must be of one image.

        Args:
            target: one of :attr:`targets`.
            stride: network-input pixels per cell of the common grid.

        Returns:
            (N, N) in [0, 1]; zero for a map that is zero everywhere.
        """
        # To a peak of one first: squares of maps of a probability near 1 underflow.
        maps = normalize(self.select(target).positive().on_grid(stride))
        flat = F.normalize(maps.flatten(1), dim=1)
        return (flat @ flat.t()).clamp(max=1)

    def resampled(self, step: Tensor | float, shape: tuple[int, int]) -> Tensor:
        """
        Resample, each instance's map by itself; what lies beyond its image means nothing.

        Args:
            step: input pixels per sample, a number or (N, 2), along rows and along columns.
            shape: of each axis, how many samples.

        Returns:
            (N, T, *shape).
        """
        if not len(self):
            return self.values.new_zeros((0, len(self.targets), *shape))
        sides = self.values.shape[-2:]
        both = Axis(
            self.origins.t().flatten(),
            self.grid_sizes.t().flatten(),
            self.strides.repeat(2),
            step.t().flatten() if isinstance(step, Tensor) else step,
        )
        rows, columns = window_weights(both, max(sides), max(shape)).split(len(self))
        rows, columns = rows[:, : shape[0], : sides[0]], columns[:, : shape[1], : sides[1]]
        return place_windows(self.values, rows, columns)

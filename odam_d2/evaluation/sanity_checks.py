"""
Do maps depend on what the detector has learned? Parameters of a copy are randomised, and the same
decisions explained again (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018): a map
that stays as it was shows the image, or the place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import Tensor, nn
from tqdm import tqdm

from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_number, check_one_of
from odam_d2.digests import describe, digest
from odam_d2.fingerprint import entry_key
from odam_d2.modeling.adapters.base import build_adapter
from odam_d2.modeling.adapters.head import head_adapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.mask_settings import StateSettings
from odam_d2.modeling.randomisation import (
    Layer,
    layers_top_down,
    own_copy,
    randomised,
    write_parameters,
)
from odam_d2.modeling.rereading import rereading
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import preserved
from odam_d2.modeling.targets import Classes, Targets
from odam_d2.structures import OdamMaps

from .found_objects import found_objects, next_entries, picture_at
from .map_similarity import maps_in_boxes, similarity
from .rows import RowFiles
from .sanity_files import write_sanity
from .sanity_results import CASCADING, INDEPENDENT, OTHER_IMAGE, Similarities, summarize

__all__ = ["ORDERS", "SanityCheckEvaluator", "SanityCheckSettings"]

ORDERS = (CASCADING, INDEPENDENT)
"""Each layer together with all above it, or by itself."""

_MOST = 10**9


@dataclass(frozen=True)
class SanityCheckSettings:
    """
    Attributes:
        score_thresh, iou_thresh: of detections.
        per_image: objects of each image, the best scores first; -1 is all.
        orders: how layers are randomised one after the other, of :data:`ORDERS`; all together they
            are anyway.
        seed: of the random parameters, which every image has of its own.
    """

    score_thresh: float = 0.1
    iou_thresh: float = 0.5
    per_image: int = -1
    orders: tuple[str, ...] = ORDERS
    seed: int = 0

    def __post_init__(self) -> None:
        prefix = "TEST.ODAM.SANITY_CHECKS."
        for name in ("score_thresh", "iou_thresh"):
            check_number(prefix + name.upper(), getattr(self, name), "in [0, 1]", 0, 1)
        for name, least in (("per_image", -1), ("seed", -_MOST)):
            words = f"{least} or more"
            check_number(
                prefix + name.upper(), getattr(self, name), words, least, _MOST, whole=True
            )
        for order in self.orders:
            check_one_of(prefix + "ORDERS", order, ORDERS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SanityCheckSettings:
        """Of ``cfg.TEST.ODAM.SANITY_CHECKS``."""
        node = cfg.TEST.ODAM.SANITY_CHECKS
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: getattr(node, name.upper()) for name in names}
        return cls(**given | {"orders": tuple(node.ORDERS or ())})


class _State(NamedTuple):
    """What explains: ``write`` prepares ``model``, which looks at ``image``, or at its own."""

    told: dict
    model: nn.Module
    write: Callable[[], None] | None = None
    image: Tensor | None = None


class SanityCheckEvaluator(DatasetEvaluator):
    """
    Similarity of the maps of found objects to those that are made at the same anchors, points or
    proposals when the detector's parameters are random, when they are another detector's, and when
    the image is another. The detector itself is copied, and never changed.

    Args:
        dataset_name: a registered data set with boxes.
        output_dir: where figures go; None for nowhere.
        settings: which objects, and what is randomised.
        model: the detector; its method and targets are those that it explains with.
        others: detectors of the same architecture with other parameters, by their names.
        resume, fingerprint, images: as for ``ExplanationEvaluator``.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        settings: SanityCheckSettings | None = None,
        *,
        model: nn.Module,
        others: Mapping[str, nn.Module] | None = None,
        resume: bool = False,
        fingerprint: Mapping | None = None,
        images: Sequence[object] | None = None,
    ):
        self.settings = settings or SanityCheckSettings()
        self._user_model, self._others, self._asked = model, dict(others or {}), images
        self._output_dir = output_dir
        self._images = {x["image_id"]: x for x in DatasetCatalog.get(dataset_name)}
        if len(self._images) < 2:
            raise InputError(
                f"data set {dataset_name!r} has one image; sanity checks compare with the maps at "
                "the same places of another one"
            )
        self._next = next_entries(self._images)
        self._numbers = {image_id: number for number, image_id in enumerate(self._images)}
        keys = {
            image_id: f"{self._numbers[image_id]} {entry_key(entry)} "
            f"{entry_key(self._next[image_id])}"
            for image_id, entry in self._images.items()
        }
        others_are = {name: digest(other) for name, other in self._others.items()}
        asked = {"sanity_checks": describe(dataclasses.asdict(self.settings)), **others_are}
        self._rows = RowFiles(
            output_dir,
            {"dataset": dataset_name, **asked, **(fingerprint or {})},
            keys,
            resume=resume,
        )
        self._how = _settings(getattr(model, "odam", None) or ExplainSettings())
        self.similarities: Similarities | None = None

    @cached_property
    def _model(self) -> nn.Module:
        return own_copy(self._user_model)

    @cached_property
    def _random(self) -> nn.Module:
        return own_copy(self._user_model)

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._model.named_parameters()}

    @cached_property
    def layers(self) -> list[Layer]:
        """From the top down."""
        return layers_top_down(self._model, self._how.norm_statistics)

    @property
    def done(self) -> set:
        """Ids of the images that are done."""
        return set(self._rows.by_image)

    def reset(self) -> None:
        self._rows.open()
        self.similarities = None

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            if given["image_id"] not in self.done:
                self._rows.add(given["image_id"], self._compare(given, output["instances"]))

    def evaluate(self) -> dict:
        """
        Returns:
            ``{"sanity_checks": {...}}`` for the class, all sides and each of them: rank correlation
            when all layers are random, at the same places of another image, by how much the first
            is more, and whether that is passed (1 or 0); with ``num_objects``.
        """
        rows = self._rows.gather(self._asked)
        if rows is None:  # another process has them all
            return {}
        self.similarities = Similarities.of(rows, [layer.name for layer in self.layers])
        if self._output_dir:
            write_sanity(Path(self._output_dir), self.similarities)
        return {"sanity_checks": summarize(self.similarities)}

    def _compare(self, given: dict, found: Instances) -> list[dict]:
        """The rows of one image."""
        which = self.settings
        limits = (which.score_thresh, which.iou_thresh, which.per_image)
        pairs = found_objects(self._images[given["image_id"]], found, *limits)
        if not pairs:
            return []
        with rereading(self._model, given, self._how.targets, self._how) as again:
            classes = Classes(again.adapter.num_classes, self._how.class_names, self._how.score)
            targets = Targets.named(self._how.targets, classes)
            head_adapter(again.adapter)  # says so where no head is known
            rows, columns = found.image_size
            scale = torch.tensor([again.size[1] / columns, again.size[0] / rows] * 2)
            detections = torch.tensor([detection for detection, _ in pairs])
            boxes = found.pred_boxes.tensor.cpu()[detections] * scale
            in_trace = again.rows(boxes, found.pred_classes.cpu()[detections])
            order = sorted(range(len(pairs)), key=in_trace.__getitem__)
            index = torch.tensor([in_trace[k] for k in order], device=again.trace.image.device)
            trace = again.trace.select(index)
        objects = [pairs[k][1] for k in order]
        return list(self._rows_of(given, trace, targets, objects, boxes[order]))

    def _rows_of(
        self, given: dict, trace: Trace, targets: Targets, objects: list[int], boxes: Tensor
    ) -> Iterator[dict]:
        """
        Args:
            trace: of N detections.
            objects: their numbers in the image.
            boxes: (N, 4) in pixels of the network's input.
        """
        size = tuple(given["image"].shape[-2:])
        first = self._maps(self._model, trace, targets)
        own = maps_in_boxes(first, boxes, size)
        asks = self._how.build_method().asks_detector
        states = list(self._states(given, size))
        for state in tqdm(states, "sanity checks", unit="detector", leave=False, disable=None):
            if state.write is not None:
                state.write()
            # Who knows the box alone is given the same box.
            maps = first
            if asks:
                maps = self._maps(state.model, trace, targets, state.image)
            others = maps_in_boxes(maps, boxes, size)
            for number, mine, other in zip(objects, own, others, strict=True):
                for target, a, b in zip(first.targets, mine, other, strict=True):
                    if float(a.amax()) > float(a.amin()):  # else there is nothing to compare with
                        told = {"object": number, "target": target, **state.told}
                        yield told | similarity(a, b)

    def _states(self, given: dict, size: tuple[int, int]) -> Iterator[_State]:
        """All that is compared with in an image. Each is used before the next one is asked for."""
        number = self._numbers[given["image_id"]]
        drawn = randomised(self._parameters, self.layers, 1_000_003 * self.settings.seed + number)

        def write(layers: Sequence[Layer]) -> Callable[[], None]:
            chosen = {name for layer in layers for name in layer.parameters}
            values = self._parameters | {name: drawn[name] for name in chosen}
            return lambda: write_parameters(self._random, values)

        last = len(self.layers) - 1
        for at in range(last + 1):
            if CASCADING in self.settings.orders or at == last:
                told = {"state": CASCADING, "layer": at}
                yield _State(told, self._random, write(self.layers[: at + 1]))
        for at in range(last + 1):
            if INDEPENDENT in self.settings.orders:
                told = {"state": INDEPENDENT, "layer": at}
                yield _State(told, self._random, write(self.layers[at : at + 1]))
        for name, model in self._others.items():
            yield _State({"state": name, "layer": None}, model)
        picture = picture_at(self._next[given["image_id"]], size, self._user_model)
        told = {"state": OTHER_IMAGE, "layer": None}
        yield _State(told, self._model, image=picture.to(given["image"]))

    def _maps(
        self, model: nn.Module, trace: Trace, targets: Targets, image: Tensor | None = None
    ) -> OdamMaps:
        """Of the decisions at the places of a trace, by a detector, in an image or in its own."""
        with preserved(model) as view:
            adapter = head_adapter(build_adapter(view, self._how.norm_statistics))
            images = None
            if image is not None:
                given = {**trace.inputs[0], "image": image}
                images = adapter.model.preprocess_image([given]).tensor
            method = self._how.build_method()
            method.check(adapter, targets)
            return method(adapter, adapter.take_over(trace, images), targets)


def _settings(how: ExplainSettings) -> ExplainSettings:
    """
    Without the target that is made of others; masks keep nothing of each of the many detectors.
    """
    kept = {field.name: getattr(how, field.name) for field in dataclasses.fields(how)}
    of_masks: Any = {
        name: dataclasses.replace(settings, state_dir="")
        for name, settings in kept.items()
        if isinstance(settings, StateSettings)
    }
    targets = tuple(name for name in how.targets if name != "combined")
    return dataclasses.replace(how, targets=targets, **of_masks)

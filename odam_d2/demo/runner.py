"""The demo's main job: explain a list of images and make a folder to browse."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from odam_d2.core.errors import InputError
from odam_d2.data.pictures import read_picture
from odam_d2.engine.checks import check_output_folder
from odam_d2.errors import UserError
from odam_d2.files import remove_leftovers
from odam_d2.visualization.report import GENERATOR, ImageEntry, write_report
from odam_d2.visualization.text import printable

from .image_writer import LISTING, write_image
from .names import unique_names

__all__ = ["Demo", "plan_folders"]

logger = logging.getLogger(__name__)

_PAGE = "index.html"


def plan_folders(paths: Sequence[str], output: str) -> list[str]:
    """
    Name a folder for each image. Nothing is written.

    Args:
        paths: of the images.
        output: folder of the results, which need not exist.

    Returns:
        Of each image its stem, made unique.

    Raises:
        UserError: ``output`` is a file or cannot be written to, or holds something of that name
            that this tool did not make.
    """
    check_output_folder(output)
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    folders = unique_names(stems, reserved=[_PAGE])
    for folder in folders:
        place = os.path.join(output, folder)
        if os.path.lexists(place) and not os.path.isfile(os.path.join(place, LISTING)):
            raise UserError(
                f"{place!r} exists and is not a result of this tool; choose another output"
            )
    page = os.path.join(output, _PAGE)
    if os.path.lexists(page) and not _is_ours(page):
        raise UserError(f"{page!r} exists and is not a page of this tool; choose another output")
    return folders


def _is_ours(page: str) -> bool:
    try:
        with open(page, encoding="utf-8", errors="replace") as file:
            return GENERATOR in file.read(4096)
    except OSError:
        return False


@dataclass
class Demo:
    """
    Explains images one by one into a folder with a page to browse them.

    Attributes:
        predict: an :class:`odam_d2.ExplainingPredictor`, or what is called like one.
        class_names: by class id.
        output: folder of the results; it is made when the first image is done.
        max_detections: how many detections of an image are drawn, the best first.
        subtitle: a line for the page, such as the model's name.
        suppressed: from a BGR image to the recorded candidates of its NMS, which are then drawn,
            too; None for not.
        method: name of what made the maps of ``predict``.
        compared: other methods by their names, whose maps of the same detections are shown, too.
        overlap: IoU above which detections are drawn together, see
            :func:`odam_d2.visualization.discrimination.draw_groups`; None for not.
        done: the images that were finished.
        left_out: sentences about the images that could not be read or explained.
    """

    predict: Callable[[np.ndarray], Mapping]
    class_names: Sequence[str]
    output: str
    max_detections: int = 20
    subtitle: str = ""
    suppressed: Callable[[np.ndarray], Instances] | None = None
    overlap: float | None = None
    method: str = ""
    compared: Mapping[str, Callable[[np.ndarray], Mapping]] = field(default_factory=dict)
    done: list[ImageEntry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def run(self, paths: Sequence[str]) -> str:
        """
        Explain the images. Those that cannot be read or explained are left out and reported at the
        end; the others, and what was finished before Ctrl-C or a failure, are kept and on the page.

        Args:
            paths: of image files.

        Returns:
            The path of the page.

        Raises:
            UserError: the output cannot be written to, or images were left out.
            KeyboardInterrupt: with a message that says how far it came.
        """
        folders = plan_folders(paths, self.output)
        page = os.path.join(self.output, _PAGE)
        try:
            self._explain_all(paths, folders, page)
        except KeyboardInterrupt:
            where = f"; they are in {page}" if self.done else ""
            raise KeyboardInterrupt(
                f"after {len(self.done)} of {len(paths)} images{where}"
            ) from None
        except OSError as error:
            raise UserError(f"output {self.output!r} cannot be written to: {error}") from error
        if self.left_out:
            raise UserError(self._complaint(page))
        return page

    def _explain_all(self, paths: Sequence[str], folders: Sequence[str], page: str) -> None:
        """Explain image by image; whatever happens, those that were finished get their page."""
        try:
            for path, folder in tqdm(list(zip(paths, folders, strict=True)), unit="image"):
                self._explain(path, folder)
        finally:
            if self.done:
                write_report(page, self.done, subtitle=self.subtitle, notes=self.left_out)

    def _explain(self, path: str, folder: str) -> None:
        try:
            image = read_picture(path)
            bgr = image[:, :, ::-1]
            instances = _best_first(self.predict(bgr))
            candidates = None if self.suppressed is None else self.suppressed(bgr).to("cpu")
            by_method = {self.method: instances.odam_maps}
            by_method |= {
                name: _best_first(of(bgr)).odam_maps for name, of in self.compared.items()
            }
        except UserError as error:
            self.left_out.append(str(error))
            return
        except InputError as error:
            self.left_out.append(f"{path!r}: {error}")
            return
        found, best = len(instances), instances[: self.max_detections]
        if len(best) < found:
            logger.warning(
                "%s: the best %d of %d detections are drawn (--max-detections)",
                printable(path), len(best), found,
            )  # fmt: skip
        if not self.done:
            self._begin()
        entry = write_image(
            self.output, folder, path, image, best, self.class_names, found, candidates,
            self.overlap, {name: maps[: len(best)] for name, maps in by_method.items()},
        )  # fmt: skip
        if self.overlap is not None and not entry.groups:
            logger.info("%s: no detections overlap by an IoU above %g",
                        printable(path), self.overlap)  # fmt: skip
        self.done.append(entry)

    def _begin(self) -> None:
        """Before the first folder changes: the page of an earlier run is not one of it any more."""
        os.makedirs(self.output, exist_ok=True)
        remove_leftovers(self.output)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.output, _PAGE))

    def _complaint(self, page: str) -> str:
        count = len(self.left_out)
        if count == 1:
            text = self.left_out[0]
        else:
            text = f"{count} images were left out: {'; '.join(self.left_out)}"
        return f"{text} (the other {len(self.done)} are in {page!r})" if self.done else text


def _best_first(output: Mapping) -> Instances:
    """The detections of an image on the CPU, the highest score first."""
    found = output["instances"].to("cpu")
    return found[found.scores.argsort(descending=True, stable=True)]

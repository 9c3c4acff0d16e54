"""Confusion and precision-recall of an error analysis, as plots and as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from .ap_costs import SIZES

__all__ = [
    "FILES",
    "ClassFigures",
    "confusion_csv",
    "curves_csv",
    "mean_precision",
    "plot_confusion",
    "plot_curves",
]

FILES = ("confusion.png", "confusion.csv", "precision_recall.png", "precision_recall.csv")

_BACKGROUND = "(background)"
# Beyond this many classes cells are too small for numbers, and lines too many to tell apart.
_NUMBERED, _LINES = 15, 8


@dataclass(frozen=True)
class ClassFigures:
    """
    What an error analysis says of classes.

    Attributes:
        names: of the K classes.
        confusion: (K + 1, K + 1), see :func:`odam_d2.analysis.confusion.confusion_matrix`.
        precision: (101, K, S), see :func:`odam_d2.analysis.ap_costs.precision_recall`.
    """

    names: Sequence[str]
    confusion: np.ndarray
    precision: np.ndarray

    def files(self) -> dict[str, bytes]:
        """Contents of :data:`FILES`."""
        contents = (
            plot_confusion(self.confusion, self.names),
            confusion_csv(self.confusion, self.names).encode(),
            plot_curves(self.precision, self.names),
            curves_csv(self.precision, self.names).encode(),
        )
        return dict(zip(FILES, contents, strict=True))

    def record(self) -> dict:
        """For JSON: the matrix, and AP in percent by class and size, None without objects."""
        average = {
            name: {
                size: None if np.isnan(value) else float(value)
                for size, value in zip(SIZES, row, strict=True)
            }
            for name, row in zip(self.names, mean_precision(self.precision), strict=True)
        }
        return {"classes": list(self.names), "confusion": self.confusion.tolist(),
                "AP_by_class": average}  # fmt: skip


def mean_precision(precision: np.ndarray) -> np.ndarray:
    """
    AP in percent.

    Args:
        precision: (101, K, S) of :func:`odam_d2.analysis.ap_costs.precision_recall`.

    Returns:
        (K, S); nan where there is no object.
    """
    return np.where(precision[0] > -1, 100 * precision.mean(axis=0), np.nan)


def confusion_csv(counts: np.ndarray, names: Sequence[str]) -> str:
    """A row for each class of objects, a column for each class of detections."""
    labels = [*names, _BACKGROUND]
    rows = [[label, *row] for label, row in zip(labels, counts.tolist(), strict=True)]
    return _csv([["object \\ detection", *labels], *rows])


def curves_csv(precision: np.ndarray, names: Sequence[str]) -> str:
    """Columns class, size, recall, precision; nothing of sizes that a class has no object of."""
    rows: list[list] = [["class", "size", "recall", "precision"]]
    for k, name in enumerate(names):
        for s, size in enumerate(SIZES):
            if precision[0, k, s] > -1:
                values = precision[:, k, s].tolist()
                rows += [[name, size, r / 100, round(p, 4)] for r, p in enumerate(values)]
    return _csv(rows)


def _csv(rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def plot_confusion(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """
    PNG of a confusion matrix; colours are shares of the objects of a row's class.

    Args:
        counts: (K + 1, K + 1) of :func:`odam_d2.analysis.confusion.confusion_matrix`.
        names: of the K classes.
    """
    labels = [*names, _BACKGROUND]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(1.5 + 0.45 * len(labels), 4, 16))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    every = max(1, len(labels) // 40)
    places = range(0, len(labels), every)
    axes.set_xticks(places, [labels[k] for k in places], rotation=90)
    axes.set_yticks(places, [labels[k] for k in places])
    axes.set_xlabel("detected as")
    axes.set_ylabel("object is")
    if len(labels) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            if count:
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    figure.colorbar(picture, label="share of the row", shrink=0.8)
    return _png(figure)


def plot_curves(precision: np.ndarray, names: Sequence[str]) -> bytes:
    """
    PNG with precision over recall by class (those of lowest AP, where there are many) and by size.

    Args:
        precision: (101, K, S) of :func:`odam_d2.analysis.ap_costs.precision_recall`.
        names: of the K classes.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_class, by_size = figure.subplots(1, 2, sharey=True)
    recall = np.linspace(0, 1, len(precision))
    average = mean_precision(precision)
    order = [k for k in np.argsort(average[:, 0], kind="stable") if average[k, 0] >= 0]
    for k in order[:_LINES]:
        by_class.plot(recall, precision[:, k, 0], label=f"{names[k]} {average[k, 0]:.1f}")
    shown = f"{_LINES} of {len(order)} classes, lowest AP" if len(order) > _LINES else "by class"
    by_class.set_title(shown)
    for s, size in enumerate(SIZES):
        present = precision[0, :, s] > -1
        if present.any():
            mean = precision[:, present, s].mean(axis=1)
            by_size.plot(recall, mean, label=f"{size} {100 * mean.mean():.1f}")
    by_size.set_title("by size of the object, mean of classes")
    for axes in (by_class, by_size):
        axes.set_xlabel("recall")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(title="AP", fontsize="small")
    by_class.set_ylabel("precision")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()

"""Results of :class:`ExplanationEvaluator` as tables, files and plots."""

from __future__ import annotations

import csv
import math
import statistics
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from odam_d2.files import whole_file, write_json, write_text

from .explanation_scores import METRICS

__all__ = ["COLORS", "compare_methods", "remove_results", "summarize", "table", "write_results"]

_IN_UNITS = ("compactness",)  # all other figures are shares, given in percent
COLORS = ("#e8743b", "#4c8dbf", "#6a51a3", "#41ab5d", "#8c96a3")
_ARROWS = {"higher": "↑", "lower": "↓"}

Rows = Sequence[Mapping]


def _values(rows: Rows, metric: str) -> list[float]:
    """Where the metric is defined, in percent if it is a share."""
    factor = 1 if metric in _IN_UNITS else 100
    return [factor * row[metric] for row in rows if row.get(metric) is not None]


def _by_target(rows: Rows) -> dict[str, list[Mapping]]:
    targets = dict.fromkeys(row["target"] for row in rows)
    return {target: [row for row in rows if row["target"] == target] for target in targets}


def summarize(rows: Rows, num_images: int) -> OrderedDict:
    """
    Returns:
        ``{"explanation-TARGET": {metric: mean}}`` over detections where a metric is defined, with
        ``num_detections``, ``num_images`` and, where there are any, ``num_curves``.
    """
    results = OrderedDict()
    for target, chosen in _by_target(rows).items():
        means = OrderedDict()
        for metric in METRICS:
            values = _values(chosen, metric)
            if values:
                means[metric] = statistics.fmean(values)
        means |= {"num_detections": len(chosen), "num_images": num_images}
        curves = len(_values(chosen, "deletion"))
        results[f"explanation-{target}"] = means | ({"num_curves": curves} if curves else {})
    return results


def _errors(rows: Rows) -> dict[str, dict[str, float]]:
    """Standard errors of the means."""
    found: dict[str, dict[str, float]] = {}
    for target, chosen in _by_target(rows).items():
        node = found.setdefault(f"explanation-{target}", {})
        for metric in METRICS:
            values = _values(chosen, metric)
            if len(values) > 1:
                node[metric] = statistics.stdev(values) / math.sqrt(len(values))
    return found


def write_results(folder: Path, settings: Mapping, results: Mapping, rows: Rows) -> None:
    """Write ``results.json``, ``detections.csv`` (a line each) and ``explanation.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "results": results, "standard_errors": _errors(rows)}
    write_json(folder / "results.json", content)
    columns = list(dict.fromkeys(key for row in rows for key in row if "curve" not in key))
    with whole_file(folder / "detections.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    _plot({str(settings.get("method", "maps")): rows}, folder / "explanation.png")


def remove_results(folder: Path) -> None:
    """Remove what :func:`write_results` wrote: there are no results of this run."""
    for name in ("results.json", "detections.csv", "explanation.png"):
        (folder / name).unlink(missing_ok=True)


def table(results: Mapping[str, Mapping], task: str) -> str:
    """
    A Markdown table, a line for each method.

    Args:
        results: by method, what the evaluator returned.
        task: such as ``"explanation-class"``.
    """
    given = {method: found[task] for method, found in results.items() if task in found}
    metrics = [m for m in METRICS if any(m in figures for figures in given.values())]
    head = [f"{m} {_ARROWS[METRICS[m]]}" for m in metrics]
    lines = [f"| method | {' | '.join(head)} | detections | curves |",
             "| --- |" + " --- |" * (len(metrics) + 2)]  # fmt: skip
    for method, figures in given.items():
        cells = [f"{figures[m]:.{2 if m in _IN_UNITS else 1}f}" if m in figures else ""
                 for m in metrics]  # fmt: skip
        counts = [figures["num_detections"], figures.get("num_curves", 0)]
        lines.append(f"| {' | '.join([method, *cells, *map(str, counts)])} |")
    return "\n".join(lines) + "\n"


def compare_methods(folder: Path, results: Mapping[str, Mapping], rows: Mapping[str, Rows]) -> Path:
    """
    Write ``methods.json``, ``methods.md`` (a table for each target) and ``methods.png``, the latter
    where any detection was evaluated.

    Args:
        results, rows: by method.

    Returns:
        The path of the tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "methods.json", results)
    tasks = dict.fromkeys(task for found in results.values() for task in found)
    parts = [f"### {task}\n\n{table(results, task)}" for task in tasks if "explanation" in task]
    write_text(folder / "methods.md", "\n".join(parts) or "No detection could be evaluated.\n")
    _plot(rows, folder / "methods.png")
    return folder / "methods.md"


def _plot(rows: Mapping[str, Rows], path: Path) -> None:
    """Of class maps, if any: bars with standard errors, and the mean curves with theirs."""
    chosen = {}
    for method, of_method in rows.items():
        by_target = _by_target(of_method)
        chosen[method] = by_target.get("class") or next(iter(by_target.values()), [])
    shares = [m for m in METRICS if m not in _IN_UNITS and
              any(_values(found, m) for found in chosen.values())]  # fmt: skip
    if not shares:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    curves = [kind for kind in ("deletion", "insertion") if kind in shares]
    figure, axes = plt.subplots(
        1,
        1 + len(curves),
        figsize=(1.6 + 0.85 * len(shares) + 3.2 * len(curves), 3.6),
        width_ratios=[0.85 * len(shares), *([3] * len(curves))],
        squeeze=False,
    )
    _bars(axes[0][0], chosen, shares)
    for axis, kind in zip(axes[0][1:], curves, strict=True):
        _curves(axis, chosen, kind)
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def _bars(axis: plt.Axes, rows: Mapping[str, Rows], metrics: Sequence[str]) -> None:
    width = 0.8 / len(rows)
    for number, (method, of_method) in enumerate(rows.items()):
        for place, metric in enumerate(metrics):
            values = _values(of_method, metric)
            if not values:
                continue
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0
            x = place + width * (number - (len(rows) - 1) / 2)
            axis.bar(x, statistics.fmean(values), 0.9 * width, yerr=error,
                     color=COLORS[number % len(COLORS)], ecolor="#1d242c",
                     error_kw={"elinewidth": 0.8})  # fmt: skip
        axis.bar(0, 0, color=COLORS[number % len(COLORS)], label=method)
    labels = [f"{m.replace('_', chr(10))} {_ARROWS[METRICS[m]]}" for m in metrics]
    axis.set_xticks(range(len(metrics)), labels, fontsize=8)
    axis.set_ylabel("%", fontsize=8)
    axis.set_ylim(0, 118)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False, ncols=len(rows), loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)


def _curves(axis: plt.Axes, rows: Mapping[str, Rows], kind: str) -> None:
    for number, of_method in enumerate(rows.values()):
        curves = [row[f"{kind}_curve"] for row in of_method if row.get(f"{kind}_curve")]
        if not curves:
            continue
        columns = list(zip(*curves, strict=True))
        mean = [statistics.fmean(column) for column in columns]
        error = [statistics.stdev(c) / math.sqrt(len(c)) if len(c) > 1 else 0 for c in columns]
        x = [step / (len(mean) - 1) for step in range(len(mean))]
        color = COLORS[number % len(COLORS)]
        axis.plot(x, mean, color=color, linewidth=1.6)
        low, high = ([m + s * e for m, e in zip(mean, error, strict=True)] for s in (-1, 1))
        axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    axis.set_title(kind, fontsize=9)
    axis.set_xlabel("pixels, of the object's box", fontsize=8)
    axis.set_ylabel("score, of the detection's", fontsize=8)
    axis.set_ylim(0, 1.05)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)

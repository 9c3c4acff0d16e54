"""Tables and plots of the experiment: means over seeds, and how far seeds are apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from odam_d2.files import whole_file, write_json, write_text

from .plan import VARIANTS, Run
from .tuning import NMS_METHODS

__all__ = ["summarize", "write_report"]

Results = Sequence[tuple[Run, dict]]

_TITLES = {"plain": "plain", "odam_train": "Odam-Train", "nms": "NMS", "soft_nms": "soft-NMS",
           "odam_nms": "Odam-NMS"}  # fmt: skip
_COLORS = {"nms": "#8c96a3", "soft_nms": "#4c8dbf", "odam_nms": "#e8743b"}
_PAIRS = ("pair_auc", "pair_auc_iou", "same_correlation", "different_correlation")


def summarize(results: Results) -> dict:
    """
    Returns:
        ``{"dataset/detector": {"variant": {"pairs": {figure: [values]}, "METHOD": {figure:
        [values]}}}}``, values in the order of seeds.
    """
    summary: dict = {}
    for run, found in sorted(results, key=lambda item: item[0].seed):
        node = summary.setdefault(f"{run.dataset}/{run.detector}", {}).setdefault(run.variant, {})
        parts = {"pairs": {name: found["pairs"][name] for name in _PAIRS}}
        parts |= {method: found[method]["figures"] for method in NMS_METHODS}
        for part, figures in parts.items():
            for name, value in figures.items():
                node.setdefault(part, {}).setdefault(name, []).append(value)
    return summary


def _cell(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _tables(summary: dict) -> str:
    lines = []
    for name, variants in summary.items():
        first = next(iter(variants.values()))
        columns = list(first[NMS_METHODS[0]])
        lines += [f"### {name}", "", "| training | NMS | " + " | ".join(columns) + " |",
                  "| --- | --- |" + " --- |" * len(columns)]  # fmt: skip
        for variant in (v for v in VARIANTS if v in variants):
            for method in NMS_METHODS:
                cells = [_cell(variants[variant][method][column], 1) for column in columns]
                lines.append(f"| {_TITLES[variant]} | {_TITLES[method]} | {' | '.join(cells)} |")
        lines += ["", "| training | " + " | ".join(_PAIRS) + " |",
                  "| --- |" + " --- |" * len(_PAIRS)]  # fmt: skip
        for variant in (v for v in VARIANTS if v in variants):
            cells = [_cell(variants[variant]["pairs"][column], 4) for column in _PAIRS]
            lines.append(f"| {_TITLES[variant]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def write_report(results: Results, output: Path) -> Path:
    """
    Write ``results.json`` (every seed), ``tables.md`` and ``recall.png``.

    Returns:
        The path of the tables.
    """
    summary = summarize(results)
    settings = {run.name: {m: found[m]["settings"] for m in NMS_METHODS} for run, found in results}
    write_json(output / "results.json", {"figures": summary, "settings": settings})
    write_text(output / "tables.md", _tables(summary))
    _plot(summary, output / "recall.png")
    return output / "tables.md"


def _plot(summary: dict, path: Path) -> None:
    """Recall of overlapped objects at the precision, each seed a dot, for each detector."""
    figure, axes = plt.subplots(1, len(summary), figsize=(3.4 * len(summary), 3.4), squeeze=False)
    for axis, (name, variants) in zip(axes[0], summary.items(), strict=True):
        present = [v for v in VARIANTS if v in variants]
        column = next(c for c in variants[present[0]]["nms"] if c.startswith("Recall-overlapped@"))
        for number, method in enumerate(NMS_METHODS):
            for place, variant in enumerate(present):
                values = variants[variant][method][column]
                x = place + 0.27 * (number - 1)
                axis.bar(x, statistics.fmean(values), 0.24, color=_COLORS[method],
                         label=_TITLES[method] if place == 0 else None)  # fmt: skip
                axis.scatter([x] * len(values), values, s=14, color="#1d242c", zorder=3)
        every = [x for v in present for m in NMS_METHODS for x in variants[v][m][column]]
        margin = max(1.0, 0.25 * (max(every) - min(every)))
        axis.set_ylim(max(0, min(every) - 3 * margin), min(100, max(every) + margin))
        axis.set_xticks(range(len(present)), [_TITLES[v] for v in present])
        axis.set_title(name, fontsize=10)
        axis.set_ylabel(f"{column} in %", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)

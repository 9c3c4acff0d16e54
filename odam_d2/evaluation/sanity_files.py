"""Sanity checks as tables, files and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from odam_d2.core.targets import SIDES
from odam_d2.files import whole_file, write_json, write_text

from .explanation_files import COLORS
from .recovery_files import markdown
from .sanity_results import (
    CASCADING,
    INDEPENDENT,
    MEASURES,
    OTHER_IMAGE,
    Similarities,
    results,
)

__all__ = ["compare_sanity", "tables", "write_sanity"]

_MEASURES = {"spearman": "rank correlation", "ssim": "SSIM"}
_ORDERS = {
    CASCADING: "with all layers above it random",
    INDEPENDENT: "with this layer alone random",
}
_DASHES = ("-", "--", "-.", ":")  # methods of one colour


def write_sanity(folder: Path, found: Similarities) -> None:
    """Write ``sanity_checks.json`` of one method."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sanity_checks.json", results(found))


def compare_sanity(folder: Path, by_method: Mapping[str, Similarities]) -> Path:
    """
    Write ``sanity_checks.json``, ``sanity_checks.md`` and ``sanity_checks.png``.

    Returns:
        The path of the tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {method: results(similarities) for method, similarities in by_method.items()}
    write_json(folder / "sanity_checks.json", found)
    write_text(folder / "sanity_checks.md", tables(found))
    _plot(found, folder / "sanity_checks.png")
    return folder / "sanity_checks.md"


def _groups(found: Mapping[str, Mapping]) -> list[str]:
    """Single sides are in the JSON only."""
    names = dict.fromkeys(group for of_method in found.values() for group in of_method["groups"])
    return [group for group in names if group not in SIDES]


def _cell(found: Mapping | None, interval: bool = False, sign: str = "") -> str:
    if found is None:
        return ""
    number = f"{{:{sign}.2f}}"
    text = number.format(found["value"])
    if interval and math.isfinite(found["low"]):  # of one image there is none
        text += f" [{number.format(found['low'])}, {number.format(found['high'])}]"
    return text


def tables(found: Mapping[str, Mapping]) -> str:
    """
    Markdown, for class and sides: what is left when all layers are random, with the verdict, and
    the rank correlation by layer.

    Args:
        found: of each method, :func:`odam_d2.evaluation.sanity_results.results`.
    """
    groups = _groups(found)
    if not groups:
        return "No decision could be evaluated.\n"
    parts = [
        "Similarity of the maps to those of the trained detector, in the box; 1 is equal. A method "
        "fails where its maps do not change when all layers are random, or stay more alike than at "
        "the same place of another image.\n"
    ]
    for group in groups:
        parts.append(f"{group}:\n\n{_main(found, group)}")
        for order, words in _ORDERS.items():
            if lines := _by_layer(found, group, order):
                parts.append(f"{group}, rank correlation by layer, {words}:\n\n{lines}")
    return "\n".join(parts)


def _main(found: Mapping[str, Mapping], group: str) -> str:
    of_group = {m: f["groups"][group] for m, f in found.items() if group in f["groups"]}
    more = [CASCADING, INDEPENDENT, OTHER_IMAGE, "more_than_place"]
    states = dict.fromkeys(s for f in of_group.values() for s in f[MEASURES[0]] if s not in more)
    head = ["method"]
    for words in _MEASURES.values():
        head += [f"{words}: all random", "another image", "difference"]
    head += [*(f"{state.replace('_', ' ')}" for state in states), "verdict", "objects"]
    lines = []
    for method, figures in of_group.items():
        line = [method]
        for measure in MEASURES:
            of_measure = figures[measure]
            line += [_cell(of_measure[CASCADING][-1]), _cell(of_measure[OTHER_IMAGE])]
            line.append(_cell(of_measure["more_than_place"], interval=True, sign="+"))
        line += [_cell(figures[MEASURES[0]].get(state)) for state in states]
        lines.append([*line, figures["verdict"] or "", str(figures["objects"])])
    return markdown(head, lines)


def _by_layer(found: Mapping[str, Mapping], group: str, order: str) -> str:
    """A line for each method, a column for each layer from the top down; empty without layers."""
    lines, head = [], []
    for method, of_method in found.items():
        means = of_method["groups"].get(group, {}).get(MEASURES[0], {}).get(order, [])
        if sum(mean is not None for mean in means) > 1:
            head = ["method", *map(_short, of_method["layers"])]
            lines.append([method, *map(_cell, means)])
    return markdown(head, lines) if lines else ""


def _short(layer: str) -> str:
    """A layer without where it is: ``"cls_score, bbox_pred"``, ``"cls_subnet.2"``."""
    ends = (path.split(".")[-2:] for path in layer.split(", "))
    return ", ".join(
        ".".join(end) if any(part.isdigit() for part in end) else end[-1] for end in ends
    )


def _plot(found: Mapping[str, Mapping], path: Path) -> None:
    """
    Rank correlation and SSIM against how many layers are random, from the top down; dots are what
    another image gives.
    """
    groups = _groups(found)
    layers: Sequence[str] = next((f["layers"] for f in found.values() if f["groups"]), ())
    if not groups or not layers:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    figure, axes = plt.subplots(
        len(MEASURES), len(groups), figsize=(1 + 4.2 * len(groups), 6.4), squeeze=False,
        sharex=True, sharey="row",
    )  # fmt: skip
    for row, measure in zip(axes, MEASURES, strict=True):
        for axis, group in zip(row, groups, strict=True):
            for number, (method, of_method) in enumerate(found.items()):
                color = COLORS[number % len(COLORS)]
                style = _DASHES[number // len(COLORS) % len(_DASHES)]
                means = of_method["groups"].get(group, {}).get(measure)
                if means is not None:
                    _curve(axis, means, color, style, method)
            axis.set_title(group, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.axhline(0, color="#8c96a3", linewidth=0.8, linestyle=":")
        row[0].set_ylabel(_MEASURES[measure], fontsize=8)
    ticks = ["none", *map(_short, layers), "another\nimage"]
    for axis in axes[-1]:
        axis.set_xticks(range(len(ticks)), ticks, rotation=60, ha="right", fontsize=7)
    axes[0, -1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def _curve(axis: plt.Axes, means: Mapping, color: str, style: str, label: str) -> None:
    places = [0] + [at + 1 for at, mean in enumerate(means[CASCADING]) if mean is not None]
    values = [1.0] + [mean["value"] for mean in means[CASCADING] if mean is not None]
    axis.plot(places, values, style, color=color, label=label, linewidth=1.3)
    if means[OTHER_IMAGE] is not None:
        at, place = len(means[CASCADING]) + 1, means[OTHER_IMAGE]
        error = [[place["value"] - place["low"]], [place["high"] - place["value"]]]
        axis.errorbar(at, place["value"], error, fmt="o", color=color, markersize=4, elinewidth=0.8)

"""Causal recovery as tables, files and plots."""

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
from .recovery import COMPARED, READINGS, Effects, compare, results

__all__ = ["compare_recovery", "markdown", "write_recovery"]

_WORDS = {
    "place": "At the same anchor or proposal",
    "detection": "In the final detection that matches best",
}
_REFERENCES = {"random": "a random place", "anywhere": "mean of the grid", "best": "best of a grid"}


def write_recovery(folder: Path, effects: Effects) -> None:
    """Write ``causal_recovery.json`` of one method."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "causal_recovery.json", results(effects))


def compare_recovery(folder: Path, by_method: Mapping[str, Effects]) -> Path:
    """
    Write ``causal_recovery.json``, ``causal_recovery.md`` and ``causal_recovery.png``.

    Returns:
        The path of the tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = compare(by_method)
    write_json(folder / "causal_recovery.json", found)
    write_text(folder / "causal_recovery.md", tables(found))
    _plot(found, folder / "causal_recovery.png")
    return folder / "causal_recovery.md"


def _shown(groups: Sequence[str]) -> list[str]:
    """Single sides are in the JSON only."""
    return [group for group in groups if group not in SIDES]


def _cell(found: Mapping | None, *, sign: bool = False, interval: bool = True) -> str:
    """Value with its interval; bold where a difference is above zero."""
    if found is None:
        return ""
    number = "{:+.0f}" if sign else "{:.0f}"
    text = number.format(found["value"])
    if interval and math.isfinite(found["low"]):  # of one image there is none
        text += f" [{number.format(found['low'])}, {number.format(found['high'])}]"
    return f"**{text}**" if sign and found["low"] > 0 else text


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def tables(found: Mapping[str, Mapping]) -> str:
    """
    Markdown: recovery with the first fill in both readings, by all fills, by area, and what the
    edits did beside.

    Args:
        found: of :func:`odam_d2.evaluation.recovery.compare`.
    """
    measured = {m: f for m, f in found.items() if any(f["recovery"]["detection"].values())}
    if not measured:
        return "No decision could be evaluated.\n"
    first = next(iter(measured.values()))
    fills = list(next(iter(first["recovery"]["detection"].values())))
    groups = _shown(
        list(dict.fromkeys(g for f in measured.values() for g in f["recovery"]["place"]))
    )
    cause = "the true part" if first["truth"] == "part" else "the best place of a grid"
    parts = [
        f"In % of the effect of removing {cause}, with 95 % intervals over images; bold is ahead.\n"
    ]
    if COMPARED[0] not in found:
        parts.append(
            f"Without {COMPARED[0]} among the methods it is not known whether maps tell more than "
            "where the box is.\n"
        )
    for reading in READINGS:
        parts.append(
            f"{_WORDS[reading]}, {fills[0]}:\n\n{_main(measured, reading, groups, fills[0])}"
        )
    for name, key in (("fill", "recovery"), ("area, in areas of the part", "areas")):
        if any(_any(measured, key, "place", group) for group in groups):
            parts += [f"{group} by {name}:\n\n{_by(measured, key, group)}" for group in groups]
    signed = {method: f for method, f in measured.items() if any(f["against"]["place"].values())}
    if signed:
        parts.append(
            "Where a signed map has the strongest evidence against, which a decision gains by "
            f"losing (below zero), {fills[0]}:\n\n{_against(signed, groups, fills[0])}"
        )
    parts.append(f"Edits that change other detections, in %:\n\n{_others(measured, fills)}")
    return "\n".join(parts)


def _main(found: Mapping[str, Mapping], reading: str, groups: Sequence[str], fill: str) -> str:
    others = [name for name in COMPARED if name in found]
    head = ["method"]
    for group in groups:
        head += [group, *(f"{group} - {name}" for name in others)]
    lines = []
    for method, of_method in found.items():
        line = [method]
        for group in groups:
            line.append(_cell(of_method["recovery"][reading].get(group, {}).get(fill)))
            for name in others:
                ahead = of_method["ahead_of"].get(name, {}).get(reading, {}).get(group, {})
                line.append(_cell(ahead.get(fill), sign=True))
        lines.append([*line, _objects(of_method, reading, fill)])
    gap = [""] * len(others)
    for name in next(iter(next(iter(found.values()))["references"][reading].values()), {}):
        cells = [_any(found, "references", reading, group).get(name) for group in groups]
        line = [part for cell in cells for part in (_cell(cell), *gap)]
        lines.append([_REFERENCES[name], *line, ""])
    means = [_any(found, "causes", reading, group).get(fill) for group in groups]
    line = [part for mean in means for part in ("" if mean is None else f"{mean:.2f}", *gap)]
    lines.append(["the effect itself (probability, px)", *line, ""])
    return markdown([*head, "objects"], lines)


def _any(found: Mapping[str, Mapping], key: str, reading: str, group: str) -> Mapping:
    """What is the same for all methods, of the first one that has maps of a group."""
    by_group = (of_method[key][reading] for of_method in found.values())
    return next((figures[group] for figures in by_group if group in figures), {})


def _objects(found: Mapping, reading: str, fill: str) -> str:
    counts = [by[fill]["objects"] for by in found["recovery"][reading].values() if by[fill]]
    return str(max(counts, default=0))


def _by(found: Mapping[str, Mapping], key: str, group: str) -> str:
    """A line for each method, a column for each fill or area, in both readings."""
    names = list(_any(found, key, "place", group))
    head = ["method", *(f"{reading}: {name}" for reading in READINGS for name in names)]
    lines = [
        [method, *(_cell(of_method[key][reading].get(group, {}).get(name), interval=False)
                   for reading in READINGS for name in names)]
        for method, of_method in found.items()
    ]  # fmt: skip
    return markdown(head, lines)


def _against(found: Mapping[str, Mapping], groups: Sequence[str], fill: str) -> str:
    head = ["method", *(f"{reading}: {group}" for reading in READINGS for group in groups)]
    lines = [
        [method, *(_cell(of_method["against"][reading].get(group, {}).get(fill))
                   for reading in READINGS for group in groups)]
        for method, of_method in found.items()
    ]  # fmt: skip
    return markdown(head, lines)


def _others(found: Mapping[str, Mapping], fills: Sequence[str]) -> str:
    first = next(iter(found.values()))
    rows = [(method, of_method["others_changed"], "peak") for method, of_method in found.items()]
    rows.append(("the causes", first["others_changed"], first["truth"]))
    lines = [
        [name, *(f"{by[fill][edit]:.0f}" if edit in by[fill] else "" for fill in fills)]
        for name, by, edit in rows
    ]
    return markdown(["method", *fills], lines)


def _plot(found: Mapping[str, Mapping], path: Path) -> None:
    """Bars with intervals of class and sides in both readings, and curves by area."""
    groups = _shown(list(dict.fromkeys(g for f in found.values() for g in f["recovery"]["place"])))
    if not groups:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    curves = [group for group in groups if _known_areas(found, group)]
    figure, axes = plt.subplots(
        1, 1 + len(curves), figsize=(4.5 + 3 * len(curves), 3.6), squeeze=False
    )
    axes = axes[0]
    _bars(axes[0], found, groups)
    for axis, group in zip(axes[1:], curves, strict=True):
        _curves(axis, found, group)
    for axis in axes:
        axis.axhline(100, color="#8c96a3", linewidth=0.8, linestyle=":")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def _bars(axis: plt.Axes, found: Mapping[str, Mapping], groups: Sequence[str]) -> None:
    places = [(reading, group) for group in groups for reading in READINGS]
    width = 0.8 / len(found)
    for number, (method, of_method) in enumerate(found.items()):
        color = COLORS[number % len(COLORS)]
        for place, (reading, group) in enumerate(places):
            figures = next(iter(of_method["recovery"][reading].get(group, {}).values()), None)
            if figures is None:
                continue
            value = figures["value"]
            error = [[value - figures["low"]], [figures["high"] - value]]
            x = place + width * (number - (len(found) - 1) / 2)
            axis.bar(x, value, 0.9 * width, yerr=error, color=color, ecolor="#1d242c",
                     error_kw={"elinewidth": 0.8})  # fmt: skip
        axis.bar(0, 0, color=color, label=method)
    axis.set_xticks(range(len(places)), [f"{group}\n{reading}" for reading, group in places])
    axis.set_ylabel("recovery, % of the cause's effect", fontsize=8)
    axis.legend(fontsize=7, frameon=False)


def _known_areas(found: Mapping[str, Mapping], group: str) -> dict[str, dict[float, Mapping]]:
    """Recovery by area of each method: in place, where that is known."""
    return {
        method: known
        for method, of_method in found.items()
        for reading in reversed(READINGS)
        if (known := {float(area): figures
                      for area, figures in of_method["areas"][reading].get(group, {}).items()
                      if figures})
    }  # fmt: skip


def _curves(axis: plt.Axes, found: Mapping[str, Mapping], group: str) -> None:
    curves = _known_areas(found, group)
    for number, method in enumerate(found):
        known = curves.get(method, {})
        color = COLORS[number % len(COLORS)]
        axis.plot(list(known), [f["value"] for f in known.values()], color=color, label=method)
        low, high = ([f[end] for f in known.values()] for end in ("low", "high"))
        axis.fill_between(list(known), low, high, color=color, alpha=0.15, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_title(group, fontsize=9)
    axis.set_xlabel("highest pixels removed, in areas of the part", fontsize=8)

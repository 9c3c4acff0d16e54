"""The tutorial runs, and says what it claims."""

from __future__ import annotations

import ast
import json
import re

import matplotlib
from hooks import ROOT, hook

matplotlib.use("Agg")

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run(source, names):
    """As a notebook does: what the last line is, is shown."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), names)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)
        if hasattr(shown, "_repr_png_"):
            assert shown._repr_png_()
        return shown
    return None


def test_nothing_that_was_printed_or_drawn_is_kept():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert NOTEBOOK.stat().st_size < 20_000


def test_it_runs(tmp_path, monkeypatch, capsys):
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    drawn, shown, names = [], [], {"__name__": "__main__"}
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(pyplot.gcf()))
    for cell in CELLS:
        if cell["cell_type"] == "code":
            shown.append(run("".join(cell["source"]), names))
    pyplot.close("all")

    assert len(drawn) == 4
    assert any(getattr(picture, "size", (0, 0))[0] > 500 for picture in shown)
    said = capsys.readouterr().out
    scores = {what: float(x) for what, x in re.findall(r"star without (.*): ([\d.]+)", said)}
    nothing, badge, peak, feet = scores.values()
    assert (tmp_path / "tutorial.npz").is_file()
    # What the text says: the badge decides, the map points at it, and the feet do not matter.
    assert max(badge, peak) < 0.2 < 0.9 < min(nothing, feet)
    star, triangle = map(float, re.search(r"star ([\d.]+), triangle ([\d.]+)", said).groups())
    assert 4 < star / triangle < 16
    assert said.rstrip().endswith("True")


def test_page_of_the_site_has_every_cell():
    page = hook("notebook").markdown()
    assert page.count("```python\n") == sum(cell["cell_type"] == "code" for cell in CELLS)
    assert page.startswith("# Tutorial")
    for name in re.findall(r"]\((images/[^)]*)\)", page):
        assert (ROOT / "docs" / name).stat().st_size < 80_000

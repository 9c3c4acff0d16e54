"""The tutorial as a page: its text and code; pictures are those that its text names."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOK = Path(__file__).parents[1] / "tutorial.ipynb"
PAGE = "tutorial.md"


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs with the files of ``docs/``."""
    files.append(File.generated(config, PAGE, content=markdown()))
    return files


def markdown() -> str:
    """The notebook in Markdown."""
    parts = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"

"""
Links that leave ``docs/``: in the repository's web view they open the file; the site has pages for
two of them, and names the others.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]

COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Pages of the site that are files at the top of the repository."""

PAGES = {**COPIED, "docs/tutorial.ipynb": "tutorial.md"}
"""Files of the repository that are pages under another name."""

_LINK = re.compile(r"\[(?P<text>[^]]*)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs with the files of ``docs/``."""
    for source, page in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Called by mkdocs with the text of each page."""
    return rewritten(markdown, page.file.src_uri)


def rewritten(markdown: str, page: str) -> str:
    """
    Args:
        markdown: the text of a page.
        page: its path within ``docs/``, or of a page of :data:`PAGES`.
    """
    sources = {target: source for source, target in PAGES.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))

    def link(match: re.Match) -> str:
        text, anchor = match["text"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(folder, match["path"]))
        inside = PAGES.get(path, path[len("docs/") :] if path.startswith("docs/") else None)
        if inside is None:
            return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
        near = posixpath.relpath(inside, posixpath.dirname(page) or ".")
        return f"[{text}]({near}{anchor})"

    return _LINK.sub(link, markdown)

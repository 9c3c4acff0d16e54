"""Links that open a file in the repository are good on the site, too."""

import pytest
from hooks import ROOT, hook

links = hook("links")


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("faq.md", "[x](data.md#a)", "[x](data.md#a)"),
        ("faq.md", "[x](#below)", "[x](#below)"),
        ("faq.md", "![x](images/a.jpg)", "![x](images/a.jpg)"),
        ("faq.md", "[x](https://e.org/a.md)", "[x](https://e.org/a.md)"),
        ("faq.md", "[a loss](../CONTRIBUTING.md#a-loss)", "[a loss](contributing.md#a-loss)"),
        ("faq.md", "[the tutorial](tutorial.ipynb)", "[the tutorial](tutorial.md)"),
        ("faq.md", "[slim](../configs/a.yaml)", "slim (`configs/a.yaml`)"),
        ("faq.md", "[`tools/demo.py`](../tools/demo.py)", "`tools/demo.py`"),
        ("api/nms.md", "[x](../nms.md)", "[x](../nms.md)"),
        ("api/nms.md", "[x](../../CHANGELOG.md)", "[x](../changes.md)"),
        ("api/nms.md", "[x](../../odam_d2/core/nms.py)", "x (`odam_d2/core/nms.py`)"),
        ("contributing.md", "[x](docs/faq.md#y)", "[x](faq.md#y)"),
        ("contributing.md", "[x](odam_d2/files.py)", "x (`odam_d2/files.py`)"),
        ("tutorial.md", "[x](methods.md)", "[x](methods.md)"),
    ],
)
def test_link(page, written, shown):
    assert links.rewritten(f"See {written}, please.", page) == f"See {shown}, please."


def test_files_that_links_name_exist():
    """The site's own links are checked when it is built, these are not."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    assert pages
    for page in pages:
        for match in links._LINK.finditer(page.read_text()):
            assert (page.parent / match["path"]).exists(), f"{page.name}: {match['path']}"

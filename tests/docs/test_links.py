"""Links between the pages lead somewhere, tables are tables, and every page is in the index."""

import re

import pages
import pytest

_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+(?:\([^()]*\))?)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
DOCS = [page for page in pages.PAGES if (pages.ROOT / "docs") in page.parents]


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    plain = (
        re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", h).lower() for h in _HEADING.findall(text)
    )
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(
    "page", pages.PAGES, ids=lambda page: page.relative_to(pages.ROOT).as_posix()
)
def test_links_lead_somewhere(page):
    dead = []
    for found in _LINK.finditer(pages.prose(page)):
        target, _, anchor = found["target"].partition("#")
        if target.startswith("http"):
            dead += [] if target.startswith("https://") else [target]
            continue
        file = (page.parent / target).resolve() if target else page
        inside = pages.ROOT in file.parents
        if not inside or not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(found["target"])
    assert dead == []


def test_a_dead_link_would_be_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# A title\n\n[a](#a-title) [b](gone.md) [c](#no-title)\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"\['gone.md', '#no-title'\]"):
        test_links_lead_somewhere(page)


def test_tables_have_their_second_line():
    """A formatter that wraps lines makes one paragraph of a table."""
    flat = []
    for page in pages.PAGES:
        text = re.sub(r"^```.*?^```$", "", pages.text_of(page), flags=re.M | re.S)
        for lines in (p.splitlines() for p in re.split(r"\n\s*\n", text) if p.startswith("|")):
            if len(lines) < 2 or not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", lines[1]):
                flat.append(f"{page.name}: {lines[0][:60]}")
    assert flat == []


def _entries(page):
    """Yield the pages that a page's toctrees name."""
    for body in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        for line in body.splitlines():
            if line and not line.startswith(":"):
                yield from page.parent.glob(f"{line}.md")


def test_every_page_is_in_the_index():
    reached, new = set(), {pages.ROOT / "docs" / "index.md"}
    while new:
        reached |= new
        new = {entry.resolve() for page in new for entry in _entries(page)} - reached
    assert set(DOCS) - reached == {pages.ROOT / "docs" / "README.md"}

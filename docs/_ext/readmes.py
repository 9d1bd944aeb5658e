"""``docs/benchmarks/NAME.md`` shows ``benchmarks/NAME/README.md`` and ``table.md`` once they are there, not before."""

import posixpath
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
DOCS = Path(__file__).resolve().parents[1] / "benchmarks"  # their pages
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#|/)(?P<path>[^)\s]+)\)")


def show(_app, docname, source):
    """Put the README in the place of the page."""
    folder, _, name = docname.rpartition("/")
    readme, table = FOLDER / name / "README.md", FOLDER / name / "table.md"
    if folder == "benchmarks" and readme.exists():
        text = readme.read_text(encoding="utf-8")
        if table.exists():
            text += "\n## Table\n\n" + re.sub(r"^#+ .*\n", "", table.read_text(encoding="utf-8"), flags=re.MULTILINE)
        source[0] = LINK.sub(lambda link: from_here(name, link), text)


def from_here(name, link):
    """Pictures are shown from where they are; pages are linked to, and other files of the repository are named."""
    if not link["image"]:
        path, _, anchor = link["path"].partition("#")
        path = posixpath.normpath(posixpath.join("benchmarks", name, path))
        page = page_of(path)
        return f"`{path}`" if page is None else f"[{link['text']}]({page}{anchor and '#' + anchor})"
    there = (FOLDER / name / link["path"]).exists()
    return f"![{link['text']}](../../benchmarks/{name}/{link['path']})" if there else ""


def page_of(path):
    """The page that shows a file of the repository, from ``docs/benchmarks``; ``None`` where none does."""
    match = re.fullmatch(r"benchmarks/(.+)/README\.md", path)
    if match:
        page = match[1].replace("/", "-") + ".md"
    elif path.startswith("docs/"):
        page = posixpath.relpath(path, "docs/benchmarks")
    else:
        return None
    return page if (DOCS / page).exists() else None


def read_again(_app, env, _added, _changed, _removed):
    """Read these pages in every build: their text lies outside the documentation."""
    return [name for name in env.found_docs if name.startswith("benchmarks/")]


def setup(app):
    """Register both."""
    app.connect("source-read", show)
    app.connect("env-get-outdated", read_again)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}

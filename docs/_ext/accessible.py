"""Pages as Sphinx and the theme write them -> the same for a keyboard and for screen readers.

Boxes that scroll (code, tables, formulas) take the focus, headings of the contents say their level, and the two columns
beside a page have names (WCAG 2.1.1, 1.3.1).
"""

from pathlib import Path

REPLACED = {
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<div class="math">': '<div class="math" tabindex="0">',
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
}


def mend(app, exception):
    """Replace what is wrong in every page; one that was mended in an earlier build has nothing more to replace."""
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = mended = path.read_text(encoding="utf-8")
        for old, new in REPLACED.items():
            mended = mended.replace(old, new)
        if mended != text:
            path.write_text(mended, encoding="utf-8")


def setup(app):
    """Register it."""
    app.connect("build-finished", mend)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Pages as Sphinx and the theme write them -> the same for a keyboard and for screen readers.

Boxes that scroll (code, tables, formulas) take the focus, headings of the contents say their level, the two columns
beside a page have names, and the parameters of a signature of several lines, which Sphinx writes as definitions of
nothing, are a list. A cell of a table's head that is empty heads nothing, and one that is a formula says which (WCAG
2.1.1, 1.3.1).
"""

import re
from pathlib import Path

REPLACED = {
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<div class="math">': '<div class="math" tabindex="0">',
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
}

PARAMETERS = re.compile(r"<dl>\s*(<dd>.*?)</dl>", re.DOTALL)
EMPTY_HEAD = re.compile(r'<th class="head([^"]*)">\s*<p></p>\s*</th>')
FORMULA_HEAD = re.compile(r'(<th class="head[^"]*">\s*<p>)<math\b((?:(?!</math>).)*</math>)(?=</p>\s*</th>)', re.DOTALL)
TAG = re.compile(r"<annotation\b.*?</annotation>|<[^>]*>|\s+", re.DOTALL)


def labelled(match):
    """A head that is a formula, and its letters as text that is read and not seen: not all read MathML."""
    text = TAG.sub("", f"<math{match[2]}")
    return f'{match[1]}<span class="visually-hidden">{text}</span><math aria-hidden="true"{match[2]}'


def listed(match):
    """Definitions without a term as a list."""
    items = match[1].replace("<dd>", "<li>").replace("</dd>", "</li>")
    return f'<ul class="parameters">\n{items}</ul>'


def mend(app, exception):
    """Replace what is wrong in every page; one that was mended in an earlier build has nothing more to replace."""
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = mended = path.read_text(encoding="utf-8")
        for old, new in REPLACED.items():
            mended = mended.replace(old, new)
        mended = PARAMETERS.sub(listed, mended)
        mended = EMPTY_HEAD.sub(r'<td class="head\1"></td>', mended)
        mended = FORMULA_HEAD.sub(labelled, mended)
        if mended != text:
            path.write_text(mended, encoding="utf-8")


def setup(app):
    """Register it."""
    app.connect("build-finished", mend)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

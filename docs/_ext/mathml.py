"""LaTeX formulas -> MathML in the page: browsers draw it themselves, with no script and no network."""

import re

from docutils import nodes
from latex2mathml.converter import convert

TAG = re.compile(r"\\tag\{(\w+)\}")  # the equation's number in the paper
ALIGNED = re.compile(r"\\(begin|end)\{(aligned|align\*?)\}")


def inline(self, node):
    """A formula within a line."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    """A formula of its own; lines that are aligned at ``&`` become a table."""
    latex, number = TAG.sub("", node.astext().strip()).strip(), TAG.search(node.astext())
    latex = ALIGNED.sub(r"\\\1{split}", latex)
    if (r"\\" in latex or "&" in latex) and r"\begin{" not in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    label = f'<span class="eqno">({number[1]})</span>' if number else ""
    self.body.append(f'<div class="math">{convert(latex, display="block")}{label}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register as the way in which HTML shows formulas."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""The picture of a plan -> an ``<svg>`` element for a page, whose colours are the page's, light or dark.

Matplotlib writes colours into the file; here they become variables of the style sheet (``template/page.css``). Its
names of glyphs get a prefix, so that no two pictures of a page meet, and what is neither drawn nor read, such as
metadata with addresses of vocabularies, is left out.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

from pararealize.figure import BOXES, FAINT, INK, LINE, STAGES
from pararealize.plan.plan import Plan
from pararealize.table import quantity

from .elements import Drawing

__all__ = ["COLOURS", "picture_of"]

COLOURS = {INK: "ink", LINE: "line", FAINT: "faint", "#ffffff": "paper", "#000000": "ink"}
for name, pair in [*BOXES.items(), *((f"stage{i}", stage) for i, stage in enumerate(STAGES))]:
    COLOURS |= dict(zip(pair, (f"{name}-fill", f"{name}-edge"), strict=True))
DRAWN = frozenset({"svg", "g", "path", "defs", "use", "clipPath", "rect"})
ATTRIBUTES = frozenset({
    "d", "id", "x", "y", "width", "height", "transform", "style", "viewBox", "clip-path", "href", "version",
})  # fmt: skip


def picture_of(plan: Plan, *, title: str, prefix: str) -> Drawing:
    """The cut network as ``plan/figure.py`` draws it.

    Args:
        plan: the plan.
        title: of the picture.
        prefix: what names in it begin with; another one for each picture of a page.
    """
    from pararealize.plan.figure import draw_plan

    with tempfile.TemporaryDirectory() as folder:
        root = ET.parse(draw_plan(plan, Path(folder, "plan.svg"), title=title)).getroot()  # noqa: S314 - ours
    _clean(root, prefix)
    width, height = (float(root.attrib.pop(name).removesuffix("pt")) for name in ("width", "height"))
    root.attrib.pop("version", None)
    pixels, shape = width * 96 / 72, f"aspect-ratio: {width:.6g} / {height:.6g}"
    root.set("style", f"width: {pixels:.0f}px; min-width: {0.7 * pixels:.0f}px; {shape}")
    root.set("aria-hidden", "true")
    windows = f" in {quantity(len(plan.windows), 'window')}" if len(plan.windows) > 1 else ""
    return Drawing(
        title="To scale",
        description=f"{quantity(len(plan.segments), 'segment')}{windows}, with adapters above and coarse blocks below; "
        "heights are costs. The same is in the cards and tables below.",
        svg=ET.tostring(root, encoding="unicode", method="html"),
    )


def _clean(element: ET.Element, prefix: str) -> None:
    """Keep what is drawn, with names of the page's own."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    element.attrib = {name: _own(name, value, prefix) for name, value in attributes.items() if name in ATTRIBUTES}
    for child in list(element):
        if child.tag.rpartition("}")[2] in DRAWN:
            _clean(child, prefix)
        else:
            element.remove(child)
    element.text = element.tail = None


def _own(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href":
        return value.replace("#", f"#{prefix}", 1)
    if name == "style":
        return re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), value)
    return value.replace("url(#", f"url(#{prefix}")


def _variable(colour: str) -> str:
    return f"var(--{COLOURS[colour]})" if colour in COLOURS else colour

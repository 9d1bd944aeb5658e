"""The picture of a plan within a page: the page's colours, names of its own, and nothing but what is drawn."""

from __future__ import annotations

import re

from pararealize.reports.picture import picture_of
from tests.drawn_plans import make_plan


def test_colours_are_the_pages() -> None:
    svg = picture_of(make_plan(3), title="net", prefix="p0-").svg
    assert "var(--stage0-fill)" in svg
    assert "var(--ink)" in svg
    assert re.findall(r"#[0-9a-f]{6}", svg) == []
    assert "metadata" not in svg
    assert "xmlns" not in svg
    assert set(re.findall(r"<(\w+)", svg)) <= {"svg", "g", "path", "defs", "use", "clipPath", "rect"}


def test_names_have_the_prefix() -> None:
    svg = picture_of(make_plan(2), title="net", prefix="p7-").svg
    assert {name[:3] for name in re.findall(r'id="([^"]+)"', svg)} == {"p7-"}
    assert {name[:4] for name in re.findall(r'href="([^"]+)"', svg)} == {"#p7-"}
    assert set(re.findall(r'href="#([^"]+)"', svg)) <= set(re.findall(r'id="([^"]+)"', svg))

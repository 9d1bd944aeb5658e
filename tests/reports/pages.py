"""A page's text -> what its HTML holds, read by the standard library's parser; and values that a page shows."""

from __future__ import annotations

import dataclasses
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import torch
from torch import nn

from pararealize import BlockChain, capture, find_blocks
from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from pararealize.reports import write_report
from pararealize.train.run.history import EpochRow, History, StepRow
from pararealize.train.run.score import Score
from tests.drawn_plans import make_plan

__all__ = ["Page", "read", "small_chain", "small_net", "some_history", "some_timeline", "written"]

VOID = {"meta", "input", "br", "link", "img", "hr"}
# browsers close these themselves; what this library writes closes them too
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "nav", "p", "h1", "h2", "h3", "h4",
    "pre", "code", "dl", "dt", "dd", "div", "ul", "li", "a", "b", "i", "span", "figure", "figcaption", "details",
    "summary", "table", "thead", "tbody", "tr", "th", "td", "fieldset", "legend", "label", "input", "svg", "g", "defs",
    "path", "use", "rect", "circle", "line", "polyline", "text", "pattern", "marker", "clippath",
}  # fmt: skip


class Page(HTMLParser):
    """The elements, attributes and texts of a page; a fault where elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is to be read."""
        return " ".join(" ".join(self.texts).split())

    @property
    def strangers(self) -> list[str]:
        """What acts or is fetched: elements and attributes that no page has."""
        found = [tag for tag, _ in self.elements if tag not in ALLOWED]
        for tag, attributes in self.elements:
            found += [f"{tag} {name}" for name in attributes if name.startswith("on")]
            for name in ("href", "src", "xlink:href", "action", "srcset"):
                value = attributes.get(name)
                if value is not None and not value.startswith("#"):
                    found.append(f"{tag} {name}={value}")
        return found


def written(folder: Path, *values: object, **settings: object) -> tuple[str, Page]:
    """A page in a new file: its text, and what that holds."""
    path = write_report(folder / "page.html", *values, **settings)  # type: ignore[arg-type]
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def read(path: Path) -> Page:
    """The page of a file."""
    return Page(path.read_text(encoding="utf-8"))


class Unit(nn.Module):
    """x + conv(relu(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x.relu())


def small_net() -> nn.Module:
    """Six residual units between a stem and a head, from images to ten classes."""
    units = [Unit() for _ in range(6)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@cache
def small_chain() -> BlockChain:
    """The blocks of :func:`small_net`."""
    model = small_net()
    return find_blocks(capture(model, torch.zeros(2, 3, 8, 8)))


def some_timeline(n: int = 3, **changes: object) -> Timeline:
    """A simulated step of a plan by hand."""
    return dataclasses.replace(simulate(make_plan(n), rate=1e12), **changes)  # type: ignore[arg-type]


def some_history(epochs: int = 3) -> History:
    """Rows of a few epochs."""
    history = History(score=Score(loss=0.5, error=0.125, count=80))
    for i in range(1, epochs + 1):
        history.rows.append(StepRow(step=5 * i - 2, epoch=i, lr=0.1, loss=2 / i, error=0.5 / i, gradient=1.0 / i))
        values = {"loss": 2 / i, "error": 0.4 / i, "test_loss": 1 / i, "test_error": 0.25 / i}
        history.rows.append(EpochRow(step=5 * i, epoch=i, lr=0.1, **values))
    return history

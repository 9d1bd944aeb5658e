"""What a page is made of -> Section and Table: titles, figures, rows of text. Plain data; nothing here is HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from .charts import Chart
from .lanes import Lanes

__all__ = ["CardGroup", "Cards", "Drawing", "Figure", "PartCard", "Section", "Table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a heading.

    Attributes:
        caption: what the rows are; empty for none.
        head: the names of the columns.
        rows: as many cells each; ``None`` is a missing one.
        columns: a letter for each of the first columns, ``l`` for words, ``r`` for numbers; the others hold numbers.
        folded: show the caption alone until it is opened.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    columns: str = "l"
    folded: bool = False

    @property
    def letters(self) -> str:
        """A letter for every column."""
        return self.columns.ljust(len(self.head), "r")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCard:
    """A part of a network: its blocks as cells, and what is known of it.

    Attributes:
        letter: ``g`` of a segment; or a whole name.
        index: the number beside the letter; empty for none.
        colour: from 0, which of the colours; ``None`` for none (stem and head).
        pattern: from 0, which of the patterns.
        cells: how many blocks.
        facts: name and value of everything else.
    """

    letter: str
    index: str = ""
    colour: int | None = None
    pattern: int = 0
    cells: int = 0
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CardGroup:
    """Cards side by side under a title: a window's segments, or a stage's blocks."""

    title: str
    cards: tuple[PartCard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """The network as cards."""

    kind: ClassVar[str] = "cards"

    title: str
    description: str
    groups: tuple[CardGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawing.

    Attributes:
        title: above it.
        description: for those who cannot see it.
        svg: an ``<svg>`` element as this library serialised it, which goes into the page as it is.
    """

    kind: ClassVar[str] = "picture"

    title: str
    description: str
    svg: str


Figure: TypeAlias = Cards | Chart | Lanes | Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        lead: the first sentences.
        facts: what to see first, name and value each.
        figures: charts, timelines, cards and pictures, in order.
        tables: below them.
        notes: what the reader should know besides.

    Example:
        >>> from pararealize.reports.elements import Section
        >>> Section(title="Costs", facts=(("step", "1.2 ms"),)).facts
        (('step', '1.2 ms'),)
    """

    title: str
    lead: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

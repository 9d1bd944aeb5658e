"""Sections and tables: what they hold when little is said."""

from pararealize.reports.elements import Section, Table


def test_letters_of_columns() -> None:
    table = Table(caption="", head=("a", "b", "c"), rows=(), columns="l")
    assert table.letters == "lrr"


def test_a_section_may_be_a_title() -> None:
    section = Section(title="Costs")
    assert (section.lead, section.facts, section.figures, section.tables, section.notes) == ("", (), (), (), ())

"""Stored texts: back as values, or every fault at its place."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from pararealize.coarse.spec import STRICT
from pararealize.errors import PlanError
from pararealize.plan.json_text import finite, parse_json, read_json


@dataclasses.dataclass(frozen=True)
class Row:
    j: int
    name: str = "g"

    def __post_init__(self) -> None:
        if self.j < 1:
            raise ValueError(f"j is {self.j}")


@pydantic_dataclass(config=STRICT)
class Strict:
    j: int


ROWS = TypeAdapter(list[Row])


def test_there_and_back():
    rows = [Row(1), Row(2, "F")]
    assert read_json(ROWS, ROWS.dump_json(rows).decode(), "table") == rows
    assert parse_json('{"j": [1, null]}', "Table.to_json()") == {"j": [1, None]}


def test_what_is_no_json():
    with pytest.raises(PlanError, match=r"this is not JSON: .*; pass the text that Table.to_json\(\) wrote"):
        parse_json("{", "Table.to_json()")


def test_all_faults_at_once_each_at_its_place():
    with pytest.raises(PlanError) as raised:
        read_json(ROWS, '[{"j": "many"}, {"j": 0}, {"name": "C"}]', "table")
    lines = str(raised.value).splitlines()
    assert lines[0] == "this table cannot be read:"
    assert [line.split(":")[0] for line in lines[1:]] == ["0.j", "1", "2.j"]
    assert "j is 0" in lines[2]
    with pytest.raises(PlanError, match="table: Input should be a valid array"):
        read_json(ROWS, "7", "table")


def test_texts_that_are_no_documents():
    """Deeper, longer or more often said than anything that is written; and faults of a whole crowd in a few lines."""
    for text, message in (
        ("[" * 40 + "]" * 40, "more than 32 lists and objects within one another"),
        ("[" * 100_000 + "]" * 100_000, "this is not JSON"),
        ('{"j": 1, "j": 2}', "the key j stands twice in one object"),
        (b'{"j": \xff}', "this is not JSON: 'utf-8'"),
        ("[1]".encode("utf-16"), "this is not JSON: 'utf-8'"),
        ("9" * 5000, "this is not JSON"),
        (" " * (64 * 2**20 + 1), "at most 67,108,864 are read"),
    ):
        with pytest.raises(PlanError, match=message) as raised:
            parse_json(text, "Table.to_json()")
        assert len(str(raised.value)) < 700
    crowd = json.dumps([{"j": "\x1b[2J" * 9000, **{f"{'k' * 9000}{i}": 0 for i in range(500)}}] * 100)
    with pytest.raises(PlanError, match=r"and \d+ faults more") as raised:
        read_json(TypeAdapter(list[Strict]), crowd, "table")
    assert len(str(raised.value)) < 8000
    assert "\x1b" not in str(raised.value)


def test_nothing_is_turned_into_another_type():
    for value in ('"1"', "true", "1.0", "null", "[1]"):
        with pytest.raises(PlanError, match=r"0\.j: Input should be a valid integer"):
            read_json(ROWS, f'[{{"j": {value}}}]', "table")


def test_numbers_that_json_has_not_become_null() -> None:
    value = {"a": [1.5, float("nan"), (float("inf"), True, "x")], "b": {"c": -float("inf"), "d": 3}}
    assert finite(value) == {"a": [1.5, None, [None, True, "x"]], "b": {"c": None, "d": 3}}

"""Stored texts: back as values, or every fault at its place."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import TypeAdapter

from pararealize.errors import PlanError
from pararealize.plan.json_text import parse_json, read_json


@dataclasses.dataclass(frozen=True)
class Row:
    j: int
    name: str = "g"

    def __post_init__(self) -> None:
        if self.j < 1:
            raise ValueError(f"j is {self.j}")


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

"""Rows of a run: to a line of JSON and back, and as a table."""

import dataclasses
import json
import math

import pytest

from pararealize.multigrid.monitor import Event
from pararealize.train.run.history import EpochRow, History, StepRow, from_line, to_line

STEP = StepRow(step=10, epoch=1, lr=0.1, loss=1 / 3, error=0.25, gradient=None)
EPOCH = EpochRow(step=12, epoch=1, lr=0.1, loss=0.1 + 0.2, error=0.5, test_loss=2.0, test_error=0.75)
EVENT = Event(step=11, why="the residual is 0.05 of the values", forward=3, backward=2)


@pytest.mark.parametrize("row", [STEP, EPOCH, EVENT])
def test_there_and_back(row):
    assert from_line(to_line(row)) == row
    assert "\n" not in to_line(row)


def test_a_history_sorts_its_rows():
    history = History(rows=[STEP, EVENT, EPOCH])
    assert history.steps == [STEP]
    assert history.epochs == [EPOCH]
    assert history.events == [EVENT]
    assert str(history).splitlines()[1].split() == ["1", "12", "0.1", "0.3000", "50.00%", "2.0000", "75.00%"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_null_in_json(value):
    """As JSON has no such numbers; of a gradient, None says that a step was left out."""
    line = to_line(dataclasses.replace(EPOCH, test_loss=value))
    assert json.loads(line, parse_constant=pytest.fail)["test_loss"] is None
    row = from_line(line)
    assert math.isnan(row.test_loss)
    assert dataclasses.replace(row, test_loss=2.0) == EPOCH

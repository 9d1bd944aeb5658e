"""TensorBoard's files, read back by TensorBoard itself; and without it."""

import sys

import pytest

from pararealize.errors import OutputError
from pararealize.multigrid.monitor import Event
from pararealize.train.run import tensorboard
from pararealize.train.run.history import EpochRow, StepRow
from pararealize.train.run.tensorboard import Board, has_tensorboard


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def step(number, gradient=1.0):
    return StepRow(step=number, epoch=1, lr=0.5, loss=2.0, error=0.25, gradient=gradient)


def test_rows_come_back(tmp_path):
    made = Board(tmp_path, 0)
    made.add(step(1), 100.0)
    made.add(step(2, None), 100.0)
    made.add(EpochRow(step=2, epoch=1, lr=0.5, loss=2.0, error=0.25, test_loss=4.0, test_error=0.5), 100.0)
    made.add(Event(step=2, why="too few", forward=3, backward=2), 100.0)  # as text
    made.close()
    assert scalars(tmp_path) == {
        **{f"step/{name}": [(1, value), (2, value)] for name, value in
           [("loss", 2.0), ("error", 0.25), ("lr", 0.5), ("samples a second", 100.0)]},
        "step/gradient": [(1, 1.0)],
        **{f"epoch/{name}": [(2, value)] for name, value in
           [("loss", 2.0), ("error", 0.25), ("lr", 0.5), ("test loss", 4.0), ("test error", 0.5)]},
    }  # fmt: skip


def test_going_on_hides_what_came_after_the_checkpoint(tmp_path):
    first = Board(tmp_path, 0)
    for number in (1, 2, 3):
        first.add(step(number), 100.0)
    first.close()
    second = Board(tmp_path, 2)
    second.add(step(3), 100.0)
    second.close()
    assert [number for number, _ in scalars(tmp_path)["step/loss"]] == [1, 2, 3]


def test_without_tensorboard(tmp_path, monkeypatch):
    assert has_tensorboard()
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    assert not has_tensorboard()
    with pytest.raises(OutputError, match=r"pip install 'pararealize\[train\]'.*--no-tensorboard"):
        Board(tmp_path, 0)


def test_it_is_imported_only_where_it_is_used():
    import subprocess

    code = "import sys, pararealize.train.loop; print('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

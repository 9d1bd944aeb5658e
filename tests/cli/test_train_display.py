"""Progress of a training run: a bar on a terminal, and durations in words."""

import io

import pytest
from rich.console import Console

from pararealize import Recipe
from pararealize.train.run.progress import Progress
from pararealize.train.run.score import Score
from pararealize_cli.train_display import Display, duration


@pytest.mark.parametrize("seconds, told", [
    (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (7384, "2 h 03 min"),
])  # fmt: skip
def test_durations(seconds, told):
    assert duration(seconds) == told


def test_a_bar_on_a_terminal():
    display = Display(Recipe(), quiet=False, to_stderr=True)
    display.bar.live.console = Console(force_terminal=True, width=160, file=io.StringIO())
    display.bar_visible = True
    with display:
        display.report(progress(step=1))
        display.report(progress(step=2, score=Score(loss=1.0, error=0.25, count=4)))
    (task,) = display.bar.tasks
    assert (task.completed, task.total, task.description) == (2, 40, "epoch 1/20")
    assert task.fields["numbers"] == "loss 0.5000  accuracy  90.00%  120 images/s  1 min 05 s left"


def progress(step, score=None):
    return Progress(
        step=step, steps=40, epoch=1, epochs=20, loss=0.5, error=0.1, lr=0.1, rate=120.0, left=65.0, score=score
    )  # fmt: skip

"""The progress of a training run -> a bar on a terminal, a line an epoch everywhere."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from .console import console_of

if TYPE_CHECKING:
    from torch import nn

    from pararealize import Recipe
    from pararealize.data.dataset import Dataset
    from pararealize.train.run.progress import Progress

__all__ = ["Display", "duration"]


class Display:
    """A context around a training run that shows its progress.

    Args:
        recipe: the run's recipe, which is printed first.
        quiet: show nothing, as on all ranks but the first.
        to_stderr: leave stdout to the result.
    """

    def __init__(self, recipe: Recipe, *, quiet: bool, to_stderr: bool) -> None:
        self.recipe = recipe
        self.console = console_of(stderr=to_stderr, quiet=quiet, soft_wrap=True)
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[numbers]}"),
            console=console_of(stderr=True, quiet=quiet), transient=True,
        )  # fmt: skip
        self.bar_visible = self.bar.console.is_terminal and not quiet
        self.task: TaskID | None = None

    def begin(self, model: str, method: str, net: nn.Module, data: Dataset, folder: Path) -> None:
        """Print the model, the method, the data, the recipe and the folder."""
        plan = getattr(net, "plan", None)
        how = f"{method}, n = {plan.n}" if plan is not None else method
        self.say(f"{model} ({how}) on {data}")
        self.say(f"{self.recipe}; files in {folder}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(escape(text))

    def __enter__(self) -> Display:
        if self.bar_visible:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar_visible:
            self.bar.stop()

    def report(self, now: Progress) -> None:
        """Show a step; an epoch that has ended gets a line, and so does what a monitor changed."""
        numbers = f"loss {now.loss:.4f}  accuracy {1 - now.error:7.2%}  {now.rate:.0f} images/s"
        if self.bar_visible:
            if self.task is None:
                self.task = self.bar.add_task("", total=now.steps, numbers="")
            line = f"{numbers}  {duration(now.left)} left"
            self.bar.update(
                self.task,
                completed=now.step,
                total=now.steps,
                description=f"epoch {now.epoch}/{now.epochs}",
                numbers=line,
            )
        for event in now.events:
            self.say(f"monitor: {event}")
        if now.score is not None:
            width = len(str(now.epochs))
            self.say(
                f"epoch {now.epoch:{width}}/{now.epochs}  {numbers}  test loss {now.score.loss:.4f}  "
                f"test accuracy {now.score.accuracy:7.2%}  lr {now.lr:.3g}  {duration(now.left)} left"
            )


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(4.2), duration(75), duration(7384)
        ('4 s', '1 min 15 s', '2 h 03 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

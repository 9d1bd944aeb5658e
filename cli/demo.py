"""A network and the digits -> falling losses, printed and drawn: ``pararealize demo``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import out, print_json, working

if TYPE_CHECKING:
    from torch import nn

    from pararealize.data.dataset import Dataset

__all__ = ["EXAMPLES", "DemoStep", "command", "progress_lines", "train"]

EXAMPLES = """
[bold]Examples[/]

  pararealize demo

  pararealize demo --model resnet164 --n 6 --steps 200 --plot loss.svg
"""

LINES = 20  # of progress, whatever the number of steps
WARM_UP = 5  # steps over which the learning rate rises


def command(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Takes images of 3 channels, tells 10 classes.")
    ] = "resnet1001",
    n: Annotated[int, typer.Option("--n", "-n", help="How many segments.")] = 12,
    coarse: Annotated[str, typer.Option(metavar="KIND", help="As of [bold]convert[/].")] = "paper",
    steps: Annotated[int, typer.Option(help="How many training steps.", min=1)] = 30,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=2)] = 16,
    image_size: Annotated[int, typer.Option(help="Pixels of a side.", min=1)] = 32,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW, after a linear rise.", min=0.0)] = 1e-3,
    seed: options.Seed = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the losses into an .svg or .png.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Convert a network and train it for some steps on scikit-learn's digits: the loss falls."""
    console = out(quiet=as_json)
    with working(f"building and converting {model}"):
        from pararealize import data, pararealize

        from . import arguments, report

        started = time.perf_counter()
        digits = data.digits(batch_size, seed, image_size=image_size)
        net = arguments.model(model, num_classes=None, seed=seed)
        built = time.perf_counter()
        pnet = pararealize(net, n, coarse=arguments.coarse(coarse), seed=seed, example_inputs=digits.images[:2])
        converted = time.perf_counter()
    console.print(report.plan_tables(pnet.plan, model))
    console.print(f"built in {built - started:.1f} s, converted in {converted - built:.1f} s")
    console.print(f"training on {digits}")
    with working("step 1") as progress:
        losses = []
        for line, step in progress_lines(train(pnet, digits, steps=steps, lr=lr), steps):
            losses.append(step.loss)
            if line:
                console.print(line)
            progress(f"step {min(step.number + 1, steps)} of {steps}")
    if plot is not None:
        from pararealize.train.run.curves import draw_losses

        draw_losses(losses, plot, title=f"{model} on the digits, n = {n}")
    if as_json:
        print_json(report.plan_json(pnet.plan) | {"losses": losses})
    else:
        console.print(report.training_summary(losses, seconds=time.perf_counter() - started))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoStep:
    """One training step: its number from 1, the loss before it, the seconds it took."""

    number: int
    loss: float
    seconds: float


def train(net: nn.Module, data: Dataset, *, steps: int, lr: float) -> Iterator[DemoStep]:
    """Train with AdamW, the learning rate rising over the first steps; a value a step."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    net.train()
    for number, (images, labels) in enumerate(itertools.islice(data.batches(None), steps), start=1):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, number / WARM_UP)
        loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield DemoStep(number=number, loss=loss.item(), seconds=time.perf_counter() - started)


def progress_lines(all_steps: Iterable[DemoStep], steps: int) -> Iterator[tuple[str, DemoStep]]:
    """Each step with a line to print: the mean loss since the last line, empty where none is due."""
    every = max(1, -(-steps // LINES))
    recent: list[DemoStep] = []
    for step in all_steps:
        recent.append(step)
        if step.number % every and step.number != steps:
            yield "", step
            continue
        loss, seconds = (
            sum(values) / len(recent) for values in zip(*((s.loss, s.seconds) for s in recent), strict=True)
        )
        yield f"step {step.number:>{len(str(steps))}} of {steps}   loss {loss:6.3f}   {seconds:5.2f} s a step", step
        recent = []

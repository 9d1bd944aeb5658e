"""A model, devices and a batch -> what every strategy takes, and advice: ``pararealize plan``."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import print_result, working
from .example_options import ExampleOptions
from .folder import PLAN_FILES, output_folder, writing
from .html import check_page, write_page

if TYPE_CHECKING:
    from pararealize import StrategyComparison

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize plan resnet110 --devices 8 --batch-size 32

  pararealize plan vit_b_16 --devices 64 --batch-size 256 --device a100 --link pcie --out plans

  pararealize plan mynets.py:deep --devices 4 --batch-size 8 --input-shape 3,64,64 --measure
"""


class OptimizerName(StrEnum):
    """Whose state stands in memory."""

    sgd = "sgd"
    momentum = "momentum"
    adam = "adam"


def command(
    *,
    model: options.Model,
    devices: Annotated[int, typer.Option(metavar="NUMBER", help="How many devices there are.")],
    device: Annotated[
        str,
        typer.Option(
            metavar="PROFILE",
            help="h100, h200, a100, rtx4090, p40, titan-rtx, cpu, or a file that pararealize profile wrote.",
        ),
    ] = "h100",
    link: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="nvlink, pcie, ethernet, … [dim]\\[default: the profile's first][/]"),
    ] = None,
    optimizer: Annotated[OptimizerName, typer.Option(help="Whose state counts as memory.")] = OptimizerName.adam,
    graphs: Annotated[bool, typer.Option("--graphs", help="Operations are replayed as captured graphs.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the model's blocks here and now; the profile gives the links.")
    ] = False,
    coarse: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Of coarse blocks. [dim]\\[default: the cheapest, and what learnt best][/]"),
    ] = None,
    no_curves: Annotated[
        bool, typer.Option("--no-curves", help="Leave out the curves against devices and batch, which take longer.")
    ] = False,
    example: ExampleOptions,
    network: options.ModelOptions,
    output: Annotated[
        Path | None, options.to_folder(help="Write strategies.json and a picture of the curves into a new folder.")
    ] = None,
    result: options.ResultOptions,
) -> None:
    """Predict what a step of MODEL takes by data parallelism, pipelines and parareal networks, and what to take."""
    check_page(result.page, output)
    with (
        working(f"building {model}", long=True) as progress,
        output_folder(output, force=result.force, files=PLAN_FILES) as folder,
    ):
        from pararealize import plan_strategies

        net = network.build(model, meta=not measure)
        samples = example.samples(example.values(model, meta=True))
        read_with = example if example.inputs else replace(example, batch_size=2)  # the network is read at any batch
        comparison = plan_strategies(
            net,
            read_with.values(model, meta=not measure),
            devices=devices,
            batch_size=samples,
            profile=device,
            link=link,
            optimizer=optimizer.value,
            captured=graphs,
            measure=measure,
            coarse=coarse,
            curves=not no_curves,
            leaf_modules=network.leaf_modules(model),
            name=model,
            report=progress,
        )
        with writing(output):
            files = [] if folder is None else _write(comparison, folder, model, result.picture)
    print_result(json.loads(comparison.to_json()), str(comparison), output, files, as_json=result.as_json)
    write_page(result.page, comparison, title=model, seed=network.seed, quiet=result.as_json)


def _write(comparison: StrategyComparison, folder: Path, title: str, picture: options.Picture) -> list[str]:
    document = folder / "strategies.json"
    document.write_text(comparison.to_json(), encoding="utf-8")
    if not comparison.curves:
        return [document.name]
    from pararealize.strategies.figure import draw_strategies

    return [document.name, draw_strategies(comparison, folder / f"strategies.{picture}", title=title).name]

"""A model -> its blocks and refused cut points, printed: ``pararealize inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import out, print_json, working
from .example_options import ExampleOptions
from .html import check_page, write_page

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize inspect resnet50

  pararealize inspect timm:convnext_atto --all

  pararealize inspect transformers_net.py:bert --input-shape 128 --input-dtype int64
"""


def command(
    *,
    model: options.Model,
    every: Annotated[
        bool, typer.Option("--all", help="Print every block and refused cut, equal ones not joined.")
    ] = False,
    granularity: options.BlockSize = options.Granularity.repeated,
    example: ExampleOptions,
    network: options.ModelOptions,
    page: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Show MODEL's blocks with shapes, receptive fields and costs, and every cut point refused and why."""
    check_page(page)
    with working(f"building {model}") as progress:
        from . import report

        net = network.build(model)
        progress(f"reading {model}")
        inspection = report.inspection(
            net, example.values(model), leaf_modules=network.leaf_modules(model), granularity=granularity.value
        )
    if as_json:
        print_json(report.inspection_json(inspection))
    else:
        out().print(report.inspection_tables(inspection, every=every))
    write_page(page, inspection.chain, title=model, seed=network.seed, quiet=as_json)

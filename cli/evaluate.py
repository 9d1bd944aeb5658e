"""A network's folder and a data set -> original and parareal network side by side: ``pararealize evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import out, print_json, working
from .data_options import DataOptions
from .html import check_page, write_page
from .residual_norms import section_of_residuals
from .step_timelines import SAMPLES, forward_pass

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize evaluate resnet56-n4 --data digits

  pararealize evaluate resnet110-n3-fashion --data fashion_mnist --count 1,2000 --batch-sizes 1,64 --json

  pararealize evaluate sentences-n4 --built-by mynets.py:encoder --data mydata.py:sentences --no-logits
"""


def command(
    *,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="What convert, calibrate, train or network.save has written.")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The original's. [dim]\\[default: those that the folder has of it][/]"),
    ] = None,
    data: DataOptions,
    built_by: options.BuiltBy = None,
    coarse: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="file.py:function that built its coarse blocks, where one of yours did."),
    ] = None,
    logits: Annotated[
        bool | None,
        typer.Option(
            "--logits/--no-logits", help="The output is one of logits. [dim]\\[default: where labels fit it][/]"
        ),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="LIST", help="Of the calls that are timed; 0 for none.")] = "1,32",
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each network, in turn; more where they are short.")] = 9,
    devices: options.Devices = None,
    seed: options.Seed = 0,
    page: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure how well the network of FOLDER does beside its original, on the test part, and how long calls take."""
    check_page(page)
    with working(f"reading {folder}", long=True) as progress:
        from pararealize import compare, load

        from . import arguments, saved_model
        from .calibrate import load_weights

        sizes = [size for size in arguments.numbers(batch_sizes, "batch-sizes") if size]
        samples = data.load(seed, model=folder)
        places = arguments.devices(devices)
        net = load(folder, built_by, coarse=None if coarse is None else arguments.coarse(coarse), devices=places)
        original, doubt = saved_model.original(folder, built_by)
        if weights is not None:
            load_weights(original, weights)
        if places is not None:
            original = original.to(places[0])
        result = compare(
            net,
            original,
            samples.test_batches,
            logits=logits,
            batch_sizes=sizes,
            rounds=rounds,
            report=progress,
        )
        note = f"{doubt}; --weights names those of the original" if doubt and weights is None else ""
    if as_json:
        print_json({"comparison": result.to_dict(), "data": str(samples), "note": note})
    else:
        out().print(f"{folder} on {samples}\n\n{result}" + (f"\nnote: {note}" if note else ""), markup=False)
    residuals = None if page is None else section_of_residuals(net, samples.example(SAMPLES))
    steps = forward_pass(page, net, samples)
    write_page(page, result, net.plan, residuals, *steps, title=folder, seed=seed, quiet=as_json)

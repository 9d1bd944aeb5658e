"""A trained model's weights and a data set -> speed-up against error, plan by plan: ``pararealize tradeoff``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .calibrate import trained
from .console import print_result, working
from .data_options import DataOptions
from .folder import TRADEOFF_FILES, output_folder, writing
from .html import blocks_of, check_page, write_page

if TYPE_CHECKING:
    from pararealize.tradeoffs import Tradeoff

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize tradeoff resnet56 --weights trained.safetensors --n 2,4 --data digits

  pararealize tradeoff mynets.py:deep --weights trained.safetensors --n 2,4,8 --tolerance 0.05 --out front
"""


def command(
    *,
    model: options.Model,
    n: Annotated[
        str, typer.Option("--n", "-n", metavar="N,…", help="Numbers of devices, separated by commas.")
    ] = "2,4",
    weights: options.Weights = None,
    data: DataOptions,
    coarse: Annotated[
        str, typer.Option(metavar="KIND", help="low-rank, low-rank:16, scale, dense, folded, folded:16 or linear.")
    ] = "low-rank",
    points: Annotated[int, typer.Option(min=1, help="Plans that are calibrated and measured, for each n.")] = 6,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Look for the fastest plan whose output errs by no more than this, of its norm, and show it."
        ),
    ] = None,
    across: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="WINDOWS",
            help="Windows in which the space changes that are tried for each n; left out, 8 where windows of one space "
            "can hold less than half of the work, and otherwise none.",
        ),
    ] = None,
    granularity: options.BlockSize = options.Granularity.repeated,
    cost: options.CostOfCuts = options.CostUnit.flops,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write tradeoff.json, its picture, and with --tolerance plan.json into a new folder."),
    ] = None,
    result: options.ResultOptions,
) -> None:
    """Measure how fast a trained MODEL can be made, and how near to itself it then stays."""
    check_page(result.page, output)
    with (
        working(f"building {model}", long=True) as progress,
        output_folder(output, force=result.force, files=TRADEOFF_FILES) as folder,
    ):
        from pararealize.tradeoffs import tradeoff

        from . import arguments

        numbers = arguments.numbers(n, "n")
        samples = data.load(network.seed, model=model)
        net = trained(model, network, weights)
        measured = tradeoff(
            net.eval(),
            samples.batches,
            test=samples.test_batches,
            n=numbers,
            coarse=coarse,
            points=points,
            tolerance=tolerance,
            across=across,
            example_inputs=samples.example(),
            cost=cost.value,
            leaf_modules=network.leaf_modules(model),
            granularity=granularity.value,
            seed=network.seed,
            report=progress,
        )
        chosen = None if tolerance is None else measured.within(tolerance)
        chain = blocks_of(result.page, net, samples.example(), network.leaf_modules(model), granularity.value)
        files: list[str] = []
        if folder is not None:
            with writing(output):
                files = _write(measured, folder, model, result.picture)
                if chosen is not None:
                    (folder / "plan.json").write_text(chosen.plan.to_json(), encoding="utf-8")
                    files.append("plan.json")
    document = {"tradeoff": json.loads(measured.to_json())}
    text = str(measured)
    if chosen is not None:
        document["chosen"] = {"n": chosen.n, "speedup": chosen.speedup, "error": chosen.error}
        document["chosen"]["plan"] = json.loads(chosen.plan.to_json())
        text += (
            f"\n\nwithin {tolerance:g}: {chosen.speedup:.2f}× with n = {chosen.n}, error {chosen.error:.3g}\n\n"
            f"{chosen.plan}"
        )
    print_result(document, text, output, files, as_json=result.as_json)
    plan = None if chosen is None else chosen.plan
    write_page(result.page, measured, plan, chain, title=model, seed=network.seed, quiet=result.as_json)


def _write(measured: Tradeoff, folder: Path, title: str, picture: options.Picture) -> list[str]:
    from pararealize.tradeoffs.figure import draw_tradeoff

    document = folder / "tradeoff.json"
    document.write_text(measured.to_json(), encoding="utf-8")
    drawn = draw_tradeoff(measured, folder / f"tradeoff.{picture}", title=title)
    return [document.name, drawn.name]

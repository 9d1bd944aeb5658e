"""A trained model's weights and a data set -> a calibrated parareal network in a folder: ``pararealize calibrate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import print_result, working
from .convert import write_network
from .folder import CALIBRATION_FILES, output_folder
from .model_file import Origin

if TYPE_CHECKING:
    from torch import nn

    from pararealize import PararealModule
    from pararealize.calibration.report import Calibration
    from pararealize.data.dataset import Dataset
    from pararealize.train.run.progress import Progress

__all__ = ["EXAMPLES", "FittingOptions", "command", "load_weights"]

SECONDS = 10.0  # between lines in a log
EXAMPLES = """
[bold]Examples[/]

  pararealize calibrate resnet56 --weights trained.safetensors --n 4 --data digits --out resnet56-n4

  pararealize calibrate mynets.py:deep --weights trained.safetensors --n 8 --coarse block --fine-tune-steps 500

  pararealize calibrate resnet110 --weights trained.safetensors --n 2 --windows 8 --coarse low-rank
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingOptions:
    """How what was added is fitted, and whether everything is trained afterwards."""

    steps: Annotated[int, typer.Option(min=0, help="Of distillation, for each coarse block that is not linear.")] = 200
    lr: Annotated[float, typer.Option(help="Of distillation.")] = 1e-2
    ridge: Annotated[float, typer.Option(help="Of least squares, relative to the mean squared feature.")] = 1e-4
    renew_statistics: Annotated[
        bool | None,
        typer.Option(
            "--renew-statistics/--keep-statistics",
            help="Running statistics of the original's batch norms measured anew on what arrives, where that helps. "
            "[dim]\\[default: with several windows][/]",
        ),
    ] = None
    fine_tune_steps: Annotated[int, typer.Option(min=0, help="Then train everything, the original's weights too.")] = 0


def command(
    *,
    model: options.Model,
    n: options.N,
    weights: Annotated[Path, typer.Option(metavar="FILE", help="The trained weights, a .safetensors file.")],
    data: Annotated[str, typer.Option(metavar="NAME", help="The data set that it was trained on.")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the data set lies.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a side. [dim]\\[default: the data's own][/]")
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples in a batch.", min=2)] = 128,
    conversion: options.ConversionOptions,
    fitting: FittingOptions,
    devices: Annotated[
        str | None, options.on_devices(help="Such as cuda:0,cuda:1; fewer than segments wrap round.")
    ] = None,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write what convert writes, calibration.json and its picture into a new folder."),
    ] = None,
    force: options.Force = False,
    picture: options.PictureFormat = options.Picture.svg,
    as_json: options.AsJson = False,
) -> None:
    """Convert a trained MODEL and fit what was added to it, so that it works without training anew."""
    with (
        working(f"building {model}", every=SECONDS) as progress,
        output_folder(output, force=force, files=CALIBRATION_FILES) as folder,
    ):
        from pararealize import pararealize
        from pararealize.data.catalogue import load

        from . import arguments

        samples = load(data, batch_size=batch, seed=network.seed, data_dir=data_dir, image_size=image_size)
        net = network.build(model)
        load_weights(net, weights)
        progress(f"converting {model}")
        inputs = samples.example()
        pnet = pararealize(
            net,
            n,
            devices=arguments.devices(devices),
            example_inputs=inputs,
            **conversion.arguments(),
            seed=network.seed,
            leaf_modules=network.leaf_modules(),
        )
        calibration = _fit(pnet, net, samples, fitting, network.seed, progress)
        files: list[str] = []
        if folder is not None:
            progress("writing the files")
            origin = Origin(model=model, options=network, example=inputs)
            files = write_network(pnet, folder, origin, coarse=conversion.coarse, picture=picture)
            files += _write(calibration, folder, model, picture)
    document = {"calibration": json.loads(calibration.to_json())}
    print_result(document, str(calibration), output, files, as_json=as_json)


def load_weights(net: nn.Module, path: Path) -> None:
    """Read the weights of the original, every one of them."""
    from pararealize.distributed.checkpoint import load_state
    from pararealize.errors import CheckpointError

    try:
        load_state(net, path)
    except CheckpointError as error:
        fact = str(error).rpartition("; ")[0]  # the remedy there is for who loads checkpoints
        raise CheckpointError(
            f"{fact}; name the weights that were saved from this model, with its --num-classes"
        ) from error


def _fit(
    pnet: PararealModule,
    net: nn.Module,
    samples: Dataset,
    fitting: FittingOptions,
    seed: int,
    progress: Callable[[str], None],
) -> Calibration:
    """Fit what was added to ``net`` in place; then train everything, where steps of that are asked for."""
    from pararealize import calibrate, fine_tune

    calibration = calibrate(
        pnet,
        samples.batches,
        test=samples.test_batches,
        steps=fitting.steps,
        lr=fitting.lr,
        ridge=fitting.ridge,
        seed=seed,
        renew_statistics=fitting.renew_statistics,
        report=progress,
    )
    steps = fitting.fine_tune_steps
    if not steps:
        return calibration

    def report(now: Progress) -> None:
        progress(f"fine-tuning: step {now.step} of {steps}")

    return fine_tune(pnet, samples, calibration, steps=steps, original=net, seed=seed, report=report)


def _write(calibration: Calibration, folder: Path, title: str, picture: options.Picture) -> list[str]:
    from pararealize.calibration.figure import draw_calibration

    document = folder / "calibration.json"
    document.write_text(calibration.to_json(), encoding="utf-8")
    drawn = draw_calibration(calibration, folder / f"calibration.{picture}", title=title)
    return [document.name, drawn.name]

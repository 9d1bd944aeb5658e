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
from .convert import title_of, write_network
from .data_options import DataOptions
from .folder import CALIBRATION_FILES, output_folder

if TYPE_CHECKING:
    from torch import nn

    from pararealize import PararealModule
    from pararealize.calibration.report import Calibration
    from pararealize.data.dataset import Dataset
    from pararealize.data.own_batches import OwnBatches
    from pararealize.train.run.progress import Progress

__all__ = ["EXAMPLES", "FittingOptions", "command", "load_weights", "trained"]

SECONDS = 10.0  # between lines in a log
OWN_BATCH = 128  # samples that fine-tuning takes at once of batches of the user's own
EXAMPLES = """
[bold]Examples[/]

  pararealize calibrate resnet56 --weights trained.safetensors --n 4 --data digits --out resnet56-n4

  pararealize calibrate mynets.py:deep --weights trained.safetensors --n 8 --coarse block --fine-tune-steps 500

  pararealize calibrate resnet110 --weights trained.safetensors --n 2 --windows 8 --coarse low-rank

  pararealize calibrate resnet56-n4 --data digits --fine-tune-steps 500 --out resnet56-n4-tuned
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
    n: options.NOrSaved = None,
    weights: options.Weights = None,
    data: DataOptions,
    conversion: options.ConversionOptions,
    fitting: FittingOptions,
    devices: Annotated[
        str | None, options.on_devices(help="Such as cuda:0,cuda:1; fewer than segments wrap round.")
    ] = None,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write the network's folder, with the report and its picture in it; a new one."),
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

        from . import arguments

        samples = data.load(network.seed, model=model)
        net = trained(model, network, weights)
        inputs, places = samples.example(), arguments.devices(devices)
        if n is None:
            pnet = conversion.saved_network(model, built_by=network.built_by, devices=places)
        else:
            progress(f"converting {model}")
            pnet = pararealize(
                net,
                n,
                devices=places,
                example_inputs=inputs,
                **conversion.arguments(),
                seed=network.seed,
                leaf_modules=network.leaf_modules(),
            )
        calibration = _fit(pnet, net, samples, fitting, network.seed, progress)
        files: list[str] = []
        if folder is not None:
            progress("writing the files")
            title = title_of(model)
            files = write_network(
                pnet,
                folder,
                title=title,
                picture=picture,
                calibration=calibration,
                original=net if fitting.fine_tune_steps else None,
                more=lambda part: _draw(calibration, part, title, picture),
            )
    document = {"calibration": json.loads(calibration.to_json())}
    print_result(document, str(calibration), output, files, as_json=as_json)


def trained(model: str, network: options.ModelOptions, weights: Path | None) -> nn.Module:
    """The trained original: MODEL with the weights of a file, or as a folder in the place of MODEL has it.

    Raises:
        CheckpointError: there are no weights.
    """
    from pararealize.errors import CheckpointError

    from . import saved_model

    if weights is None and not saved_model.is_saved(model):
        raise CheckpointError(
            f"there are no trained weights of {model}; name a file (--weights trained.safetensors), or in the place of "
            "MODEL a folder that has them"
        )
    net = network.build(model)
    if weights is not None:
        load_weights(net, weights)
    return net


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
    samples: Dataset | OwnBatches,
    fitting: FittingOptions,
    seed: int,
    progress: Callable[[str], None],
) -> Calibration:
    """Fit what was added to ``net`` in place; then train everything, where steps of that are asked for."""
    from pararealize import calibrate, fine_tune
    from pararealize.data.own_batches import OwnBatches

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

    data = samples.dataset(OWN_BATCH, seed) if isinstance(samples, OwnBatches) else samples
    return fine_tune(pnet, data, calibration, steps=steps, original=net, seed=seed, report=report)


def _draw(calibration: Calibration, folder: Path, title: str, picture: options.Picture) -> None:
    from pararealize.calibration.figure import draw_calibration

    draw_calibration(calibration, folder / f"calibration.{picture}", title=title)

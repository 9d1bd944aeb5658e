"""A trained model's weights and a data set -> a calibrated parareal network in a folder: ``pararealize calibrate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_result, working
from .folder import CALIBRATION_FILES, output_folder
from .options import (
    AsJson,
    Coarse,
    Cuts,
    Force,
    Leaf,
    Model,
    N,
    NumClasses,
    Picture,
    PictureFormat,
    Seed,
    SourceOfAdapters,
    StemBlocks,
    on_devices,
    to_folder,
)

if TYPE_CHECKING:
    from torch import nn

    from pararealize import PararealModule
    from pararealize.calibration.report import Calibration
    from pararealize.data.dataset import Dataset

__all__ = ["EXAMPLES", "calibrate"]

SECONDS = 10.0  # between lines in a log
EXAMPLES = """
[bold]Examples[/]

  pararealize calibrate resnet56 --weights trained.safetensors --n 4 --data digits --out resnet56-n4

  pararealize calibrate mynets.py:deep --weights trained.safetensors --n 8 --coarse block --fine-tune-steps 500
"""


def calibrate(
    model: Model,
    n: N,
    weights: Annotated[
        Path,
        typer.Option("--weights", metavar="FILE", help="The trained weights, a .safetensors file.", show_default=False),
    ],
    data: Annotated[
        str, typer.Option("--data", metavar="NAME", help="The data set that it was trained on.")
    ] = "digits",
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="FOLDER", help="Where the data set lies.", show_default=False),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=1, help="Pixels of a side. [dim]\\[default: the data's own][/]", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Samples in a batch.", min=2)] = 128,
    coarse: Coarse = "paper",
    cuts: Cuts = "cost",
    source: SourceOfAdapters = None,
    stem_blocks: StemBlocks = 0,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Of distillation, for each coarse block that is not linear.")
    ] = 200,
    lr: Annotated[float, typer.Option("--lr", help="Of distillation.")] = 1e-2,
    ridge: Annotated[
        float, typer.Option("--ridge", help="Of least squares, relative to the mean squared feature.")
    ] = 1e-4,
    fine_tune_steps: Annotated[
        int, typer.Option("--fine-tune-steps", min=0, help="Then train everything, the original's weights too.")
    ] = 0,
    devices: Annotated[str | None, on_devices(help="Such as cuda:0,cuda:1; fewer than segments wrap round.")] = None,
    num_classes: NumClasses = None,
    leaf: Leaf = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, to_folder(help="Write what convert writes, calibration.json and its picture into a new folder.")
    ] = None,
    force: Force = False,
    picture: PictureFormat = Picture.svg,
    as_json: AsJson = False,
) -> None:
    """Convert a trained MODEL and fit its adapters and coarse blocks, so that it works without training anew."""
    with (
        working(f"building {model}", every=SECONDS) as progress,
        output_folder(output, force=force, files=CALIBRATION_FILES) as folder,
    ):
        from pararealize import pararealize
        from pararealize.data.catalogue import load

        from . import arguments

        samples = load(data, batch_size=batch, seed=seed, data_dir=data_dir, image_size=image_size)
        net = arguments.model(model, num_classes=num_classes, seed=seed)
        _load(net, weights)
        progress(f"converting {model}")
        example = samples.example()
        pnet = pararealize(
            net,
            n,
            devices=arguments.devices(devices),
            example_inputs=example,
            coarse=arguments.coarse(coarse),
            cuts=arguments.cuts(cuts),
            source=None if source is None else source.value,
            stem_blocks=stem_blocks,
            seed=seed,
            leaf_modules=arguments.leaf_modules(leaf),
        )
        calibration = _fitted(
            pnet, samples, progress, steps=steps, lr=lr, ridge=ridge, fine_tune_steps=fine_tune_steps, seed=seed
        )
        written: list[str] = []
        if folder is not None:
            from .convert import Recipe, write

            progress("writing the files")
            recipe = Recipe(
                model=model, num_classes=num_classes, example=example, coarse=coarse, leaf=tuple(leaf or ())
            )
            written = write(pnet, folder, recipe, picture=picture.value)
            written += _write(calibration, folder, model, picture.value)
    found = {"calibration": json.loads(calibration.to_json())}
    print_result(found, str(calibration), output, written, as_json=as_json)


def _load(net: nn.Module, path: Path) -> None:
    """Read the weights of the original, every one of them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    from pararealize.errors import CheckpointError

    try:
        load_model(net, str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {str(path)!r}: {error}; name a .safetensors file of the model's state"
        ) from error
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{str(path)!r} does not fit the model: {first}; name the weights that were saved from this model, with "
            f"its --num-classes"
        ) from error


def _fitted(
    pnet: PararealModule,
    samples: Dataset,
    progress: Callable[[str], None],
    *,
    steps: int,
    lr: float,
    ridge: float,
    fine_tune_steps: int,
    seed: int,
) -> Calibration:
    """Fit adapters and coarse blocks in place; then train everything, where steps of that are asked for."""
    from pararealize.calibration.fine_tuning import fine_tune
    from pararealize.calibration.fitting import calibrate

    calibration = calibrate(
        pnet, samples.batches, test=samples.test_batches, steps=steps, lr=lr, ridge=ridge, seed=seed, report=progress
    )
    if not fine_tune_steps:
        return calibration
    told = _steps(progress, fine_tune_steps)
    return fine_tune(pnet, samples, calibration, steps=fine_tune_steps, seed=seed, report=told)


def _steps(progress: Callable[[str], None], steps: int) -> Callable[..., None]:
    def told(now: object) -> None:
        progress(f"fine-tuning: step {getattr(now, 'step', 0)} of {steps}")

    return told


def _write(calibration: Calibration, folder: Path, title: str, picture: str) -> list[str]:
    from pararealize.calibration.figure import draw_calibration

    whole = folder / "calibration.json"
    whole.write_text(calibration.to_json(), encoding="utf-8")
    drawn = draw_calibration(calibration, folder / f"calibration.{picture}", title=title)
    return [whole.name, drawn.name]

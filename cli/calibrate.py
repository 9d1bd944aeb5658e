"""A trained model's weights and a data set -> a calibrated parareal network in a folder: ``pararealize calibrate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import print_result, working
from .convert import title_of, write_network
from .data_options import DataOptions
from .folder import CALIBRATION_FILES, output_folder, writing
from .html import blocks_of, check_page, write_page
from .step_timelines import forward_pass

if TYPE_CHECKING:
    from torch import nn

    from pararealize import PararealModule
    from pararealize.calibration.report import Calibration
    from pararealize.calibration.tuning_report import FineTuning
    from pararealize.data.dataset import Dataset
    from pararealize.data.own_batches import OwnBatches

__all__ = ["EXAMPLES", "FineTuningOptions", "FittingOptions", "command", "load_weights", "trained"]

EXAMPLES = """
[bold]Examples[/]

  pararealize calibrate resnet56 --weights trained.safetensors --n 4 --data digits --out resnet56-n4

  pararealize calibrate mynets.py:deep --weights trained.safetensors --n 8 --coarse block --fine-tune-steps 500

  pararealize calibrate resnet110 --weights trained.safetensors --n 2 --windows 8 --coarse low-rank

  pararealize calibrate resnet56 --weights trained.safetensors --n 4 --fine-tune-steps 200 --loss kl --train lora:16

  pararealize calibrate resnet56-n4 --data digits --fine-tune-steps 500 --out resnet56-n4-tuned

  pararealize calibrate resnet56 --weights trained.safetensors --plan front/plan.json --out resnet56-front
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingOptions:
    """How what was added is fitted."""

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


class NormsChoice(StrEnum):
    """What batch norms do while a network is fine-tuned."""

    keep = "keep"
    train = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningOptions:
    """Whether, and how, the original's outputs are distilled afterwards."""

    fine_tune_steps: Annotated[
        int, typer.Option(min=0, help="Then train so many batches to give what the original gives; no labels needed.")
    ] = 0
    loss: Annotated[
        str,
        typer.Option(
            help="auto, kl or cross_entropy (of classes), cosine or mse (of values), or file.py:function "
            "(student_output, teacher_output)."
        ),
    ] = "auto"
    temperature: Annotated[float, typer.Option(help="Of kl.")] = 1.0
    match: Annotated[float, typer.Option(help="Weight of the ends of windows in the loss.")] = 0.0
    train: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="all; added (what the original has not); lora or lora:16 (that, and maps of low rank beside the "
            "original's matrices); or names of parameters and modules, separated by commas.",
        ),
    ] = "all"
    norms: Annotated[
        NormsChoice | None,
        typer.Option(
            help="keep the batch norms' statistics, or train: normalise by the batch. [dim]\\[default: the better on "
            "test samples][/]"
        ),
    ] = None
    fine_tune_lr: Annotated[
        float | None, typer.Option(help="The largest learning rate. [dim]\\[default: 1e-3, or 1e-4 without norms][/]")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of :func:`pararealize.fine_tune`."""
        from . import arguments

        return {
            "steps": self.fine_tune_steps,
            "loss": arguments.loss(self.loss),
            "temperature": self.temperature,
            "match": self.match,
            "train": arguments.trained(self.train),
            "norms": None if self.norms is None else self.norms.value,
            "lr": self.fine_tune_lr,
        }


def command(
    *,
    model: options.Model,
    n: options.NOrSaved = None,
    weights: options.Weights = None,
    data: DataOptions,
    conversion: options.ConversionOptions,
    fitting: FittingOptions,
    tuning: FineTuningOptions,
    devices: options.Devices = None,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write the network's folder, with the report and its picture in it; a new one."),
    ] = None,
    result: options.ResultOptions,
) -> None:
    """Convert a trained MODEL and fit what was added to it, so that it works without training anew."""
    check_page(result.page, output)
    with (
        working(f"building {model}", long=True) as progress,
        output_folder(output, force=result.force, files=CALIBRATION_FILES) as folder,
    ):
        from pararealize import fine_tune, pararealize

        from . import arguments

        chosen = tuning.arguments()
        samples = data.load(network.seed, model=model)
        net = trained(model, network, weights)
        inputs, places = samples.example(), arguments.devices(devices)
        if n is None and conversion.plan is None:
            leaves = options.differing(network, "built_by", "num_classes", "seed")
            pnet = conversion.saved_network(model, built_by=network.built_by, devices=places, unused=leaves)
            _give_original(pnet, net, model, weights)
        else:
            progress(f"converting {model}")
            pnet = pararealize(
                net,
                n,
                devices=places,
                example_inputs=inputs,
                **conversion.arguments(),
                seed=network.seed,
                leaf_modules=network.leaf_modules(model),
            )
        chain = blocks_of(result.page, net, inputs, network.leaf_modules(model), pnet.plan.granularity)
        batches = _batches(samples)
        calibration, tuned = _fit(pnet, batches, fitting, network.seed, progress), None
        if tuning.fine_tune_steps:
            tuned = fine_tune(
                pnet, calibration=calibration, teacher=net, **batches, **chosen, seed=network.seed, report=progress
            )
            calibration = tuned.calibration or calibration
        files: list[str] = []
        if folder is not None:
            progress("writing the files")
            title = title_of(model)
            with writing(output):
                files = write_network(
                    pnet,
                    folder,
                    title=title,
                    picture=result.picture,
                    calibration=calibration,
                    original=net if tuned is not None or _is_changed(pnet, net) else None,
                    more=lambda part: _write(calibration, tuned, part, title, result.picture),
                )
    document = {"calibration": json.loads(calibration.to_json())}
    text = str(calibration)
    if tuned is not None:
        document["fine_tuning"] = json.loads(tuned.to_json()) | {"calibration": None}  # which stands beside it
        text += f"\n\n{tuned}"
    print_result(document, text, output, files, as_json=result.as_json)
    steps = forward_pass(result.page, pnet, samples)
    write_page(
        result.page, calibration, tuned, pnet.plan, chain, *steps, title=model, seed=network.seed, quiet=result.as_json
    )


def trained(model: str, network: options.ModelOptions, weights: Path | None) -> nn.Module:
    """The trained original: MODEL with the weights of a file, or as a folder in the place of MODEL has it.

    Raises:
        CheckpointError: there are no weights.
    """
    from pararealize.errors import CheckpointError

    from . import saved_model

    saved_model.check_options(model, num_classes=network.num_classes, built_by=network.built_by)
    if weights is None and not saved_model.is_saved(model):
        raise CheckpointError(
            f"there are no trained weights of {model}; name a file (--weights trained.safetensors), or in the place of "
            "MODEL a folder that has them"
        )
    net = network.build(model)
    if weights is not None:
        load_weights(net, weights)
    return net


def _give_original(pnet: PararealModule, net: nn.Module, model: str, weights: Path | None) -> None:
    """Give the network of a folder the original's weights: those of a file, or its own where the network's changed.

    A fine-tuning changes them, and so do running statistics that were renewed and maps folded into layers; what is
    fitted is fitted to the original. Of a folder without the original's own, calibration says so.
    """
    from pararealize.calibration.known_original import lost_original
    from pararealize.saving import read_folder

    is_known = weights is not None or read_folder(model).original is not None
    if weights is not None or (is_known and lost_original(pnet)):
        pnet.load_original_state_dict(net.state_dict())


def _is_changed(pnet: PararealModule, net: nn.Module) -> bool:
    """Whether a network's original has other weights or statistics by now, so that its folder keeps its own."""
    from pararealize.network.state import original_state
    from pararealize.saving.network_record import weights_digest

    return weights_digest(original_state(pnet)) != weights_digest(net.state_dict())


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
    batches: dict[str, Any],
    fitting: FittingOptions,
    seed: int,
    progress: Callable[[str], None],
) -> Calibration:
    """Fit what was added to the network in place."""
    from pararealize import calibrate

    return calibrate(
        pnet,
        **batches,
        steps=fitting.steps,
        lr=fitting.lr,
        ridge=fitting.ridge,
        seed=seed,
        renew_statistics=fitting.renew_statistics,
        report=progress,
    )


def _batches(samples: Dataset | OwnBatches) -> dict[str, Any]:
    """The arguments ``batches`` and ``test`` of a data set, or of the user's own batches."""
    from pararealize.data.dataset import Dataset

    if isinstance(samples, Dataset):
        return {"batches": samples}
    return {"batches": samples.batches, "test": samples.test_batches if samples.has_test else None}


def _write(
    calibration: Calibration, tuned: FineTuning | None, folder: Path, title: str, picture: options.Picture
) -> None:
    from pararealize.calibration.figure import draw_calibration

    if tuned is not None:
        (folder / "fine-tuning.json").write_text(tuned.to_json(), encoding="utf-8")
    draw_calibration(calibration, folder / f"calibration.{picture}", title=title)

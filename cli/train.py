"""A model, a data set and a recipe -> a trained network and its run's folder: ``pararealize train``."""

from __future__ import annotations

import dataclasses
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import out, print_json, working
from .options import (
    AsJson,
    Coarse,
    Cost,
    Cuts,
    Force,
    Leaf,
    Model,
    NumClasses,
    Seed,
    SourceOfAdapters,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from pararealize import History, Recipe
    from pararealize.dataset import Dataset
    from pararealize.methods import Built

__all__ = ["EXAMPLES", "train"]

EXAMPLES = """
[bold]Examples[/]

  pararealize train resnet20 --n 3 --epochs 20

  pararealize train resnet110 --n 6 --coarse linear --data cifar10 --data-dir data --amp auto

  pararealize train resnet20 --method serial --epochs 20

  torchrun --nproc-per-node 3 -m pararealize_cli train resnet20 -n 3 --epochs 20
"""

STOPPED = 130  # exit status after Ctrl-C
RUN, RECIPE, DATA, NETWORK = "The run", "The recipe", "The data", "The network"


class Optimizer(StrEnum):
    """Optimisers."""

    sgd = "sgd"
    adamw = "adamw"


class Schedule(StrEnum):
    """Schedules of the learning rate."""

    steps = "steps"
    cosine = "cosine"
    constant = "constant"


class Amp(StrEnum):
    """Precisions of autocast."""

    off = "off"
    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Initialise(StrEnum):
    """How weights start."""

    he = "he"
    none = "none"


def train(
    model: Model,
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", help="How many segments; not needed with --method serial.", show_default=False),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="serial or parareal.", rich_help_panel=NETWORK)
    ] = "parareal",
    coarse: Coarse = "paper",
    cuts: Cuts = "cost",
    source: SourceOfAdapters = None,
    cost: Annotated[
        Cost, typer.Option("--cost", help="Balance the cuts by FLOPs counted or seconds measured.")
    ] = Cost.flops,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="LIST",
            help="Such as cuda:0,cuda:1; with torchrun, cpu or cuda. [dim]\\[default: the CPU; with torchrun, a GPU "
            "each where there are enough][/]",
            show_default=False,
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            help="With torchrun: processes that hold one network. [dim]\\[default: one a segment][/]",
            min=1,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="With torchrun: seconds that a process waits for others.", min=1.0)
    ] = 600.0,
    num_classes: NumClasses = None,
    leaf: Leaf = None,
    data: Annotated[
        str, typer.Option("--data", metavar="NAME", help="A data set by name.", rich_help_panel=DATA)
    ] = "digits",
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="FOLDER", help="Where it lies.", show_default=False, rich_help_panel=DATA),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Samples a step, of all copies together.", min=1, rich_help_panel=DATA)
    ] = 128,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            help="Pixels of a side. [dim]\\[default: the data set's][/]",
            min=1,
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Random crops and flips. [dim]\\[default: as is usual for the data set][/]",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option("--epochs", help="How often every sample is seen.", min=1, rich_help_panel=RECIPE)
    ] = 200,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.", rich_help_panel=RECIPE)] = 0.1,
    schedule: Annotated[
        Schedule, typer.Option("--schedule", help="How the learning rate falls.", rich_help_panel=RECIPE)
    ] = Schedule.steps,
    milestones: Annotated[
        str | None,
        typer.Option(
            "--milestones",
            metavar="EPOCHS",
            show_default=False,
            rich_help_panel=RECIPE,
            help="After which the learning rate is multiplied by --gamma, such as 80,120. [dim]\\[default: two and "
            "three fifths of the epochs][/]",
        ),
    ] = None,
    gamma: Annotated[float, typer.Option("--gamma", help="See --milestones.", rich_help_panel=RECIPE)] = 0.1,
    warmup: Annotated[
        int, typer.Option("--warmup", help="Steps in which the learning rate rises.", min=0, rich_help_panel=RECIPE)
    ] = 0,
    optimizer: Annotated[
        Optimizer, typer.Option("--optimizer", help="Which one.", rich_help_panel=RECIPE)
    ] = Optimizer.sgd,
    momentum: Annotated[float, typer.Option("--momentum", help="Of SGD.", rich_help_panel=RECIPE)] = 0.9,
    nesterov: Annotated[
        bool, typer.Option("--nesterov", help="Nesterov's form of it.", rich_help_panel=RECIPE)
    ] = False,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", help="Of all parameters.", rich_help_panel=RECIPE)
    ] = 5e-4,
    label_smoothing: Annotated[
        float, typer.Option("--label-smoothing", help="Share of the target spread evenly.", rich_help_panel=RECIPE)
    ] = 0.0,
    clip: Annotated[
        float | None,
        typer.Option(
            "--clip",
            help="Largest norm of the gradients. [dim]\\[default: any][/]",
            show_default=False,
            rich_help_panel=RECIPE,
        ),
    ] = None,
    amp: Annotated[
        Amp,
        typer.Option(
            "--amp", help="Mixed precision; auto is float16 on GPUs, bfloat16 on the CPU.", rich_help_panel=RECIPE
        ),
    ] = Amp.off,
    initialise: Annotated[
        Initialise,
        typer.Option("--initialise", help="He's weights for convolutions, or the model's own.", rich_help_panel=RECIPE),
    ] = Initialise.he,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            show_default=False,
            rich_help_panel=RUN,
            help="The run's folder, a new one. [dim]\\[default: named after model, method and data][/]",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.", rich_help_panel=RUN)
    ] = False,
    force: Force = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            "--checkpoint-every",
            help="Steps. [dim]\\[default: at the end of every epoch only][/]",
            min=1,
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    keep: Annotated[int, typer.Option("--keep", help="How many checkpoints.", min=1, rich_help_panel=RUN)] = 2,
    log_every: Annotated[
        int, typer.Option("--log-every", help="Steps in a row of the metrics.", min=1, rich_help_panel=RUN)
    ] = 10,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard/--no-tensorboard",
            show_default=False,
            rich_help_panel=RUN,
            help="Event files for TensorBoard. [dim]\\[default: where it is installed][/]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train MODEL on a data set by name, as a parareal network or as it is; the defaults are the paper's protocol."""
    with working(f"building {model}") as progress:
        from pararealize import Recipe, fit
        from pararealize.data import load
        from pararealize.torchrun import started_by_torchrun

        from . import arguments
        from .train_display import Display

        _check_folder(resume=resume, force=force)
        samples = load(
            data, batch_size=batch_size, seed=seed, data_dir=data_dir, augment=augment, image_size=image_size
        )
        mesh = None
        if started_by_torchrun():
            mesh = _mesh(method, n, ranks, devices, timeout)
        recipe = Recipe(
            epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
            optimizer=optimizer.value, schedule=schedule.value, milestones=_numbers(milestones), gamma=gamma,
            warmup=warmup, label_smoothing=label_smoothing, clip=clip,
            amp=_precision(amp, devices, mesh), initialise="he" if initialise is Initialise.he else None,
        )  # fmt: skip
        progress(f"building the network of {model}")
        classes = num_classes
        if classes is None and _takes_classes(model):
            classes = samples.classes
        options = {
            "n": n, "coarse": arguments.coarse(coarse), "cuts": arguments.cuts(cuts), "cost": cost.value,
            "source": None if source is None else source.value, "seed": seed,
            "leaf_modules": arguments.leaf_modules(leaf), "mesh": mesh, "timeout": timeout,
            "devices": arguments.devices(devices) if mesh is None else None,
        }  # fmt: skip
        built = _build(method, model, samples, classes, options)
    first = mesh is None or mesh.get_rank() == 0
    folder = _folder(output, model, method, n, data)
    display = Display(recipe, quiet=not first, to_stderr=as_json)
    display.begin(model, method, built.net, samples, folder)
    about = {"model": model, "method": method, "num_classes": classes, "coarse": coarse}
    try:
        with display:
            history = fit(
                built.net, samples, recipe,
                step=built.step, folder=folder, resume=resume, force=force, seed=seed, report=display.report,
                log_every=log_every, checkpoint_every=checkpoint_every, keep=keep,
                tensorboard=_tensorboard(tensorboard, display), about=about,
            )  # fmt: skip
    except KeyboardInterrupt:
        display.say(f"stopped; the same command with --resume goes on from the last checkpoint in {folder}")
        sys.exit(STOPPED)
    _leave(mesh)
    if first:
        files = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if as_json:
            print_json(_result(history, recipe, samples, folder, files))
        else:
            out().print(f"{history.score}\nwritten to {folder}: {', '.join(files)}", markup=False)


def _check_folder(*, resume: bool, force: bool) -> None:
    from pararealize.errors import OutputError

    if resume and force:
        raise OutputError("--resume goes on with the run that is there and --force replaces it; give one of the two")


def _mesh(method: str, n: int | None, ranks: int | None, devices: str | None, timeout: float) -> DeviceMesh:
    from pararealize.errors import PlanError
    from pararealize.torchrun import make_mesh

    if n is None and method != "serial":
        raise PlanError(f"the method {method!r} needs --n, the number of segments, such as --n 3")
    return make_mesh(n or 1, ranks=ranks, device=devices, timeout=timeout)


def _leave(mesh: DeviceMesh | None) -> None:
    if mesh is not None:
        import torch.distributed as dist

        dist.destroy_process_group()


def _build(method: str, model: str, data: Dataset, classes: int | None, options: dict[str, Any]) -> Built:
    from pararealize.methods import Options, build

    from . import arguments

    net = arguments.model(model, num_classes=classes, seed=options["seed"])
    return build(method, net, Options(example_inputs=data.example(), **options))


def _takes_classes(model: str) -> bool:
    """Whether a model by name can be told the number of classes; what a file gives may not."""
    return ":" not in model or model.startswith(("timm:", "torchvision:"))


def _numbers(text: str | None) -> tuple[float, ...] | None:
    from pararealize.errors import RecipeError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise RecipeError(
            f"--milestones {text!r} are no numbers; write epochs in rising order, such as 80,120"
        ) from error


def _precision(amp: Amp, devices: str | None, mesh: DeviceMesh | None) -> Any:
    if amp is Amp.off:
        return None
    if amp is not Amp.auto:
        return amp.value
    on_gpu = mesh.device_type == "cuda" if mesh is not None else (devices or "").startswith("cuda")
    return "float16" if on_gpu else "bfloat16"


def _tensorboard(wanted: bool | None, display: Any) -> bool:
    from pararealize.board import has_tensorboard

    if wanted is None and not has_tensorboard():
        display.say(
            "no files for TensorBoard, which is not installed: pip install 'pararealize[train]', or say "
            "--no-tensorboard"
        )
    return has_tensorboard() if wanted is None else wanted


def _folder(output: Path | None, model: str, method: str, n: int | None, data: str) -> Path:
    if output is not None:
        return output
    parts = [model, method if method != "parareal" else f"n{n}", data]
    return Path("-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts))


def _result(history: History, recipe: Recipe, data: Dataset, folder: Path, files: list[str]) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "data": str(data),
        "score": None if history.score is None else dataclasses.asdict(history.score),
        "epochs": [dataclasses.asdict(row) for row in history.epochs],
        "out": str(folder),
        "files": files,
    }

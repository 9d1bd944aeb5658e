"""A model, a data set and a recipe -> a trained network and its run's folder: ``pararealize train``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_result, working
from .options import (
    AsJson,
    Coarse,
    Cost,
    CostOfCuts,
    Cuts,
    Force,
    Leaf,
    Model,
    NumClasses,
    Seed,
    SourceOfAdapters,
    StemBlocks,
    on_devices,
    to_folder,
)
from .train_options import RUN, Amp, Initialise, Optimizer, Schedule, of_data, of_multigrid, of_recipe, of_run

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from pararealize import History, Recipe
    from pararealize.data.dataset import Dataset
    from pararealize.train.methods import Built

__all__ = ["EXAMPLES", "train"]

EXAMPLES = """
[bold]Examples[/]

  pararealize train resnet20 --n 3 --epochs 20

  pararealize train resnet110 --n 6 --coarse linear --data cifar10 --data-dir data --amp auto

  pararealize train resnet20 --method serial --epochs 20

  pararealize train resnet110 --method multigrid --coarsening 4 --iterations 2/1 --monitor

  torchrun --nproc-per-node 3 -m pararealize_cli train resnet20 -n 3 --epochs 20
"""

STOPPED = 130  # exit status after Ctrl-C


def train(
    context: typer.Context,
    model: Model,
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", help="How many segments, with --method parareal.", show_default=False),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", metavar="NAME", help="serial, parareal, multigrid or oneshot.", rich_help_panel="The network"
        ),
    ] = "parareal",
    levels: Annotated[int, of_multigrid("--levels", help="Of multigrid.", min=2)] = 2,
    coarsening: Annotated[int, of_multigrid("--coarsening", help="Layers that a coarse step spans.", min=2)] = 4,
    iterations: Annotated[
        str | None,
        of_multigrid(
            "--iterations",
            metavar="K/L",
            help="Forward and adjoint. [dim]\\[default: 2/1; 1/1 with oneshot][/]",
            show_default=False,
        ),
    ] = None,
    relaxation: Annotated[str, of_multigrid("--relaxation", metavar="F|FCF", help="Of the layers.")] = "F",
    monitor: Annotated[
        bool,
        of_multigrid(
            "--monitor",
            help="Raise the iterations, at last to exact, where the residual or the gradient says so; multigrid only.",
        ),
    ] = False,
    monitor_every: Annotated[
        int | None,
        of_multigrid(
            "--monitor-every",
            min=1,
            show_default=False,
            help="Steps between exact gradients to compare with. [dim]\\[default: an epoch's, at most 50][/]",
        ),
    ] = None,
    monitor_exact: Annotated[
        float | None,
        of_multigrid(
            "--monitor-exact",
            min=0.0,
            max=1.0,
            show_default=False,
            help="Share of the steps, at the end, that are exact in any case. [dim]\\[default: 0.2][/]",
        ),
    ] = None,
    coarse: Coarse = "paper",
    cuts: Cuts = "cost",
    source: SourceOfAdapters = None,
    stem_blocks: StemBlocks = 0,
    cost: CostOfCuts = Cost.flops,
    devices: Annotated[
        str | None,
        on_devices(
            help="Such as cuda:0,cuda:1; with torchrun, cpu or cuda. [dim]\\[default: the CPU; with torchrun, a GPU "
            "each where there are enough][/]"
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
    data: Annotated[str, of_data("--data", metavar="NAME", help="A data set by name.")] = "digits",
    data_dir: Annotated[
        Path | None, of_data("--data-dir", metavar="FOLDER", help="Where it lies.", show_default=False)
    ] = None,
    batch_size: Annotated[int, of_data("--batch-size", help="Samples a step, of all copies together.", min=1)] = 128,
    image_size: Annotated[
        int | None,
        of_data(
            "--image-size", help="Pixels of a side. [dim]\\[default: the data set's][/]", min=1, show_default=False
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        of_data(
            "--augment/--no-augment",
            help="Random crops and flips. [dim]\\[default: as is usual for the data set][/]",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, of_recipe("--epochs", help="How often every sample is seen.", min=1)] = 200,
    lr: Annotated[float, of_recipe("--lr", help="Learning rate.")] = 0.1,
    schedule: Annotated[Schedule, of_recipe("--schedule", help="How the learning rate falls.")] = Schedule.steps,
    milestones: Annotated[
        str | None,
        of_recipe(
            "--milestones",
            metavar="EPOCHS",
            show_default=False,
            help="After which the learning rate is multiplied by --gamma, such as 80,120. [dim]\\[default: two and "
            "three fifths of the epochs][/]",
        ),
    ] = None,
    gamma: Annotated[float, of_recipe("--gamma", help="See --milestones.")] = 0.1,
    warmup: Annotated[int, of_recipe("--warmup", help="Steps in which the learning rate rises.", min=0)] = 0,
    optimizer: Annotated[Optimizer, of_recipe("--optimizer", help="Which one.")] = Optimizer.sgd,
    momentum: Annotated[float, of_recipe("--momentum", help="Of SGD.")] = 0.9,
    nesterov: Annotated[bool, of_recipe("--nesterov", help="Nesterov's form of it.")] = False,
    weight_decay: Annotated[float, of_recipe("--weight-decay", help="Of all parameters.")] = 5e-4,
    label_smoothing: Annotated[float, of_recipe("--label-smoothing", help="Share of the target spread evenly.")] = 0.0,
    clip: Annotated[
        float | None,
        of_recipe("--clip", help="Largest norm of the gradients. [dim]\\[default: any][/]", show_default=False),
    ] = None,
    amp: Annotated[
        Amp, of_recipe("--amp", help="Mixed precision; auto is float16 on GPUs, bfloat16 on the CPU.")
    ] = Amp.off,
    initialise: Annotated[
        Initialise, of_recipe("--initialise", help="He's weights for convolutions, or the model's own.")
    ] = Initialise.he,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        to_folder(
            help="The run's folder, a new one. [dim]\\[default: named after model, method and data][/]",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[bool, of_run("--resume", help="Go on from the folder's last checkpoint.")] = False,
    force: Force = False,
    checkpoint_every: Annotated[
        int | None,
        of_run(
            "--checkpoint-every",
            help="Steps. [dim]\\[default: at the end of every epoch only][/]",
            min=1,
            show_default=False,
        ),
    ] = None,
    keep: Annotated[int, of_run("--keep", help="How many checkpoints.", min=1)] = 2,
    log_every: Annotated[int, of_run("--log-every", help="Steps in a row of the metrics.", min=1)] = 10,
    tensorboard: Annotated[
        bool | None,
        of_run(
            "--tensorboard/--no-tensorboard",
            show_default=False,
            help="Event files for TensorBoard. [dim]\\[default: where it is installed][/]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train MODEL on a data set by name, as a parareal network or as it is; the defaults are the paper's protocol."""
    with working(f"building {model}") as progress:
        from pararealize import Recipe, fit
        from pararealize.data.catalogue import load
        from pararealize.distributed.mesh import started_by_torchrun

        from . import arguments, train_arguments
        from .train_display import Display

        _check_folder(resume=resume, force=force)
        train_arguments.check_used(_given(context), method=method, by_torchrun=started_by_torchrun())
        samples = load(
            data, batch_size=batch_size, seed=seed, data_dir=data_dir, augment=augment, image_size=image_size
        )
        mesh = None
        if started_by_torchrun():
            mesh = train_arguments.mesh(method, n, ranks, devices, timeout)
        recipe = Recipe(
            epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
            optimizer=optimizer.value, schedule=schedule.value, gamma=gamma, warmup=warmup,
            milestones=train_arguments.milestones(milestones), label_smoothing=label_smoothing, clip=clip,
            amp=train_arguments.precision(amp, devices, mesh), initialise="he" if initialise is Initialise.he else None,
        )  # fmt: skip
        progress(f"building the network of {model}")
        told = num_classes is not None or not train_arguments.takes_classes(model)
        classes = num_classes if told else samples.classes
        more: dict[str, Any] = {}
        if method in ("multigrid", "oneshot"):
            more = {"levels": levels, "coarsening": coarsening, "relaxation": relaxation}
            more |= train_arguments.iterations(iterations)
        watched = train_arguments.monitor(
            monitor, monitor_every, monitor_exact, method=method, each=samples.steps, epochs=epochs
        )
        options = {
            "n": n, "coarse": arguments.coarse(coarse), "cuts": arguments.cuts(cuts), "cost": cost.value,
            "source": None if source is None else source.value, "stem_blocks": stem_blocks, "seed": seed,
            "leaf_modules": arguments.leaf_modules(leaf), "mesh": mesh, "timeout": timeout,
            "devices": arguments.devices(devices) if mesh is None else None, "more": more | watched,
        }  # fmt: skip
        built = _build(method, model, samples, classes, options)
    first = mesh is None or mesh.get_rank() == 0
    folder = train_arguments.folder(output, model, method, n, data)
    display = Display(recipe, quiet=not first, to_stderr=as_json)
    display.begin(model, method, built.net, samples, folder)
    about = {"model": model, "method": method, "num_classes": classes, "coarse": coarse, **more}
    try:
        with display:
            history = fit(
                built.net, samples, recipe,
                step=built.step, folder=folder, resume=resume, force=force, seed=seed, report=display.report,
                log_every=log_every, checkpoint_every=checkpoint_every, keep=keep,
                tensorboard=train_arguments.tensorboard(tensorboard, display), about=about,
            )  # fmt: skip
    except KeyboardInterrupt:
        display.say(f"stopped; the same command with --resume goes on from the last checkpoint in {folder}")
        sys.exit(STOPPED)
    _leave(mesh)
    if first:
        files = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        print_result(_result(history, recipe, samples), str(history.score), folder, files, as_json=as_json)


def _check_folder(*, resume: bool, force: bool) -> None:
    from pararealize.errors import OutputError

    if resume and force:
        raise OutputError("--resume goes on with the run that is there and --force replaces it; give one of the two")


def _given(context: typer.Context) -> list[str]:
    """The options that stand on the command line, by the names of their parameters."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _leave(mesh: DeviceMesh | None) -> None:
    if mesh is not None:
        import torch.distributed as dist

        dist.destroy_process_group()


def _build(method: str, model: str, data: Dataset, classes: int | None, options: dict[str, Any]) -> Built:
    from pararealize.train.methods import Options, build

    from . import arguments

    net = arguments.model(model, num_classes=classes, seed=options["seed"])
    return build(method, net, Options(example_inputs=data.example(), **options))


def _result(history: History, recipe: Recipe, data: Dataset) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "data": str(data),
        "score": None if history.score is None else dataclasses.asdict(history.score),
        "epochs": [dataclasses.asdict(row) for row in history.epochs],
        "events": [dataclasses.asdict(event) for event in history.events],
    }

"""A model, a data set and a recipe -> a trained network and its run's folder: ``pararealize train``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import print_result, working
from .data_options import DataOptions
from .html import blocks_of, check_page, write_page
from .train_options import Initialise, MultigridOptions, PlacementOptions, RecipeOptions, RunOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from pararealize import History, Recipe
    from pararealize.data.dataset import Dataset
    from pararealize.train import TrainingStep

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize train resnet20 --n 3 --epochs 20

  pararealize train resnet110 --n 6 --coarse linear --data cifar10 --data-dir data --amp auto

  pararealize train resnet20 --method serial --epochs 20

  pararealize train resnet110 --n 6 --devices cuda --graphs

  pararealize train resnet110 --method multigrid --coarsening 4 --iterations 2/1 --monitor

  torchrun --nproc-per-node 3 -m pararealize_cli train resnet20 -n 3 --epochs 20

  pararealize train resnet20-n3-digits --epochs 5 --lr 0.01 --out resnet20-n3-digits-more
"""

STOPPED = 130  # exit status after Ctrl-C


Segments = Annotated[
    int | None,
    typer.Option(
        "--n",
        "-n",
        help="How many segments, with --method parareal. [dim]\\[default: where MODEL is a folder, its own][/]",
    ),
]
Method = Annotated[
    str, typer.Option(metavar="NAME", help="serial, parareal, multigrid or oneshot.", rich_help_panel="The network")
]


def command(
    *,
    context: typer.Context,
    model: options.Model,
    n: Segments = None,
    method: Method = "parareal",
    multigrid: MultigridOptions,
    conversion: options.ConversionOptions,
    cost: options.CostOfCuts = options.CostUnit.flops,
    placement: PlacementOptions,
    num_classes: options.NumClasses = None,
    built_by: options.BuiltBy = None,
    leaf: options.Leaf = None,
    data: DataOptions,
    recipe: RecipeOptions,
    seed: options.Seed = 0,
    run: RunOptions,
    page: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Train MODEL on a data set by name, as a parareal network or as it is; the defaults are the paper's protocol."""
    check_page(page)
    with working(f"building {model}") as progress:
        from pararealize import fit
        from pararealize.distributed.mesh import started_by_torchrun
        from pararealize.train.methods import Built, Options, build

        from . import arguments, saved_model, train_arguments
        from .train_display import Display

        run.check()
        train_arguments.check_used(_given(context), method=method, by_torchrun=started_by_torchrun())
        placement.check_graphs()
        samples = data.for_training(seed, model=model)
        saved_model.check_options(model, num_classes=num_classes, built_by=built_by)
        is_saved = saved_model.is_saved(model)
        goes_on = is_saved and n is None and method == "parareal"  # with a network as its folder has it
        mesh = placement.mesh(method, saved_model.segments(model) if goes_on else n)
        if is_saved and not {"initialise"} & set(_given(context)):
            recipe = dataclasses.replace(recipe, initialise=Initialise.none)
        training = recipe.recipe(placement.devices, mesh)
        places = arguments.devices(placement.devices) if mesh is None else None
        progress(f"building the network of {model}")
        if num_classes is None and not is_saved and train_arguments.takes_classes(model):
            num_classes = samples.classes
        solver = multigrid.solver(method)
        monitor = multigrid.monitoring(method, steps=samples.steps, epochs=recipe.epochs)
        settings = Options(
            n=n,
            example_inputs=samples.example(),
            **conversion.arguments(),
            cost=cost.value,
            leaf_modules=arguments.leaf_modules(leaf),
            devices=places,
            seed=seed,
            mesh=mesh,
            timeout=placement.timeout,
            more=solver | monitor,
        )
        network = options.ModelOptions(num_classes=num_classes, built_by=built_by, leaf=leaf, seed=seed)
        if goes_on:
            net = conversion.saved_network(model, built_by=built_by, devices=places)
            built = Built(net=net if mesh is None else net.distribute(mesh, timeout=placement.timeout, seed=seed))
        else:
            built = build(method, network.build(model), settings)
        step = placement.step(built)
    first = mesh is None or mesh.get_rank() == 0
    folder = train_arguments.folder(run.output, model, method, saved_model.segments(model) if goes_on else n, data.data)
    display = Display(training, quiet=not first, to_stderr=as_json)
    display.begin(model, method, built.net, samples, folder)
    about = {"model": model, "method": method, "num_classes": num_classes, "coarse": conversion.coarse, **solver}
    if placement.graphs:
        about["graphs"] = True
    try:
        with display:
            history = fit(
                built.net,
                samples,
                training,
                **run.arguments(),
                step=step,
                folder=folder,
                seed=seed,
                report=display.report,
                tensorboard=train_arguments.tensorboard(run.tensorboard, display),
                about=about,
            )
    except KeyboardInterrupt:
        display.say(f"stopped; the same command with --resume goes on from the last checkpoint in {folder}")
        sys.exit(STOPPED)
    _leave(mesh)
    if first:
        values = _page_values(page, built.net, model, network, samples)
        files = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        print_result(_document(history, training, samples, step), str(history.score), folder, files, as_json=as_json)
        write_page(page, history, *values, title=model, seed=seed, quiet=as_json)


def _given(context: typer.Context) -> list[str]:
    """Names of the options that the command line has, not left to their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _page_values(
    page: Path | None, net: nn.Module, model: str, network: options.ModelOptions, data: Dataset
) -> tuple[Any, ...]:
    """What a page shows besides the history: the network as it was cut, where it was, and its blocks."""
    if page is None:
        return ()
    from pararealize import Plan, simulate

    plan = getattr(net, "plan", None)
    chain = blocks_of(page, network.build(model), data.example(), network.leaf_modules())
    return (plan, chain, simulate(plan)) if isinstance(plan, Plan) else (chain,)


def _leave(mesh: DeviceMesh | None) -> None:
    if mesh is not None:
        import torch.distributed as dist

        dist.destroy_process_group()


def _document(history: History, recipe: Recipe, data: Dataset, step: TrainingStep | None) -> dict[str, Any]:
    counts = getattr(step, "counts", None)  # of replays, where steps are CUDA graphs
    return {
        "recipe": recipe.to_dict(),
        "data": str(data),
        "score": None if history.score is None else dataclasses.asdict(history.score),
        "epochs": [dataclasses.asdict(row) for row in history.epochs],
        "events": [dataclasses.asdict(event) for event in history.events],
        "graphs": None if counts is None else dataclasses.asdict(counts),
    }

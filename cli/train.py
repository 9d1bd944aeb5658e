"""A model, a data set and a recipe -> a trained network and its run's folder: ``pararealize train``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import print_result, working
from .data_options import DataOptions
from .html import blocks_of, check_page, write_page
from .residual_norms import section_of_residuals
from .step_timelines import SAMPLES
from .train_options import Initialise, MultigridOptions, PlacementOptions, RecipeOptions, RunOptions

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from pararealize import History, PararealModule, Recipe, Timeline
    from pararealize.data.dataset import Dataset
    from pararealize.train import TrainingStep
    from pararealize.train.methods import Built, Options


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _TrainingRequest:
    """What the command line says of the network, its data and its training."""

    model: str
    n: int | None
    method: str
    multigrid: MultigridOptions
    conversion: options.ConversionOptions
    cost: options.CostUnit
    placement: PlacementOptions
    network: options.ModelOptions
    data: DataOptions
    recipe: RecipeOptions

    @property
    def goes_on(self) -> bool:
        """Whether a converted network is trained as its folder has it."""
        from . import saved_model

        return saved_model.is_saved(self.model) and self.n is None and self.method == "parareal"

    @property
    def segments(self) -> int | None:
        """How many segments the network has; ``None`` where the method has none."""
        from . import saved_model

        return saved_model.segments(self.model) if self.goes_on else self.n


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A network that is ready to be trained.

    Attributes:
        request: with the number of classes, where that follows from the data.
        built: the network, or this rank's part of it.
        samples: the data.
        training: the recipe.
        mesh: the processes that torchrun started; ``None`` where this one is alone.
        settings: what the network was built with.
    """

    request: _TrainingRequest
    built: Built
    samples: Dataset
    training: Recipe
    mesh: DeviceMesh | None
    settings: Options

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.mesh is None or self.mesh.get_rank() == 0


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
    network: options.ModelOptions,
    data: DataOptions,
    recipe: RecipeOptions,
    run: RunOptions,
    page: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Train MODEL on a data set by name, as a parareal network or as it is; the defaults are the paper's protocol."""
    with working(f"building {model}") as progress:
        from pararealize.distributed.mesh import started_by_torchrun

        from . import train_arguments

        run.check()
        train_arguments.check_used(_given(context), method=method, by_torchrun=started_by_torchrun())
        placement.check_graphs()
        request = _TrainingRequest(
            model=model, n=conversion.segments(n), method=method, multigrid=multigrid, conversion=conversion, cost=cost,
            placement=placement, network=network, data=data, recipe=recipe,
        )  # fmt: skip
        folder = train_arguments.folder(run.output, model, method, request.segments, data.data)
        check_page(page, folder)
        prepared = _prepare(request, progress, draws_weights="initialise" in _given(context))
    history = _train(prepared, run, folder, as_json=as_json)
    values = () if page is None else _page_values(page, prepared)
    is_first = prepared.is_first
    _leave(prepared.mesh)
    if is_first:
        files = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        document = _document(history, prepared.training, prepared.samples, prepared.built.step)
        print_result(document, str(history.score), folder, files, as_json=as_json)
        write_page(page, history, *values, title=model, seed=network.seed, quiet=as_json)


def _prepare(request: _TrainingRequest, progress: Callable[[str], None], *, draws_weights: bool) -> _Prepared:
    """Load the data, join the other processes and build the network.

    Args:
        request: what is asked for.
        progress: is told what is done next.
        draws_weights: whether the command line says how weights start; those of a folder stay otherwise.
    """
    from pararealize.train.methods import Options

    from . import arguments, saved_model, train_arguments

    model, method, network, recipe = request.model, request.method, request.network, request.recipe
    samples = request.data.for_training(network.seed, model=model)
    saved_model.check_options(model, num_classes=network.num_classes, built_by=network.built_by)
    is_saved = saved_model.is_saved(model)
    mesh = request.placement.mesh(method, request.segments)
    if is_saved and not draws_weights:
        recipe = dataclasses.replace(recipe, initialise=Initialise.none)
    training = recipe.recipe(request.placement.devices, mesh)
    progress(f"building the network of {model}")
    if network.num_classes is None and not is_saved and train_arguments.takes_classes(model):
        network = dataclasses.replace(network, num_classes=samples.classes)
    solver = request.multigrid.solver(method)
    monitor = request.multigrid.monitoring(method, steps=samples.steps, epochs=recipe.epochs)
    settings = Options(
        n=request.n,
        example_inputs=samples.example(),
        **request.conversion.arguments(),
        cost=None if request.conversion.plan is not None else request.cost.value,
        leaf_modules=network.leaf_modules(model),
        devices=arguments.devices(request.placement.devices) if mesh is None else None,
        seed=network.seed,
        mesh=mesh,
        timeout=request.placement.timeout,
        more=solver | monitor,
    )
    request = dataclasses.replace(request, network=network)
    built = _build(request, settings)
    built = dataclasses.replace(built, step=request.placement.step(built))
    return _Prepared(
        request=request, built=built, samples=samples, training=training, mesh=mesh, settings=settings
    )  # fmt: skip


def _build(request: _TrainingRequest, settings: Options) -> Built:
    """The network of the method, or the one that a folder has."""
    from pararealize.train.methods import Built, build

    from . import arguments

    network, mesh = request.network, settings.mesh
    if not request.goes_on:
        return build(request.method, network.build(request.model), settings)
    devices = None if mesh is not None else arguments.devices(request.placement.devices)
    unused = options.words_of(request.cost) + options.differing(network, "built_by", "num_classes", "seed")
    net = request.conversion.saved_network(request.model, built_by=network.built_by, devices=devices, unused=unused)
    if mesh is None:
        return Built(net=net)
    return Built(net=net.distribute(mesh, timeout=settings.timeout, seed=settings.seed))


def _train(prepared: _Prepared, run: RunOptions, folder: Path, *, as_json: bool) -> History:
    """Train, show how it goes, and leave the command with another exit status after Ctrl-C."""
    from pararealize import Plan, fit

    from . import train_arguments
    from .train_display import Display

    request, built, samples = prepared.request, prepared.built, prepared.samples
    display = Display(prepared.training, quiet=not prepared.is_first, to_stderr=as_json)
    display.begin(request.model, request.method, built.net, samples, folder)
    plan, coarse = getattr(built.net, "plan", None), request.conversion.coarse
    if isinstance(plan, Plan) and ":" not in coarse:  # file.py:function is known to the command line alone
        coarse = plan.coarse  # of a folder, or a file, that has a plan
    about = {
        "model": request.model, "method": request.method, "num_classes": request.network.num_classes,
        "coarse": coarse, **request.multigrid.solver(request.method),
    }  # fmt: skip
    if request.placement.graphs:
        about["graphs"] = True
    try:
        with display:
            return fit(
                built.net,
                samples,
                prepared.training,
                **run.arguments(),
                step=built.step,
                folder=folder,
                seed=request.network.seed,
                report=display.report,
                tensorboard=train_arguments.tensorboard(run.tensorboard, display),
                about=about,
            )
    except KeyboardInterrupt:
        display.say(f"stopped; the same command with --resume goes on from the last checkpoint in {folder}")
        sys.exit(STOPPED)


def _given(context: typer.Context) -> list[str]:
    """Names of the options that the command line has, not left to their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _page_values(page: Path, prepared: _Prepared) -> tuple[Any, ...]:
    """What a page shows besides the history: the network as it was cut, its blocks, and a step in time.

    Every rank calls it, when all files are written.
    """
    from pararealize import Plan, simulate

    request, plan = prepared.request, getattr(prepared.built.net, "plan", None)
    timelines: list[Timeline] = []
    if isinstance(plan, Plan) and request.placement.graphs:  # of replays nothing can be told apart
        timelines = [simulate(plan)]
    elif isinstance(plan, Plan):
        with working("recording a step"):
            timelines = _timelines(prepared)
    if not prepared.is_first:
        return ()
    network, example = request.network, prepared.samples.example()
    chain = blocks_of(page, network.build(request.model), example, network.leaf_modules(request.model))
    residuals = section_of_residuals(prepared.built.net, prepared.samples.example(SAMPLES))
    return (plan if isinstance(plan, Plan) else None, chain, residuals, *timelines)


def _timelines(prepared: _Prepared) -> list[Timeline]:
    """A step as it is predicted and as it was recorded, of the first batch of the data."""
    from pararealize import Stage

    from . import step_timelines

    net, mesh, samples = prepared.built.net, prepared.mesh, prepared.samples
    if mesh is None or not isinstance(net, Stage):
        x, labels = next(samples.epoch(0))
        return step_timelines.of_this_process(net, x, labels)
    copy, copies = mesh.get_local_rank("dp"), mesh.size(0)
    x, labels = next(samples.epoch(0, rank=copy, world=copies))
    return step_timelines.of_processes(net, x, labels, lambda: _whole(prepared))


def _whole(prepared: _Prepared) -> PararealModule:
    """The network that ranks have in parts, in this process."""
    from pararealize import PararealModule

    net = _build(prepared.request, dataclasses.replace(prepared.settings, mesh=None)).net
    assert isinstance(net, PararealModule)
    return net


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

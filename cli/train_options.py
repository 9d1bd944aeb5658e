"""The options of ``pararealize train`` in groups, as its help shows them, and what they choose among."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Force, on_devices, to_folder

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from pararealize import Recipe
    from pararealize.train import Built, TrainingStep

__all__ = [
    "Amp",
    "Initialise",
    "MultigridOptions",
    "Optimizer",
    "PlacementOptions",
    "RateSchedule",
    "RecipeOptions",
    "ResumeFrom",
    "RunOptions",
]

RUN = "The run"

of_multigrid = partial(typer.Option, rich_help_panel="Methods multigrid and oneshot")
of_recipe = partial(typer.Option, rich_help_panel="The recipe")
of_run = partial(typer.Option, rich_help_panel=RUN)


class Optimizer(StrEnum):
    """Optimisers."""

    sgd = "sgd"
    adamw = "adamw"


class RateSchedule(StrEnum):
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


class ResumeFrom(StrEnum):
    """Checkpoints to go on from."""

    last = "last"
    previous = "previous"


class Initialise(StrEnum):
    """How weights start."""

    he = "he"
    none = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class MultigridOptions:
    """How the layers are solved for by the methods multigrid and oneshot."""

    levels: Annotated[int, of_multigrid(help="Of multigrid.", min=2)] = 2
    coarsening: Annotated[int, of_multigrid(help="Layers that a coarse step spans.", min=2)] = 4
    iterations: Annotated[
        str | None, of_multigrid(metavar="K/L", help="Forward and adjoint. [dim]\\[default: 2/1; 1/1 with oneshot][/]")
    ] = None
    relaxation: Annotated[str, of_multigrid(metavar="F|FCF", help="Of the layers.")] = "F"
    monitor: Annotated[
        bool,
        of_multigrid(
            "--monitor",
            help="Raise the iterations, at last to exact, where the residual or the gradient says so; multigrid only.",
        ),
    ] = False
    monitor_every: Annotated[
        int | None,
        of_multigrid(
            min=1, help="Steps between exact gradients to compare with. [dim]\\[default: an epoch's, at most 50][/]"
        ),
    ] = None
    monitor_exact: Annotated[
        float | None,
        of_multigrid(
            min=0.0,
            max=1.0,
            help="Share of the steps, at the end, that are exact in any case. [dim]\\[default: 0.2][/]",
        ),
    ] = None

    def solver(self, method: str) -> dict[str, Any]:
        """All but the monitor, as options of the method; none where the method has none of them."""
        from . import train_arguments

        if method not in ("multigrid", "oneshot"):
            return {}
        options = {"levels": self.levels, "coarsening": self.coarsening, "relaxation": self.relaxation}
        return options | train_arguments.iterations(self.iterations)

    def monitoring(self, method: str, *, steps: int, epochs: int) -> dict[str, Any]:
        """The monitor as an option of the method; none where none is wanted. ``steps`` are those of an epoch."""
        from . import train_arguments

        return train_arguments.monitor(
            self.monitor, self.monitor_every, self.monitor_exact, method=method, steps=steps, epochs=epochs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementOptions:
    """Where the network is trained."""

    devices: Annotated[
        str | None,
        on_devices(
            help="Such as cuda:0,cuda:1; with torchrun, cpu or cuda. [dim]\\[default: the CPU; with torchrun, a GPU "
            "each where there are enough][/]"
        ),
    ] = None
    ranks: Annotated[
        int | None,
        typer.Option(help="With torchrun: processes that hold one network. [dim]\\[default: one a segment][/]", min=1),
    ] = None
    timeout: Annotated[float, typer.Option(help="With torchrun: seconds that a process waits for others.", min=1.0)] = (
        600.0
    )
    graphs: Annotated[
        bool,
        typer.Option(
            "--graphs",
            help="Replay steps as CUDA graphs: on one GPU, or with torchrun on one each; parareal and serial only.",
        ),
    ] = False

    def mesh(self, method: str, n: int | None) -> DeviceMesh | None:
        """The processes that torchrun started; None where this process is alone."""
        from pararealize.distributed.mesh import started_by_torchrun

        from . import train_arguments

        if not started_by_torchrun():
            return None
        return train_arguments.mesh(method, n, self.ranks, self.devices, self.timeout)

    def check_graphs(self) -> None:
        """Refuse graphs where there is no GPU for them."""
        from pararealize.distributed.mesh import started_by_torchrun

        from . import train_arguments

        if self.graphs:
            train_arguments.check_graphs(self.devices, by_torchrun=started_by_torchrun())

    def step(self, built: Built) -> TrainingStep | None:
        """Forward and backward, where they are no plain ones."""
        if not self.graphs:
            return built.step
        from pararealize.train import CapturedStep

        return CapturedStep(built.net)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """How the network is trained: the fields of :class:`pararealize.Recipe`, in words."""

    epochs: Annotated[int, of_recipe(help="How often every sample is seen.", min=1)] = 200
    lr: Annotated[float, of_recipe(help="Learning rate.")] = 0.1
    schedule: Annotated[RateSchedule, of_recipe(help="How the learning rate falls.")] = RateSchedule.steps
    milestones: Annotated[
        str | None,
        of_recipe(
            metavar="EPOCHS",
            help="After which the learning rate is multiplied by --gamma, such as 80,120. [dim]\\[default: two and "
            "three fifths of the epochs][/]",
        ),
    ] = None
    gamma: Annotated[float, of_recipe(help="See --milestones.")] = 0.1
    warmup: Annotated[int, of_recipe(help="Steps in which the learning rate rises.", min=0)] = 0
    optimizer: Annotated[Optimizer, of_recipe(help="Which one.")] = Optimizer.sgd
    momentum: Annotated[float, of_recipe(help="Of SGD.")] = 0.9
    nesterov: Annotated[bool, of_recipe("--nesterov", help="Nesterov's form of it.")] = False
    weight_decay: Annotated[float, of_recipe(help="Of all parameters.")] = 5e-4
    label_smoothing: Annotated[float, of_recipe(help="Share of the target spread evenly.")] = 0.0
    clip: Annotated[float | None, of_recipe(help="Largest norm of the gradients. [dim]\\[default: any][/]")] = None
    amp: Annotated[Amp, of_recipe(help="Mixed precision; auto is float16 on GPUs, bfloat16 on the CPU.")] = Amp.off
    initialise: Annotated[Initialise, of_recipe(help="He's weights for convolutions, or the model's own.")] = (
        Initialise.he
    )

    def recipe(self, devices: str | None, mesh: DeviceMesh | None) -> Recipe:
        """The recipe, its precision chosen by the devices where that is ``auto``."""
        from pararealize import Recipe

        from . import train_arguments

        values = asdict(self) | {
            "optimizer": self.optimizer.value,
            "schedule": self.schedule.value,
            "milestones": train_arguments.milestones(self.milestones),
            "amp": train_arguments.precision(self.amp.value, devices, mesh),
            "initialise": "he" if self.initialise is Initialise.he else None,
        }
        return Recipe(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where the run's files lie, and what is written into them when."""

    output: Annotated[
        Path | None,
        to_folder(
            help="The run's folder, a new one. [dim]\\[default: named after model, method and data][/]",
            rich_help_panel=RUN,
        ),
    ] = None
    resume: Annotated[bool, of_run("--resume", help="Go on from the folder's last checkpoint.")] = False
    resume_from: Annotated[
        ResumeFrom,
        of_run(help="With previous, go on, too; where the last checkpoint is damaged, from an intact one before it."),
    ] = ResumeFrom.last
    force: Force = False
    checkpoint_every: Annotated[
        int | None, of_run(help="Steps. [dim]\\[default: at the end of every epoch only][/]", min=1)
    ] = None
    keep: Annotated[int, of_run(help="How many checkpoints.", min=1)] = 2
    log_every: Annotated[int, of_run(help="Steps in a row of the metrics.", min=1)] = 10
    tensorboard: Annotated[
        bool | None,
        of_run(
            "--tensorboard/--no-tensorboard",
            help="Event files for TensorBoard. [dim]\\[default: where it is installed][/]",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """All but the folder and TensorBoard, as keyword arguments of :func:`pararealize.fit`."""
        names = ("resume", "force", "checkpoint_every", "keep", "log_every")
        return {name: getattr(self, name) for name in names} | {"resume_from": self.resume_from.value}

    def check(self) -> None:
        """Refuse to go on with a run and to replace it at once."""
        from pararealize.errors import OutputError

        if (self.resume or self.resume_from is ResumeFrom.previous) and self.force:
            raise OutputError(
                "--resume goes on with the run that is there and --force replaces it; give one of the two"
            )

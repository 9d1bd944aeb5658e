"""Options that several commands have: their names, types, defaults and help, and the groups that they come in.

A group is a dataclass of options that stand side by side in several commands. A command takes the group as one
parameter, and :func:`expand_groups` shows typer the options in its place. Where each command has something of its own
to say of an option, what is shared is a function, which takes the ``help``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

if TYPE_CHECKING:
    from torch import nn

    from pararealize import PararealModule

__all__ = [
    "AsJson",
    "BlockSize",
    "BuiltBy",
    "ConversionOptions",
    "CostOfCuts",
    "CostUnit",
    "Devices",
    "Force",
    "Granularity",
    "Leaf",
    "Model",
    "ModelOptions",
    "N",
    "NOrSaved",
    "NumClasses",
    "Picture",
    "PictureFormat",
    "Report",
    "ResultOptions",
    "Seed",
    "Source",
    "Weights",
    "differing",
    "expand_groups",
    "on_devices",
    "to_folder",
    "words_of",
]


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let every parameter of ``command`` that is a group of options stand for the options of that group.

    Typer reads the options of a command from its signature, and a function may say what that is in ``__signature__``:
    here every group's fields stand in the group's place. When the command is called, the groups are put together again.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        expanded = inspect.signature(groups[name], eval_str=True).parameters.values() if name in groups else ()
        parameters += expanded or [parameter.replace(annotation=hints[name])]
    signature = inspect.Signature([_without_empty_default(parameter) for parameter in parameters])

    @functools.wraps(command)
    def expanded_command(**values: Any) -> None:
        filled = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**values, **filled)

    expanded_command.__signature__ = signature  # type: ignore[attr-defined]
    return expanded_command


def _without_empty_default(parameter: inspect.Parameter) -> inspect.Parameter:
    """Keep ``[default: None]`` out of the help: typer 0.15 shows it where an option has no default, or None."""
    if parameter.default not in (None, inspect.Parameter.empty) or get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, option = get_args(parameter.annotation)
    option = copy.copy(option)
    option.show_default = False
    return parameter.replace(annotation=Annotated[kind, option])


def differing(group: Any, *besides: str) -> list[str]:
    """The options of a group that are not at their defaults, as they stand on the command line.

    Args:
        group: of options.
        besides: names of fields that do not count.
    """
    words = []
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if value == field.default or field.name in besides:
            continue
        flag = "--input" if field.name == "inputs" else "--" + field.name.replace("_", "-")
        words += [f"{flag} {one}" for one in (value if isinstance(value, list) else [value])]
    return words


class Granularity(StrEnum):
    """What blocks are."""

    repeated = "repeated"
    finest = "finest"


class Source(StrEnum):
    """What adapters read."""

    input = "input"
    stem = "stem"


class CostUnit(StrEnum):
    """What cuts are balanced by."""

    flops = "flops"
    seconds = "seconds"


class Picture(StrEnum):
    """The format of the picture."""

    svg = "svg"
    png = "png"


def words_of(cost: CostUnit) -> list[str]:
    """``--cost`` as it stands on the command line, where it is not at its default."""
    return [] if cost is CostUnit.flops else [f"--cost {cost.value}"]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name that [bold]pararealize ls[/] lists, [bold]torchvision:NAME[/], [bold]timm:NAME[/], "
        "[bold]package.module:callable[/], [bold]file.py:callable[/], or a folder that convert, calibrate or train has "
        "written.",
    ),
]
NOrSaved = Annotated[
    int | None,
    typer.Option(
        "--n",
        "-n",
        help="How many segments run at the same time. [dim]\\[default: where MODEL is a folder, its network as it is]"
        "[/]",
    ),
]
N = Annotated[int, typer.Option("--n", "-n", help="How many segments run at the same time.")]
CostOfCuts = Annotated[CostUnit, typer.Option("--cost", help="Balance the cuts by FLOPs counted or seconds measured.")]
NumClasses = Annotated[int | None, typer.Option("--num-classes", help="Passed to the model's constructor.", min=1)]
Leaf = Annotated[
    list[str] | None,
    typer.Option(
        "--leaf",
        metavar="CLASS",
        help="package.module:Class of submodules not to look into, or one's qualified name; may be repeated.",
    ),
]
BuiltBy = Annotated[
    str | None,
    typer.Option(
        "--built-by",
        metavar="CODE",
        help="Where MODEL is a folder: file.py:callable that builds its original, which no file runs by itself.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The trained weights, a .safetensors file. [dim]\\[default: those of the folder, where MODEL is one][/]",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the model's weights and of what conversion adds.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output folder that is there already.")]
PictureFormat = Annotated[Picture, typer.Option("--picture", help="Format of the picture.")]
BlockSize = Annotated[
    Granularity,
    typer.Option(
        "--granularity",
        help="What blocks are: the repeated ones that a person would name, or finest: every stretch between two points "
        "at which the network can be cut, such as attention and MLP of a transformer's layer.",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE.html", help="Write one HTML page with figures and tables, which needs no network."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]

on_devices = functools.partial(typer.Option, "--devices", metavar="LIST")
to_folder = functools.partial(typer.Option, "--out", "-o", metavar="FOLDER")
Devices = Annotated[str | None, on_devices(help="Such as cuda:0,cuda:1; fewer than segments wrap round.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model is built and read."""

    num_classes: NumClasses = None
    built_by: BuiltBy = None
    leaf: Leaf = None
    seed: Seed = 0

    def build(self, name: str, *, meta: bool = False) -> nn.Module:
        """The model of that name, or the original in a folder; on the meta device it has shapes and no weights."""
        from . import arguments, saved_model
        from .console import console_of

        saved_model.check_options(name, num_classes=self.num_classes, built_by=self.built_by)
        if not saved_model.is_saved(name):
            return arguments.model(name, num_classes=self.num_classes, seed=self.seed, meta=meta)
        net, note = saved_model.original(name, self.built_by)
        if note and not meta:
            console_of(stderr=True).print(f"note: {note}", markup=False, soft_wrap=True)
        return net.to("meta") if meta else net

    def leaf_names(self, name: str) -> list[str]:
        """The words of ``--leaf``; without them, the qualified names that the folder MODEL was converted with."""
        from . import saved_model

        if self.leaf:
            return self.leaf
        return saved_model.leaf_modules(name) if saved_model.is_saved(name) else []

    def leaf_modules(self, name: str) -> tuple[type | str, ...]:
        """The classes, or qualified names, of submodules of MODEL that are not looked into."""
        from . import arguments

        return arguments.leaf_modules(self.leaf_names(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """How a command's result is written and printed, besides the folder it goes into."""

    force: Force = False
    picture: PictureFormat = Picture.svg
    page: Report = None
    as_json: AsJson = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """How a model is cut into segments, and what is added to it."""

    coarse: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="paper, depthwise, bottleneck, linear, block, exact, auto (by evidence); scale, low-rank (also "
            "low-rank:16), dense, folded (also folded:16): linear, and outputs of segments corrected; or "
            "file.py:function (segment, x_shape, y_shape) -> module.",
        ),
    ] = "paper"
    cuts: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="cost (the shortest step), paper (equally many blocks in each stage), or the names of the blocks at "
            "which segments begin, separated by commas.",
        ),
    ] = "cost"
    source: Annotated[
        Source | None,
        typer.Option(
            help="Adapters read the network's input or its stem's output. [dim]\\[default: what the input allows][/]"
        ),
    ] = None
    windows: Annotated[
        str,
        typer.Option(
            metavar="M",
            help="How many windows of segments follow one another: a number, the names of the blocks at which they "
            "begin, separated by commas, or auto (the most that cost nothing).",
        ),
    ] = "1"
    sequential: Annotated[
        str,
        typer.Option(
            metavar="K",
            help="Blocks that run as in the original: the first K, their names, separated by commas, or auto (as few "
            "as networks like this one were seen to need).",
        ),
    ] = "0"
    granularity: BlockSize = Granularity.repeated
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A plan.json that tradeoff, convert or calibrate wrote for this same model: it says --n, and all of "
            "this group.",
        ),
    ] = None

    def saved_network(
        self,
        model: str,
        *,
        built_by: str | None = None,
        devices: Sequence[str] | None = None,
        unused: Sequence[str] = (),
    ) -> PararealModule:
        """The converted network of the folder MODEL, as it is: for commands that got no ``--n``.

        Args:
            model: the folder.
            built_by: see :class:`ModelOptions`.
            devices: where its segments run.
            unused: options that stand on the command line and would change nothing of it, with their values.

        Raises:
            PlanError: MODEL is no such folder, or options ask for another network than its own.
            PararealizeError: it cannot be read, see :func:`pararealize.load`.
        """
        from pararealize import load
        from pararealize.errors import PlanError

        from . import arguments, saved_model

        if not saved_model.is_saved(model):
            raise PlanError(
                f"--n is not there, and {model!r} is no network's folder, which has a plan; write for instance --n 4"
            )
        coarse = arguments.coarse(self.coarse)
        if others := [*differing(self, *(["coarse"] if callable(coarse) else [])), *unused]:
            raise PlanError(
                f"{', '.join(others)} asks for a new conversion, and without --n the network is taken as the folder "
                "has it; write --n too, or leave it out"
            )
        return load(model, built_by, coarse=coarse if callable(coarse) else None, devices=devices)

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of :func:`pararealize.pararealize`: what is asked for, or the plan.

        Beside a plan, what is not at its default has to say the same, which that function sees to.
        """
        from . import arguments

        if self.plan is None:
            return self.decisions()
        return self.asked() | {"plan": arguments.plan(self.plan)}

    def asked(self) -> dict[str, Any]:
        """The decisions that are not at their defaults."""
        defaults = ConversionOptions().decisions()
        return {name: value for name, value in self.decisions().items() if value != defaults[name]}

    def segments(self, n: int | None) -> int | None:
        """``--n``, or what the plan says in its place."""
        from . import arguments

        return arguments.plan(self.plan).n if n is None and self.plan is not None else n

    def decisions(self) -> dict[str, Any]:
        """The same as keyword arguments of :func:`pararealize.pararealize`, without the plan."""
        from . import arguments

        return {
            "coarse": arguments.coarse(self.coarse),
            "cuts": arguments.cuts(self.cuts),
            "source": None if self.source is None else self.source.value,
            "windows": arguments.windows(self.windows),
            "sequential": arguments.sequential(self.sequential),
            "granularity": self.granularity.value,
        }

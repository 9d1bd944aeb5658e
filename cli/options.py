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
    import torch
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
    "ExampleOptions",
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
    "expand_groups",
    "on_devices",
    "to_folder",
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

    def leaf_modules(self) -> tuple[type | str, ...]:
        """The classes, or qualified names, of submodules that are not looked into."""
        from . import arguments

        return arguments.leaf_modules(self.leaf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """How a command's result is written and printed, besides the folder it goes into."""

    force: Force = False
    picture: PictureFormat = Picture.svg
    page: Report = None
    as_json: AsJson = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleOptions:
    """The example input that a model is read with."""

    batch_size: Annotated[int, typer.Option(help="Of the example, for which costs are counted.")] = 2
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="One input without the batch dimension, such as 3,224,224. [dim]\\[default: from the model][/]",
        ),
    ] = None
    input_dtype: Annotated[str, typer.Option(metavar="TYPE", help="float32, bfloat16, int64 (token ids), …")] = (
        "float32"
    )
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE:DTYPE",
            help="An input by its name, with the batch in front, such as input_ids=2x128:int64; once for each input "
            "of a model that takes several. NAME=true, false or none for one that is no tensor.",
        ),
    ] = None

    def values(self, name: str, *, meta: bool = False) -> torch.Tensor | dict[str, Any] | None:
        """The input of the model of that name, or its inputs by name; None where the library is to infer it."""
        from pararealize.errors import ExampleError

        from . import arguments, saved_model

        if not self.inputs and self.input_shape is None and saved_model.is_saved(name):
            return saved_model.example(name, meta=meta)  # type: ignore[no-any-return]
        if not self.inputs:
            return arguments.example(name, self.input_shape, self.input_dtype, self.batch_size, meta=meta)
        if self.input_shape is not None:
            raise ExampleError(
                "--input and --input-shape are both there; say every input with --input, or leave it out"
            )
        return arguments.inputs(self.inputs, meta=meta)

    @property
    def samples(self) -> int:
        """How many samples the example has: the leading size of the first input that is a tensor."""
        if not self.inputs:
            return self.batch_size
        from . import arguments

        values = arguments.inputs(self.inputs, meta=True).values()
        sizes = [int(value.shape[0]) for value in values if hasattr(value, "shape")]
        return sizes[0] if sizes else self.batch_size


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

    def differing(self, *besides: str) -> list[str]:
        """The options that are not at their defaults, as they stand on the command line."""
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        return [
            f"--{name} {value}" for name, (value, default) in values.items() if value != default and name not in besides
        ]

    def saved_network(
        self, model: str, *, built_by: str | None = None, devices: Sequence[str] | None = None
    ) -> PararealModule:
        """The converted network of the folder MODEL, as it is: for commands that got no ``--n``.

        Raises:
            PlanError: MODEL is no such folder, or options ask for another plan than its own.
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
        if others := self.differing(*(["coarse"] if callable(coarse) else [])):
            raise PlanError(
                f"{', '.join(others)} asks for a new plan, and without --n the network is taken as the folder has it; "
                "write --n too, or leave it out"
            )
        return load(model, built_by, coarse=coarse if callable(coarse) else None, devices=devices)

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of :func:`pararealize.pararealize`: what is asked for, or the plan.

        Beside a plan, what is not at its default has to say the same, which that function sees to.
        """
        from . import arguments

        if self.plan is None:
            return self.decisions()
        defaults = ConversionOptions().decisions()
        asked = {name: value for name, value in self.decisions().items() if value != defaults[name]}
        return asked | {"plan": arguments.plan(self.plan)}

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

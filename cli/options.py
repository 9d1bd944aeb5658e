"""Options that several commands have: their names, types and help.

Where each command has something of its own to say of an option, what is shared is a function, which takes the ``help``.
"""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Batch",
    "Coarse",
    "Cost",
    "CostOfCuts",
    "Cuts",
    "Force",
    "InputShape",
    "InputType",
    "Leaf",
    "Model",
    "N",
    "NumClasses",
    "Picture",
    "PictureFormat",
    "Seed",
    "Source",
    "SourceOfAdapters",
    "StemBlocks",
    "on_devices",
    "to_folder",
]


class Source(StrEnum):
    """Where adapters read from."""

    input = "input"
    stem = "stem"


class Cost(StrEnum):
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
        "[bold]package.module:callable[/] or [bold]file.py:callable[/].",
        show_default=False,
    ),
]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", help="Passed to the model's constructor.", min=1, show_default=False)
]
Batch = Annotated[int, typer.Option("--batch", help="Batch size of the example, for which costs are counted.")]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="SIZES",
        help="One input without the batch dimension, such as 3,224,224. [dim]\\[default: from the model][/]",
        show_default=False,
    ),
]
InputType = Annotated[
    str, typer.Option("--input-dtype", metavar="TYPE", help="float32, bfloat16, int64 (token ids), …")
]
Leaf = Annotated[
    list[str] | None,
    typer.Option(
        "--leaf",
        metavar="CLASS",
        help="package.module:Class of a submodule not to look into; may be repeated.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the model's weights and of what conversion adds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
N = Annotated[int, typer.Option("--n", "-n", help="How many segments run at the same time.", show_default=False)]
Coarse = Annotated[
    str,
    typer.Option(
        "--coarse",
        metavar="KIND",
        help="paper, depthwise, bottleneck, linear, block, exact, auto (by evidence), or file.py:function "
        "(segment, x_shape, y_shape) -> module.",
    ),
]
Cuts = Annotated[
    str,
    typer.Option(
        "--cuts",
        metavar="WHERE",
        help="cost (the shortest step), paper (equally many blocks in each stage), or the names of the blocks at "
        "which segments begin, separated by commas.",
    ),
]
CostOfCuts = Annotated[Cost, typer.Option("--cost", help="Balance the cuts by FLOPs counted or seconds measured.")]
SourceOfAdapters = Annotated[
    Source | None,
    typer.Option(
        "--source",
        help="Adapters read the network's input or its stem's output. [dim]\\[default: what the input allows][/]",
        show_default=False,
    ),
]
StemBlocks = Annotated[
    int,
    typer.Option(
        "--stem-blocks", metavar="K", help="The first K blocks belong to the stem, which adapters then read.", min=0
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output folder that is there already.")]
PictureFormat = Annotated[Picture, typer.Option("--picture", help="Format of the picture.")]

on_devices = partial(typer.Option, "--devices", metavar="LIST", show_default=False)
to_folder = partial(typer.Option, "--out", "-o", metavar="FOLDER", show_default=False)

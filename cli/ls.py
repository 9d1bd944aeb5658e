"""Nothing -> the models that can be named, printed: ``pararealize ls``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import out, print_json

__all__ = ["EXAMPLES", "command"]

EXAMPLES = None
GROUPS = {
    "built-in": "CIFAR pre-activation ResNets, 32×32 images",
    "torchvision": "also torchvision:NAME; resnet18 … resnet152 are torchvision's",
    "timm": "as timm:NAME",
}


def command(
    timm: Annotated[bool, typer.Option("--timm", help="List timm's models too, where it is installed.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """List the models that can be named."""
    from pararealize import models

    groups: dict[str, list[str]] = {"built-in": models.names(), "torchvision": models.torchvision_names()}
    if timm:
        groups["timm"] = models.timm_names()
    if as_json:
        print_json(groups)
        return
    from rich.columns import Columns

    console = out()
    for group, names in groups.items():
        console.print(f"[bold]{group}[/] ({GROUPS[group]})")
        console.print(Columns(names, padding=(0, 3), column_first=True, equal=True))
        console.print()
    console.print(
        "Any other: [bold]timm:NAME[/], [bold]package.module:callable[/], [bold]file.py:callable[/]; "
        "what they give must be a torch.nn.Module."
    )

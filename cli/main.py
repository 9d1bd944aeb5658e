"""The command line -> one of the commands: ``convert``, ``inspect``, ``train``, ``calibrate``, ``tradeoff``, ….

Each command has a file with its function, ``command``: parameters are options, or groups of them, and the docstring is
the help.
"""

from __future__ import annotations

import os
import sys

import typer

from . import calibrate, convert, demo, evaluate, inspect, ls, plan, profile, restack, schedule, tradeoff, train
from .console import keep_stdout, one_message
from .options import expand_groups

__all__ = ["app", "main"]

app = typer.Typer(
    name="pararealize",
    help="Turn any feed-forward PyTorch model into a parareal network, whose segments run at the same time.",
    epilog="Start with: [bold]pararealize convert resnet1001 --n 12[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for name, file in {
    "plan": plan,
    "convert": convert,
    "inspect": inspect,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "tradeoff": tradeoff,
    "schedule": schedule,
    "profile": profile,
    "restack": restack,
    "train": train,
    "ls": ls,
    "demo": demo,
}.items():
    app.command(name, epilog=file.EXAMPLES)(one_message(expand_groups(file.command)))


def main() -> None:
    """Run the command."""
    if "WORLD_SIZE" in os.environ or "--json" in sys.argv:
        keep_stdout()
    app()

"""A machine -> a device profile, in a file that ``plan --device FILE`` reads: ``pararealize profile``."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import print_result, working

if TYPE_CHECKING:
    from pararealize import DeviceProfile, Link

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize profile --out here.json

  pararealize profile --show h100

  torchrun --nproc-per-node 2 --no-python pararealize profile --out here.json
"""


def command(
    *,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write the profile into this file, such as here.json."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="DEVICE", help="cpu, cuda:0, … [dim]\\[default: a GPU, if there is one][/]"),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the profile.")] = None,
    show: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Print a published profile, or a file, and measure nothing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure this machine's compute, memory and launches; under torchrun, its links, too."""
    from pararealize.errors import ProfileError

    _check_output(output, force)
    if show is not None and on is not None:
        raise ProfileError(
            f"--on {on} says what is measured, and --show {show} measures nothing; leave one of them out"
        )
    with working("measuring", long=True) as progress:
        from pararealize import device_profile
        from pararealize.profiles import measure_device

        if show is not None:
            profile, rank = device_profile(show), 0
            profile = profile if name is None else dataclasses.replace(profile, name=name)
        else:
            rank = int(os.environ.get("RANK", "0"))
            profile = measure_device(_local(on), name=name, report=progress if rank == 0 else None)
            profile = dataclasses.replace(profile, links=_links(on, profile))
        if output is not None and rank == 0:
            profile.save(output)
    if rank == 0:
        folder, files = (None, []) if output is None else (output.parent, [output.name])
        print_result({"profile": json.loads(profile.to_json())}, str(profile), folder, files, as_json=as_json)


def _check_output(path: Path | None, force: bool) -> None:
    """Refuse a file that is there already and must not be replaced, before anything is measured."""
    from pararealize.errors import OutputError
    from pararealize.files import kind_of

    if path is None:
        return
    try:
        kind = kind_of(path)
    except OSError as error:
        raise OutputError(f"cannot write to {str(path)!r}: {error.strerror}; name another file with --out") from error
    if kind is None:
        return
    if not force:
        raise OutputError(f"{str(path)!r} is there already; name another file with --out, or replace it with --force")
    if kind != "file":
        raise OutputError(f"{str(path)!r} is a {kind} and not a file; name another file with --out")


def _links(device: str | None, profile: DeviceProfile) -> tuple[Link, ...]:
    """Under torchrun, the link between its ranks, with what steps take on their hosts where these are the devices."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ()
    import torch
    import torch.distributed as dist

    from pararealize.profiles import measure_link
    from pararealize.strategies import measure_ranks

    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    place = _local(device) if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(torch.device(place or "cuda:0"))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        link = measure_link(device=place or "cpu")
        return (link if on_gpu else measure_ranks(link, profile),)
    finally:
        dist.destroy_process_group()


def _local(device: str | None) -> str | None:
    """A rank's own GPU, where no other is named."""
    import torch

    if device is None and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device

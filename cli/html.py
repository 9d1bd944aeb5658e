"""What a command gave -> one HTML page where ``--report`` says, with the command line that made it.

A command calls :func:`check_page` before it works and :func:`write_page` when all else is done. What is shown is what
:func:`pararealize.reports.write_report` takes, sections of the command's own included.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import out, working

if TYPE_CHECKING:
    from torch import nn

    from pararealize import BlockChain
    from pararealize.analysis.finder import Granularity

__all__ = ["blocks_of", "check_page", "command_line", "write_page"]


def check_page(path: Path | None, output: Path | None = None) -> None:
    """Refuse a path that no report can be written to; without one there is nothing to refuse.

    Args:
        path: of the page; ``None`` for none.
        output: the folder of the command's files; ``None`` for none.

    Raises:
        OutputError: it is no ``.html`` file, its folder is not there, something else than a report is, or it is in a
            folder that would not be taken for what it is with a page in it.
    """
    if path is None:
        return
    from pararealize.errors import OutputError
    from pararealize.files import kind_of
    from pararealize.manifest import MANIFEST
    from pararealize.reports import check_report

    folders = Path(os.path.realpath(path)).parents
    if output is not None and Path(os.path.realpath(output)) in (Path(os.path.realpath(path)), *folders):
        raise OutputError(
            f"--report {path} is in the folder of --out, {str(output)!r}, which holds this command's files alone; "
            "write the page beside it"
        )
    check_report(path)
    is_run = all(kind_of(folders[0] / name) is not None for name in ("run.json", "checkpoints"))
    if is_run or kind_of(folders[0] / MANIFEST) is not None:
        what = "a training run" if is_run else f"a {MANIFEST}"
        raise OutputError(
            f"--report {path} is in a folder with {what}, which holds its own files alone; write the page beside it"
        )


def write_page(path: Path | None, *values: Any, title: str, seed: int | None, quiet: bool) -> None:
    """Write the page, and say so, where one was asked for.

    Args:
        path: of the page; ``None`` for none.
        values: what to show; ``None`` among them is left out.
        title: of the page, MODEL; the folders before its name are left out.
        seed: of the command.
        quiet: say nothing on stdout, which is left to JSON.

    Raises:
        OutputError: it cannot be written.
    """
    if path is None:
        return
    with working("writing the report"):
        from pararealize.reports import write_report

        shown = [value for value in values if value is not None]
        write_report(path, *shown, title=Path(title).name or title, command=command_line(sys.argv), seed=seed)
    out(quiet=quiet).print(f"report written to {path}", markup=False)


def blocks_of(
    path: Path | None,
    net: nn.Module,
    inputs: Any,
    leaves: Iterable[type | str],
    granularity: Granularity = "repeated",
) -> BlockChain | None:
    """The blocks of a network as it was before anything was done to it, where a page is to show them.

    Args:
        path: of the page; ``None`` for none.
        net: the network, on the meta device too.
        inputs: example inputs; ``None`` where the library infers them.
        leaves: submodules that are not looked into.
        granularity: what blocks are.
    """
    if path is None:
        return None
    from pararealize import capture, find_blocks
    from pararealize.errors import CaptureError, CutError, ExampleError

    try:
        return find_blocks(capture(net, inputs, leaf_modules=tuple(leaves)), granularity=granularity)
    except (CaptureError, CutError, ExampleError):  # as a network may be that is trained as it is
        return None


def command_line(words: Sequence[str]) -> str:
    """The command as it can be typed again, with what started its processes.

    Args:
        words: of the command, the program first.

    Example:
        >>> command_line(["/usr/bin/pararealize", "train", "my nets.py:deep", "--n", "3"])
        "pararealize train 'my nets.py:deep' --n 3"
    """
    program = "pararealize"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        count = os.environ.get("LOCAL_WORLD_SIZE", "N")
        program = f"torchrun --nproc-per-node {count} -m pararealize_cli"
    return shlex.join([*program.split(), *words[1:]])

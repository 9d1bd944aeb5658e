"""Where the command writes: results to stdout, everything else to stderr, and errors in one clean message."""

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from .flags import in_flags

__all__ = ["console_of", "keep_stdout", "one_message", "out", "print_json", "print_result", "results_alone", "working"]

PIPE_WIDTH = 160  # columns of a table where nobody says how wide the page is
LINES_EVERY = 10.0  # seconds, in a log of long work
_SIZES = ("batch_size", "input_shape", "image_size", "num_classes", "count")  # options that need memory
FAILED = 2  # exit status of every error that the user can mend, as of a wrong option


_stdout: ContextVar[TextIO | None] = ContextVar("stdout", default=None)  # of results, where sys.stdout is another


@contextmanager
def results_alone() -> Iterator[None]:
    """Within it, what :func:`print_json` does not print goes to stderr: a model's file may print what it will."""
    token = _stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.reset(token)


def keep_stdout() -> None:
    """Leave stdout to the command's results, for the life of this process.

    What libraries write to it below Python, as Gloo of torch 2.10 does when ranks connect, goes to stderr instead.
    """
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def out(*, quiet: bool = False) -> Console:
    """The console of the results. Where stdout is a file or a pipe, tables are as wide as they need to be."""
    console = console_of(quiet=quiet)
    return console if console.is_terminal else console_of(quiet=quiet, width=PIPE_WIDTH)


def console_of(**settings: Any) -> Console:
    """A console on which no text acts: what comes out of a file, or from another process, shows as it is.

    Args:
        settings: of rich's console, without highlights and without names of emoji: ``nets.py:train`` is no picture.
    """
    console = Console(highlight=False, emoji=False, **settings)
    console.push_render_hook(_Visible())
    return console


class _Visible(RenderHook):
    """Rich calls this with all that is printed; it takes a few control characters out of texts itself, ESC not."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """The same, their texts without control characters."""
        return [_VisibleRenderable(renderable) for renderable in renderables]


class _VisibleRenderable:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(_visible(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.renderable)


@contextmanager
def working(what: str, *, long: bool = False) -> Iterator[Callable[[str], None]]:
    """Show a spinner and ``what`` is going on, on stderr. The value given changes the text.

    Where stderr is no terminal, texts of ``long`` work become lines, one every ten seconds at most.
    """
    console = console_of(stderr=True)
    if not console.is_terminal:
        yield _lines(console, LINES_EVERY if long else float("inf"))
        return
    with console.status(Text(what)) as status:  # of a str the spinner would read markup and names of emoji
        yield lambda text: status.update(Text(_visible(text)))


def _visible(text: str) -> str:
    from pararealize.control_characters import visible  # which imports torch, as nothing does that only shows help

    return visible(text)


def _lines(console: Console, every: float) -> Callable[[str], None]:
    next_at = time.monotonic() + every

    def say(text: str) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + every
            console.print(text, markup=False, soft_wrap=True)

    return say


def print_json(value: object) -> None:
    """Print one JSON document on stdout; numbers that are not finite become null."""
    from pararealize.control_characters import visible_json
    from pararealize.plan.json_text import finite

    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    (_stdout.get() or sys.stdout).write(visible_json(text) + "\n")


def print_result(
    document: dict[str, Any], text: RenderableType, folder: Path | None, files: Sequence[str], *, as_json: bool
) -> None:
    """Print a command's result, as text for people or as one JSON document, and which files are in which folder.

    Args:
        document: the result as JSON.
        text: the result for people.
        folder: that the files were written into, None where none was asked for.
        files: their names.
        as_json: print the document, and the folder and the files as keys of it.
    """
    if as_json:
        print_json(document | {"out": None if folder is None else str(folder), "files": list(files)})
        return
    out().print(text, markup=False)
    if folder is not None:
        out().print(f"written to {folder}: {', '.join(files)}", markup=False)


def one_message(command: Callable[..., None]) -> Callable[..., None]:
    """Let ``command`` end an expected error with one message and exit status 2, in JSON where ``--json`` is set."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from pararealize.errors import PararealizeError

        as_json = kwargs.get("as_json", False)
        try:
            with results_alone() if as_json else nullcontext():
                _check_numbers(kwargs)
                command(*args, **kwargs)
        except (PararealizeError, MemoryError, RuntimeError) as error:
            kind, message = type(error).__name__, in_flags(str(error), kwargs)
            if not isinstance(error, PararealizeError):
                if not (message := _memory_fault(error, kwargs)):
                    raise
                kind = "MemoryError"
            if as_json:
                print_json({"error": {"type": kind, "message": message}})
            else:
                console_of(stderr=True, soft_wrap=True).print(f"[bold red]{kind}[/]: {escape(message)}")
            sys.exit(FAILED)

    return guarded


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse whole numbers that fit into no 64 bits: torch's own error is a ``ValueError`` or a ``RuntimeError``."""
    from pararealize.errors import PararealizeError

    too_large = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in options.items()
        if isinstance(value, int) and not -(2**63) <= value < 2**63
    ]
    if too_large:
        raise PararealizeError(f"{', '.join(too_large)} is out of range; write a number below 2⁶³")


def _memory_fault(error: BaseException, options: Mapping[str, Any]) -> str:
    """What to do where there was not enough memory, in words; nothing of another error.

    Torch's CPU allocator raises a plain ``RuntimeError``, which only its text tells from others.
    """
    text = str(error)
    pattern = r"allocate memory|not enough memory|out of memory|Storage size calculation overflowed|numel: integer"
    if not isinstance(error, MemoryError) and not re.search(pattern, text):
        return ""
    asked = re.search(r"allocate ([\d.]+) (\w+)", text)
    what = f": {asked[1]} {asked[2]} were asked for at once" if asked else ""
    flags = [f"--{name.replace('_', '-')} {options[name] or ''}".strip() for name in _SIZES if name in options]
    smaller = f"write smaller sizes ({', '.join(flags)}), or " if flags else ""
    return f"there is not enough memory{what}; {smaller}take another machine"

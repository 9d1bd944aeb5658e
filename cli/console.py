"""Where the command writes: results to stdout, everything else to stderr, and errors in one clean message."""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["one_message", "out", "print_json", "working"]

PIPE_WIDTH = 160  # columns of a table where nobody says how wide the page is
FAILED = 2  # exit status of every error that the user can mend, as of a wrong option


def out(*, quiet: bool = False) -> Console:
    """The console of the results. Where stdout is a file or a pipe, tables are as wide as they need to be."""
    console = Console(highlight=False, quiet=quiet)
    return console if console.is_terminal else Console(highlight=False, quiet=quiet, width=PIPE_WIDTH)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner and ``what`` is going on, on stderr and only on a terminal. The value given changes the text."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(escape(what)) as status:
        yield lambda text: status.update(escape(text))


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def one_message(command: Callable[..., None]) -> Callable[..., None]:
    """Let ``command`` end an expected error with one message and exit status 2, in JSON where ``--json`` is set."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from pararealize.errors import PararealizeError

        try:
            command(*args, **kwargs)
        except PararealizeError as error:
            if kwargs.get("as_json"):
                print_json({"error": {"type": type(error).__name__, "message": str(error)}})
            else:
                console = Console(stderr=True, highlight=False, soft_wrap=True)
                console.print(f"[bold red]{type(error).__name__}[/]: {escape(str(error))}")
            sys.exit(FAILED)

    return guarded

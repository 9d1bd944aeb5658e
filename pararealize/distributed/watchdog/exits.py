"""The end of this script -> what is wrong with it: an error that nobody caught, or a status other than 0.

Python calls what is registered for its exit without saying why it exits. An error that nobody caught is still known
then (``sys.last_exc``). A ``SystemExit`` is not: so ``sys.exit`` is wrapped as long as a watchdog is open, and writes
down the status and the error that was being handled when it was called. A script that raises ``SystemExit`` itself, or
calls ``os._exit``, is known by the status of its process alone, which the other ranks of its machine see
(connections.py). In a child of multiprocessing nothing that is registered with ``atexit`` is called: there, what
multiprocessing itself calls at the end sees the error on its way out.
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import sys
import threading
from collections.abc import Callable
from typing import Any, Never

__all__ = ["SCRIPT", "ExitHook", "Script"]


class Script:
    """How the script of this process ends. There is one of it, as there is one ``sys.exit``."""

    def __init__(self) -> None:
        self._recorders = 0
        self._original: Callable[..., Never] = sys.exit
        self._last_exit: str | None = None  # with a status other than 0, in words
        self._wrapper = self._recorded_exit  # one object: a method is another one each time

    def record(self) -> None:
        """Have calls of ``sys.exit`` written down, until :meth:`stop_recording` was called as often."""
        if not self._recorders and sys.exit is not self._wrapper:
            self._original = sys.exit
            sys.exit = self._wrapper
        self._recorders += 1

    def stop_recording(self) -> None:
        """Put ``sys.exit`` back, unless somebody else has wrapped it since."""
        self._recorders -= 1
        if not self._recorders and sys.exit is self._wrapper:
            sys.exit = self._original

    def goes_on(self) -> None:
        """What was written down did not end it."""
        self._last_exit = None

    def bad_exit(self) -> str | None:
        """With which status it has been ended, and in the handling of which error; ``None`` where all was well."""
        error = sys.exc_info()[1]
        return _words(error.code, error.__context__) if isinstance(error, SystemExit) else self._last_exit

    def uncaught_error(self) -> BaseException | None:
        """The error that ends it, and is no exit of its own choice."""
        error = sys.exc_info()[1] or getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        return None if hasattr(sys, "ps1") or isinstance(error, SystemExit) else error

    def _recorded_exit(self, status: str | int | None = None, /) -> Never:
        if threading.current_thread() is threading.main_thread():
            self._last_exit = _words(status, sys.exc_info()[1])
        self._original(status)


def _words(status: Any, error: BaseException | None) -> str | None:
    if status is None or status == 0:
        return None
    text = f"left with exit status {status if isinstance(status, int) else 1}"
    if not isinstance(status, int):
        text += f": {str(status)[:200]}"
    if error is not None and not isinstance(error, SystemExit):
        text += f", after {type(error).__name__}: {str(error).strip()[:300]}".removesuffix(": ")
    return text


SCRIPT = Script()


class ExitHook:
    """A function that is called when this script ends, whichever way, while calls of ``sys.exit`` are written down."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        SCRIPT.record()
        atexit.register(function)
        # a child of multiprocessing ends without what atexit knows
        self._finalizer = multiprocessing.util.Finalize(None, function, exitpriority=100)

    def cancel(self) -> None:
        """Do not call it any more."""
        atexit.unregister(self._function)
        self._finalizer.cancel()
        SCRIPT.stop_recording()

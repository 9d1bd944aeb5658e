"""A damaged file and what is done with it -> an Outcome: right, typed, raw, hang or silent.

A case runs within a limit of processor time (what else the machine does changes no outcome) and, for waits that take
none, of wall time. Where Python does not come to hear of it, the system ends the process: so cases run in a child.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Protocol

import torch

from pararealize.errors import PararealizeError

__all__ = ["OUTCOMES", "PRINTED", "Limits", "Outcome", "Target", "Trial", "outcomes", "unreadable"]

OUTCOMES = ("right", "typed", "raw", "hang", "silent")
LONGEST = 8000  # characters of a message that somebody can still read
PRINTED = 2_000_000  # of a value, which has a line for each note, rank and row
# C0 and C1 but for newline and tab, and what changes the direction of text
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A case: what was changed, and a function that reads the file.

    Attributes:
        change: in words.
        attempt: reads it, and says what is silently wrong; nothing where the file says the same as before, or where
            the result is that of the changed values.
    """

    change: str
    attempt: Callable[[], str]


class Target(Protocol):
    """A kind of file: the intact ones are made once, in ``__init__``; each call damages one."""

    def __call__(self, random: Random, folder: Path) -> Trial:
        """A case; ``folder`` is empty, its own, and removed afterwards."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a case.

    Attributes:
        outcome: one of ``OUTCOMES``.
        change: what was changed.
        text: the error, or what is silently wrong.
        where: of a raw error, the line of the library's that it passed last.
    """

    outcome: str
    change: str
    text: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one case: seconds of processor time, seconds by the clock, and memory."""

    processor: int = 20
    clock: int = 600
    gibibytes: float = 6.0


class TooLongError(BaseException):
    """A case took longer than its limit; no ``except Exception`` on the way catches this."""


def outcomes(
    kind: str, make: Callable[[], Target], seeds: Sequence[int], limits: Limits
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each seed, in order."""
    done = 0
    while done < len(seeds):
        for outcome in _run(kind, make, seeds[done:], limits):
            yield seeds[done], outcome
            done += 1


def _run(kind: str, make: Callable[[], Target], seeds: Sequence[int], limits: Limits) -> Iterator[Outcome]:
    """Outcomes until the child process ends, which it may do with one of them."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(send, kind, make, seeds, limits))
    child.start()
    send.close()
    try:
        if receive.recv() != "ready":
            raise RuntimeError(f"the files of {kind!r} could not be made")
        for _ in seeds:
            change = receive.recv()
            try:
                if receive.poll(limits.clock):
                    yield Outcome(**receive.recv())
                    continue
                child.kill()
                yield Outcome(outcome="hang", change=change, text=f"more than {limits.clock} s by the clock")
            except EOFError:
                child.join()
                code = child.exitcode or 0
                end = signal.Signals(-code).name if code < 0 else f"status {code}"
                late = code == -signal.SIGXCPU
                yield Outcome(outcome="hang" if late else "raw", change=change, text=f"the process ended with {end}")
            return
    finally:
        child.kill()
        child.join()
        receive.close()


def _child(send: Any, kind: str, make: Callable[[], Target], seeds: Sequence[int], limits: Limits) -> None:
    torch.set_num_threads(1)
    target = make()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (int(limits.gibibytes * 2**30),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _stop)
    send.send("ready")
    for seed in seeds:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-files-"))
        try:
            trial = target(Random(f"{kind} {seed}"), folder)
            send.send(trial.change[:300])
            send.send(asdict(_judge(trial, limits.processor)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise TooLongError


def _judge(trial: Trial, seconds: int) -> Outcome:
    change = trial.change[:300]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 3 * seconds, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        wrong = trial.attempt()
    except TooLongError:
        return Outcome(outcome="hang", change=change, text=f"more than {seconds} s of processor time")
    except PararealizeError as error:
        text = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if fault := unreadable(text):
            return Outcome(outcome="raw", change=change, text=f"{type(error).__name__} whose message {fault}")
        return Outcome(outcome="typed", change=change, text=f"{type(error).__name__}: {text[:600]}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 (it becomes the outcome)
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = f"{type(error).__name__}: {_cleaned(str(error))[:600]}"
        return Outcome(outcome="raw", change=change, text=text, where=_line(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Outcome(outcome="silent" if wrong else "right", change=change, text=_cleaned(wrong)[:600])


def unreadable(text: str, longest: int = LONGEST) -> str:
    """What is wrong with a text that people are to read; nothing where nothing is."""
    if match := _CONTROL.search(text):
        return f"has the control character {match[0]!r}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"cannot be written: {error}"
    return f"has {len(text)} characters" if len(text) > longest else ""


def _cleaned(text: str) -> str:
    return _CONTROL.sub("�", text).encode("utf-8", "replace").decode()


def _line(error: BaseException) -> str:
    """The innermost line of the library's, or else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if re.search(r"/(pararealize|cli|pararealize_cli)/", frame.filename)]
    frame = (inside or frames)[-1]
    path = re.sub(r"^.*/(?=(?:pararealize|cli|pararealize_cli)/)", "", frame.filename)
    return f"{path}:{frame.lineno}"

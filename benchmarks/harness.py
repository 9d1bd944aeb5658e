"""What every experiment shares: the machine it ran on, results that survive a stop, one child process a measurement.

An experiment is a list of cases and a function case -> dict of plain values; :func:`run_cases` is the loop.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["Results", "exponent", "isolated", "machine", "median", "run_cases", "table"]

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "networkx")


def machine() -> dict[str, Any]:
    """Hardware and versions, as they stand beside every result."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


class Results:
    """A JSON file of one row a case, whole after every row, so that a run that was stopped goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {}
        self.rows: dict[str, dict[str, Any]] = found.get("rows", {})
        self.about: dict[str, Any] = found.get("about", {})

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        self.rows[name] = dict(row)
        self.save()

    def save(self) -> None:
        self.about = {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1, ensure_ascii=False) + "\n")
        whole.replace(self.path)


def run_cases(
    cases: Sequence[str],
    measure: Callable[[str], dict[str, Any]],
    results: Results,
    *,
    seconds: float,
    gibibytes: float,
    show: Callable[[dict[str, Any]], str],
) -> None:
    """Measure what has no row yet, each case in a process of its own, with a line of progress for each."""
    for i, name in enumerate(cases, start=1):
        if name in results.rows:
            continue
        row = isolated(lambda name=name: measure(name), seconds=seconds, gibibytes=gibibytes)
        results.add(name, row)
        print(f"[{i}/{len(cases)}] {name}: {show(row)}", file=sys.stderr, flush=True)


def isolated(work: Callable[[], dict[str, Any]], *, seconds: float, gibibytes: float) -> dict[str, Any]:
    """The dict that ``work`` returns in a child process, or ``{"failed": ..., "error": ...}`` where it returns none.

    The child is forked, to have what the parent has imported; so the parent must not have run torch itself.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(work, send, gibibytes), daemon=True)
    began = time.monotonic()
    child.start()
    send.close()
    try:
        row = (
            receive.recv() if receive.poll(seconds) else {"failed": "timeout", "error": f"not done after {seconds:g} s"}
        )
    except EOFError:
        child.join()
        row = {"failed": "killed", "error": f"the process ended with exit code {child.exitcode}"}
    child.kill()
    child.join()
    return {**row, "seconds": round(time.monotonic() - began, 1)}


def _child(work: Callable[[], dict[str, Any]], send: Any, gibibytes: float) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system can limit memory
        resource.setrlimit(resource.RLIMIT_DATA, (int(gibibytes * 2**30),) * 2)
    torch.set_num_threads(1)  # not before the fork: a pool of threads does not survive it
    try:
        row = work()
    except MemoryError:
        row = {"failed": "memory", "error": f"more than {gibibytes:g} GiB"}
    except Exception as error:  # noqa: BLE001 (it becomes the row)
        memory = "can't allocate memory" in str(error)
        row = {
            "failed": "memory" if memory else "crash",
            "error": f"{type(error).__name__}: {error}",
            "trace": traceback.format_exc()[-3000:],
        }
    send.send(row)
    send.close()


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of value = c · size^p, fitted to the logarithms by least squares; 1 is linear growth."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return slope / sum((a - x_mean) ** 2 for a in x)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(_table_lines(head, rows))


def _table_lines(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

"""What experiments share: the machine, results that survive a stop, a process of its own for each measurement.

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
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pararealize.files import whole_file

__all__ = ["Results", "exponent", "isolated", "machine", "row_of_command", "run_cases", "table"]

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
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


class Results:
    """A JSON file of one row a case, whole after every row, so that a run that was stopped goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = json.loads(path.read_text()) if path.exists() else {}
        self.rows: dict[str, dict[str, Any]] = content.get("rows", {})
        self.about: dict[str, Any] = content.get("about", {})

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        self.rows[name] = dict(row)
        self.save()

    def save(self) -> None:
        self.about = {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": self.about, "rows": self.rows}, indent=1, ensure_ascii=False)
        with whole_file(self.path) as part:
            part.write_text(text + "\n")


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


def row_of_command(module: str, *arguments: str) -> dict[str, Any]:
    """The row that ``python -m module arguments`` prints last, as JSON, in a process that has run nothing before."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)}: {process.stderr}")
    row: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return row


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of value = c · size^p, fitted to the logarithms by least squares; 1 is linear growth."""
    return statistics.linear_regression(list(map(math.log, sizes)), list(map(math.log, values))).slope


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(_table_lines(head, rows))


def _table_lines(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

"""The command: ``python -m benchmarks.graphs``.

Each group of ways, of one network, batch size, n and number of windows, runs in a process of its own with a limit; what
it has found stands in ``rows.jsonl`` at once, whatever ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine
from pararealize.files import whole_file

from .measure import ORIGINAL, PARAREAL, chains, measure
from .tables import markdown

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

# network, batch, n (0: the original), windows, seconds; what decides most comes first
SHORTEST = [
    ("resnet1001", 16, 0, 1, 60),
    ("resnet1001", 16, 12, 1, 85),
    ("resnet1001", 1, 0, 1, 45),
    ("resnet1001", 1, 12, 1, 75),
    ("decoder24", 1, 0, 1, 20),
    ("decoder24", 1, 6, 1, 25),
]
ALL = [
    *(("resnet1001", batch, 0, 1, 600) for batch in (1, 16, 32, 128)),
    *(("resnet1001", batch, n, m, 600) for batch in (1, 16, 32, 128) for n in (3, 6, 12) for m in (1, 4)),
    *((name, 1, n, m, 300) for name in ("vit24", "decoder24") for n, m in ((0, 1), (3, 1), (6, 1), (3, 4))),
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphs", description=__doc__)
    parser.add_argument("--shortest", action="store_true", help="the groups that decide most, in about 6 minutes")
    parser.add_argument("--double", action="store_true", help="small networks on a double of CUDA, on the CPU")
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--out", type=Path, help="folder of rows.jsonl and table.md; this one, or build/graphs-double")
    parser.add_argument("--only", help="a network by name, or chains")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.double and not torch.cuda.is_available():
        parser.error(
            f"this measures a GPU, and torch {torch.__version__} finds none here; run it where there is one, or with "
            "--double to see that every section runs"
        )
    if options.one:
        with _cuda(options.double):
            for row in _rows_of(options):
                print(json.dumps(row), flush=True)
        return 0
    out = options.out or (ROOT / "build" / "graphs-double" if options.double else FOLDER)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    about = {"section": "machine", **machine(), "device": _device(options.double), "cuda": torch.version.cuda}
    about["is measured"] = not options.double
    path.write_text(json.dumps(about) + "\n")
    sections: list[tuple[list[str], int]] = [(["chains"], 40)]
    groups = SHORTEST if options.shortest else ALL
    sections += [
        ([name, str(b), str(n), str(m)], s) for name, b, n, m, s in (_small(groups) if options.double else groups)
    ]
    for names, limit in sections:
        if options.only in (None, names[0]):
            _run(names, limit * (10 if options.double else 1), options, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with whole_file(out / "table.md") as part:
        part.write_text(markdown(rows))
    return 0


def _run(names: list[str], limit: int, options: argparse.Namespace, path: Path) -> None:
    """One process; its rows are added to the file as they come, and last how it ended."""
    begun = time.monotonic()
    command = [sys.executable, "-u", "-m", "benchmarks.graphs", "--steps", str(options.steps)]
    command += ["--double"] * options.double + ["--one", *names]
    with path.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, cwd=ROOT)
        try:
            _, errors = process.communicate(timeout=limit)
            end = "" if process.returncode == 0 else errors.decode(errors="replace")[-600:]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            end = f"stopped after {limit} s"
    seconds = round(time.monotonic() - begun, 1)
    with path.open("a") as file:
        file.write(json.dumps({"section": "end", "of": names, "seconds": seconds, "error": end}) + "\n")
    print(f"{' '.join(names)}: {seconds} s {end[-200:]}", file=sys.stderr, flush=True)


def _small(groups: Sequence[tuple[str, int, int, int, int]]) -> list[tuple[str, int, int, int, int]]:
    """Groups of as many kinds for the double: small networks of few segments, each kind once."""
    kinds: dict[tuple[str, int, int, int], int] = {}
    for name, batch, n, windows, seconds in groups:
        # nine segments of a ResNet-20 are its nine blocks, some of which can be stacked
        segments = 0 if n == 0 else 2 if windows > 1 else 9 if name.startswith("resnet") else 3
        kinds[name, min(batch, 2), segments, min(windows, 2)] = seconds
    return [(*kind, seconds) for kind, seconds in kinds.items()]


def _rows_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    name, *numbers = options.one
    if name == "chains":
        yield from chains(small=options.double)
        return
    batch, n, windows = map(int, numbers)
    ways = PARAREAL if n else ORIGINAL
    yield from measure(name, batch, n or None, windows, ways=ways, small=options.double, steps=options.steps)


def _cuda(double: bool) -> contextlib.AbstractContextManager[Any]:
    if not double:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[assignment]
        return contextlib.nullcontext()
    from tests.cuda_double import cuda_on_the_cpu

    return cuda_on_the_cpu()


def _device(double: bool) -> str:
    return "a double of CUDA on the CPU: no time means anything" if double else torch.cuda.get_device_name()


if __name__ == "__main__":
    sys.exit(main())

"""The command ``python -m benchmarks.kills.resume``: training runs that are ended at random moments, and gone on with.

A run of ``pararealize train``, of one process or of two under torchrun, is ended some times by a signal, each time gone
on with by the same command, and comes to its end. Its files then have to be those of the run that nothing befell.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, table

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM")
TARGETS = {1: ("process",), 2: ("torchrun", "first rank", "second rank", "all at once")}
CHAIN = 4  # ends of one run
MARK = "PARAREALIZE_BENCHMARK_RUN"
STARTING, ENDING = 300.0, 120.0  # seconds that a run gets to train, or to end after a signal, until it counts as stuck
NETWORK = """
from torch import nn

def net():
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Dropout(0.1)) for _ in range(6)]
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), *blocks, nn.Linear(64, 10))
"""
WORDS = (
    "train", "nets.py:net", "-n", "2", "--coarse", "linear", "--source", "stem", "--image-size", "8",
    "--epochs", "12", "--checkpoint-every", "5", "--log-every", "5", "--lr", "0.02", "--initialise", "none",
    "--no-tensorboard", "--timeout", "60", "--out", "run",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills.resume", description=__doc__)
    parser.add_argument("--ends", type=int, default=20, help="of runs of one process, and as many of two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of resume.json and resume.md")
    parser.add_argument("--again", action="store_true", help="measure anew what has a row already")
    options = parser.parse_args(arguments)
    results = Results(options.out / "resume.json")
    if options.again:
        results.rows.clear()
    for ranks in TARGETS:
        with tempfile.TemporaryDirectory() as name:
            whole: dict[str, bytes] = {}
            for chain in range(options.ends // CHAIN):
                case = f"{options.seed}-{ranks}-{chain}"
                if case in results.rows:
                    continue
                whole = whole or _whole(Path(name), ranks)
                results.add(case, _chain(Path(name) / case, ranks, f"{options.seed} {ranks} {chain}", whole))
                print(case, results.rows[case], file=sys.stderr, flush=True)
    text = markdown(list(results.rows.values()))
    (options.out / "resume.md").write_text(text)
    print(text)
    return int(not all(row["same bits"] and not row["stuck"] for row in results.rows.values()))


def _whole(folder: Path, ranks: int) -> dict[str, bytes]:
    with _started(folder / "whole", ranks) as process:
        if process.wait(STARTING) != 0:
            raise RuntimeError((folder / "whole" / "log").read_text())
    return _files(folder / "whole" / "run")


def _files(run: Path) -> dict[str, bytes]:
    """What has to be the same."""
    last = max((run / "checkpoints").iterdir())
    paths = [run / "metrics.jsonl", run / "weights.safetensors", run / "run.json", *sorted(last.iterdir())]
    # times differ from run to run, and so do their digest in the state and the state's in the manifest
    return {
        str(path.relative_to(run)): path.read_bytes() for path in paths if path.suffix != ".json" or path.parent == run
    }


def _chain(folder: Path, ranks: int, seed: str, whole: dict[str, bytes]) -> dict[str, Any]:
    """One run that is ended some times, and the last time left alone."""
    chance = random.Random(seed)
    row: dict[str, Any] = {"ranks": ranks, "ends": [], "stuck": 0, "before training": 0}
    for _ in range(CHAIN):
        target, kind = chance.choice(TARGETS[ranks]), chance.choice(SIGNALS)
        early, wait = chance.random() < 0.2, chance.uniform(0.0, 1.0)
        with _started(folder, ranks) as process:
            began = time.monotonic()
            if early:
                time.sleep(4 * wait)
            else:
                _until_it_trains(folder / "run", process)
                time.sleep(wait)
            row["before training"] += early
            if process.poll() is None:
                _strike(process, target, kind, folder)
            seconds = _end(process, folder)
        row["ends"].append(f"{kind} to {target} after {time.monotonic() - began:.1f} s")
        row["stuck"] += seconds is None
    with _started(folder, ranks) as process:
        row["status"] = process.wait(STARTING)
    if row["status"]:
        row["log"] = (folder / "log").read_text()[-2000:]
        return row | {"same bits": False}
    files = _files(folder / "run")
    return row | {"same bits": files == whole, "differing": [name for name in whole if files.get(name) != whole[name]]}


@contextlib.contextmanager
def _started(folder: Path, ranks: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command, which goes on with the run in a folder or begins one."""
    folder.mkdir(exist_ok=True)
    (folder / "nets.py").write_text(NETWORK)
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *launcher, "-m", "pararealize_cli", *WORDS, "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: str(folder)}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            for pid in _processes(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _processes(folder: Path) -> list[int]:
    """All processes of a run, by what stands in their environment."""
    mark = f"{MARK}={folder}".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes().split(b"\0"):
                pids.append(int(path.name))
    return sorted(pids)


def _ranks(folder: Path) -> dict[int, int]:
    """The processes of the ranks."""
    ranks = {}
    for pid in _processes(folder):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks |= {int(value[5:]): pid for value in variables if value.startswith(b"RANK=")}
    return ranks


def _until_it_trains(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until there is a checkpoint that was not there before."""
    before, until = _names(run), time.monotonic() + STARTING
    while process.poll() is None and not _names(run) - before:
        if time.monotonic() > until:
            raise RuntimeError(f"the run in {run} does not train: {(run.parent / 'log').read_text()[-2000:]}")
        time.sleep(0.01)


def _names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("step-*")}


def _strike(process: subprocess.Popen[bytes], target: str, kind: str, folder: Path) -> None:
    pids = [process.pid]
    if target == "all at once":
        pids = _processes(folder)
    elif target.endswith("rank"):
        rank = _ranks(folder).get(0 if target == "first rank" else 1)
        pids = [process.pid if rank is None else rank]
    elif kind == "SIGKILL" and target == "torchrun":  # nobody would end the ranks
        pids = _processes(folder)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, kind))


def _end(process: subprocess.Popen[bytes], folder: Path) -> float | None:
    """Seconds until all processes have ended; ``None`` where they do not."""
    began = time.monotonic()
    while process.poll() is None or _processes(folder):
        if time.monotonic() - began > ENDING:
            return None
        time.sleep(0.05)
    return time.monotonic() - began


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = []
    for ranks in TARGETS:
        runs = [row for row in rows if row["ranks"] == ranks]
        ends = [end for row in runs for end in row["ends"]]
        kinds = ", ".join(f"{sum(kind in end for end in ends)} {kind}" for kind in SIGNALS)
        same = sum(row["same bits"] for row in runs)
        lines.append((ranks, len(runs), len(ends), kinds, sum(row["stuck"] for row in runs), f"{same} of {len(runs)}"))
    head = ("processes", "runs", "ends", "by", "stuck", "runs with the bits of an undisturbed one")
    text = "Runs of `pararealize train` that were ended and gone on with, by `python -m benchmarks.kills.resume`."
    return f"# Resumed runs\n\n{text} See [README.md](README.md).\n\n{table(head, lines)}\n"


if __name__ == "__main__":
    sys.exit(main())

"""Plans, by the command: ``pararealize schedule --plan FILE``, run in this process; what it prints goes to a terminal.

An error of the library's ends the command with its message and status 2. A traceback, another status, and characters
that act on the terminal are faults.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from random import Random

from pararealize.errors import PlanError

from ..mutations import mutated_json
from ..trial import Trial, unreadable
from .folders import change_place
from .networks import planned

__all__ = ["Commands"]

NETS = """
import torch
from benchmarks.fuzz_files.targets.networks import images as network

def images():
    torch.manual_seed(0)
    return network()[0].eval()
"""
FAILED = 2


class Commands:
    """One network, which every command converts anew."""

    def __init__(self) -> None:
        self.row = planned(1)[0]
        self.home = Path(tempfile.mkdtemp(prefix="fuzz-files-nets-"))
        (self.home / "nets.py").write_text(NETS)

    def __call__(self, random: Random, folder: Path) -> Trial:
        file = folder / "plan.json"
        content, change = mutated_json(self.row.plan.to_json().encode(), random)
        file.write_bytes(content)
        if random.random() < 0.15:
            file.write_text(self.row.plan.to_json())
            change = change_place(file, random)
        shape, as_json = ",".join(map(str, self.row.x.shape[1:])), random.random() < 0.5
        words = ["schedule", f"{self.home}/nets.py:images", "--plan", str(file), "--input-shape", shape]

        def attempt() -> str:
            return _run([*words, *(["--json"] if as_json else [])])

        return Trial(change=change, attempt=attempt)


def _run(words: list[str]) -> str:
    from typer.testing import CliRunner

    from pararealize_cli.main import app

    sys.path[:] = dict.fromkeys([str(Path(__file__).parents[3]), *sys.path])
    os.environ["COLUMNS"] = "160"
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if fault := unreadable(result.stdout, 10**7) or unreadable(result.stderr):
        return f"what is printed {fault}"
    if result.exit_code == FAILED:
        raise PlanError(result.stderr or json.loads(result.stdout)["error"]["message"])
    return f"status {result.exit_code}: {result.output[-500:]}" if result.exit_code else ""

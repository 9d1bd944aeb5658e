"""Rows of results -> tables of errors, mean ± standard deviation over the seeds, as Markdown."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, table

__all__ = ["write"]


def write(results: Results, folder: Path) -> None:
    """The tables of what is there."""

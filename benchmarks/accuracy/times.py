"""Groups of runs -> the time to a fixed error: epochs, processor seconds in one process, and seconds on N devices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from benchmarks.harness import table

from .groups import Group
from .networks import FAMILIES

__all__ = ["TIMES", "time_table"]

TARGETS = {"digits": 0.05, "glyphs:clean": 0.1, "fashion_mnist": 0.15}
TIMES = (
    "mean epochs until the test error after an epoch is first at or below the target, over the seeds that reach it; "
    "processor seconds of that many epochs in one process on one thread; and *virtual* seconds, those of the "
    "original's steps divided by the plan's speed-up, which is a simulation with a device for each segment and free "
    "messages, times the steps taken."
)


def time_table(here: Sequence[Group]) -> str:
    """A row for each method, beside the original's."""
    head = (
        "network",
        "N",
        "windows",
        "coarse",
        "adapters read",
        "target",
        "reached",
        "epochs",
        "seconds",
        "virtual seconds",
        "gain",
    )
    lines = []
    originals = {group.family: group for group in here if not group.method.n}
    order = list(FAMILIES)
    for group in sorted(
        here,
        key=lambda g: (
            order.index(g.family),
            g.method.n,
            g.first.get("windows", 1),
            g.method.order + g.first.get("coarse_share", 0),
        ),
    ):
        base, target = originals.get(group.family), TARGETS[group.data]
        reached = _epochs(group, target)
        cells: list[object] = [
            FAMILIES[group.family].title, group.method.n or "", group.windows, group.method.kind or "original",
            group.method.reads, f"{100 * target:g}%", f"{len(reached)}/{len(group.rows)}",
        ]  # fmt: skip
        if not reached or base is None or not _epochs(base, target):
            lines.append([*cells, "", "", "", ""])
            continue
        epochs = statistics.mean(reached)
        virtual = epochs * _epoch_seconds(base) / group.speedup
        alone = statistics.mean(_epochs(base, target)) * _epoch_seconds(base)
        seconds = f"{epochs * _epoch_seconds(group):.1f}"
        lines.append([*cells, f"{epochs:.1f}", seconds, f"{virtual:.1f}", f"{alone / virtual:.2f}×"])
    return table(head, lines)


def _epochs(group: Group, target: float) -> list[int]:
    """Epochs until the target, of each seed that reaches it."""
    epochs = []
    for row in group.rows.values():
        passed = [i for i, error in enumerate(row.get("errors", ()), 1) if error <= target]
        epochs += passed[:1]
    return epochs


def _epoch_seconds(group: Group) -> float:
    """Processor seconds of an epoch, scoring included; the median of the runs."""
    seconds = [row["train_seconds"] / len(row["errors"]) for row in group.rows.values() if "train_seconds" in row]
    return statistics.median(seconds) if seconds else math.nan

"""Rows of results -> groups: the runs of one method of one family on one data set, by seed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from .methods import Method, method_of

__all__ = ["Group", "groups"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one method of one family on one data set, by seed, next to the original's of the same seeds."""

    data: str
    family: str
    name: str
    rows: Mapping[int, Mapping[str, Any]]
    originals: Mapping[int, Mapping[str, Any]]

    @property
    def method(self) -> Method:
        """The method of its name."""
        return method_of(self.name)

    @property
    def errors(self) -> list[float]:
        """By seed."""
        return [row["error"] for row in self.rows.values()]

    @property
    def first(self) -> Mapping[str, Any]:
        """Any run: what does not depend on the seed."""
        return next(iter(self.rows.values()))

    @property
    def windows(self) -> str:
        """How many, but for sequential blocks in front, in words; empty for the original."""
        if not self.method.n:
            return ""
        number = self.method.windows
        front = self.first.get("stem_share", 0) > 0  # one window of the plan
        return f"auto: {self.first.get('windows', 1) - front}" if number == "auto" else str(number)

    @property
    def segments(self) -> str:
        """N, and in brackets the segments of the longest window where it has no more blocks."""
        n, count = self.method.n, self.first.get("segments", self.method.n)
        return f"{n} ({count})" if count < n else str(n)

    @property
    def speedup(self) -> float:
        """What the plan predicts; with linear coarse blocks added up over ranks, where the row has that figure."""
        return float(self.first.get("summed_speedup", self.first.get("speedup", 1.0)))

    @property
    def excesses(self) -> list[float]:
        """Errors above the original's, a seed that both have each: the same weights, batches and order."""
        return [
            row["error"] - self.originals[seed]["error"] for seed, row in self.rows.items() if seed in self.originals
        ]

    @property
    def excess(self) -> float | None:
        """Mean error above the original's, over the seeds that both have."""
        return statistics.mean(self.excesses) if self.excesses else None


def groups(rows: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The rows by data set, family and method, in the order of the cases."""
    by_method: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        if "failed" not in row:
            data, family, method, seed = name.split("/")
            by_method.setdefault((data, family, method), {})[int(seed)] = row
    return [
        Group(data=d, family=f, name=m, rows=dict(sorted(g.items())), originals=by_method.get((d, f, "original"), {}))
        for (d, f, m), g in by_method.items()
    ]

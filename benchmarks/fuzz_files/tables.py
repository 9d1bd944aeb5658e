"""Outcomes of cases -> counts by kind of file and outcome, and the faults whole: as data, and as tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from benchmarks.harness import table

from .trial import OUTCOMES

__all__ = ["FAULTS", "markdown", "summary"]

FAULTS = ("raw", "hang", "silent")
_MOST_WORDS = 9


def summary(rows: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all that is told of cases, and the faults among them whole."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    typed: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for row in rows:
        if row["outcome"] == "typed":
            typed[row["kind"]][_first_words(row["text"])] += 1
    return {
        "cases": len(rows),
        "commits": dict(Counter(row["commit"] for row in rows).most_common()),
        "counts": {
            kind: {what: sum((row["kind"], row["outcome"]) == (kind, what) for row in rows) for what in OUTCOMES}
            for kind in kinds
        },
        "typed": {kind: dict(texts.most_common()) for kind, texts in typed.items()},
        "places of raw errors": len({row["where"] for row in rows if row["outcome"] == "raw"}),
        "faults": [dict(row) for row in rows if row["outcome"] in FAULTS],
    }


def _first_words(text: str) -> str:
    """The class of an error and its first words, without names and numbers."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\b\w*\d[\w.]*\b", "…", text)
    return " ".join(text.split()[:_MOST_WORDS])


def markdown(results: Mapping[str, Any]) -> str:
    """The counts as tables."""
    rows = [
        (kind, sum(counts.values()), *(counts[outcome] for outcome in OUTCOMES))
        for kind, counts in results["counts"].items()
    ]
    parts = [table(("files", "cases", *OUTCOMES), rows)]
    for kind, texts in results["typed"].items():
        if texts:
            parts.append(table((f"typed errors of {kind} begin with", "cases"), [*texts.items()][:12]))
    return "\n\n".join(parts) + "\n"

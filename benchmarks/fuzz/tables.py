"""Outcomes of examples -> counts by outcome, by what was refused and by effect: as data, and as tables."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from benchmarks.harness import table

__all__ = ["joined", "markdown", "seeds_of", "summary"]

_KINDS = ("right", "refused", "wrong", "crash", "no example")
_MOST_WORDS = 9


def summary(rows: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all that is told of examples, and the faults among them whole."""
    effects: dict[str, Counter[str]] = {}
    for row in rows:
        for effect in row["effects"] or ["no effect"]:
            effects.setdefault(effect, Counter())[row["kind"]] += 1
    refusals = Counter(f"{row['stage']}: {_first_words(row['text'])}" for row in rows if row["kind"] == "refused")
    return {
        "seeds": _ranges(row["seed"] for row in rows),
        "examples": len(rows),
        "commits": dict(Counter(row["commit"] for row in rows).most_common()),
        "counts": {kind: sum(row["kind"] == kind for row in rows) for kind in _KINDS},
        "refused": dict(refusals.most_common()),
        "effects": {name: dict(counts) for name, counts in sorted(effects.items())},
        "faults": [dict(row) for row in rows if row["kind"] in ("wrong", "crash")],
    }


def joined(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of both, which have no example in common."""

    def sums(key: str) -> dict[str, int]:
        return dict((Counter(earlier[key]) + Counter(later[key])).most_common())

    effects = sorted({*earlier["effects"], *later["effects"]})
    counts = {kind: earlier["counts"][kind] + later["counts"][kind] for kind in _KINDS}
    return {
        "seeds": _ranges({*seeds_of(earlier), *seeds_of(later)}),
        "examples": earlier["examples"] + later["examples"],
        "commits": sums("commits"),
        "counts": counts,
        "refused": sums("refused"),
        "effects": {
            name: dict(Counter(earlier["effects"].get(name, {})) + Counter(later["effects"].get(name, {})))
            for name in effects
        },
        "faults": [*earlier["faults"], *later["faults"]],
    }


def seeds_of(results: Mapping[str, Any]) -> set[int]:
    """The examples that were counted."""
    return set(itertools.chain(*(range(*ends) for ends in results["seeds"])))


def _ranges(seeds: Iterable[int]) -> list[list[int]]:
    """Seeds as ranges [first, last + 1)."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and ranges[-1][1] == seed:
            ranges[-1][1] += 1
        else:
            ranges.append([seed, seed + 1])
    return ranges


def _first_words(text: str) -> str:
    """The class of an error and its first words, without names and numbers."""
    text = re.sub(r"<fuzz \d+>:\d+ `[^`]*`|'[^']*'|\([^()]*\)|\b\w*\d[\w.]*\b|\bblocks\S*", "…", text)
    return " ".join(text.split()[:_MOST_WORDS])


def markdown(results: Mapping[str, Any]) -> str:
    """The counts as tables."""
    counts = results["counts"]
    share = {kind: f"{100 * count / max(1, results['examples']):.1f}%" for kind, count in counts.items()}
    by_effect = [
        (effect, *(kinds.get(kind, 0) or "" for kind in _KINDS)) for effect, kinds in results["effects"].items()
    ]
    parts = [
        table(("outcome", "examples", "share"), [(kind, counts[kind], share[kind]) for kind in _KINDS]),
        table(("refused at, with", "examples"), [*results["refused"].items()][:40]),
        table(("effect, alone or among others", *_KINDS), by_effect),
    ]
    return "\n\n".join(parts) + "\n"

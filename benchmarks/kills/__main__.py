"""The command: ``python -m benchmarks.kills``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Results, table

from . import disagreements, outside
from .plot import draw
from .run import KINDS, case, strike

FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Kinds of what befalls a rank, whose rows stand in one file.

    Attributes:
        kinds: by name.
        file: of the rows.
        case: number, seed, names of kinds -> what a run is to be.
        run: does it: when each process ended, whom or what each error names, the errors.
        right: whether the errors of a row name what they should.
        timeout: seconds after which a wait means a hang, where nothing else is asked for.
    """

    kinds: Collection[str]
    file: str
    case: Callable[[int, int, list[str]], dict[str, Any]]
    run: Callable[..., dict[str, Any]]
    right: Callable[[dict[str, Any]], bool]
    timeout: float = 3.0


GROUPS = {
    "faults": RunGroup(
        kinds=KINDS,
        file="results.json",
        case=case,
        run=strike,
        right=lambda row: set(row["named"].values()) == {row["rank"]},
    ),
    "disagreements": RunGroup(
        kinds=disagreements.DISAGREEMENTS,
        file="disagreements.json",
        case=disagreements.disagreement,
        run=disagreements.disagree,
        right=lambda row: all(row["named"].values()),
        timeout=60.0,  # nobody waits for it
    ),
    "outside": RunGroup(
        kinds=outside.OUTSIDE,
        file="outside.json",
        case=outside.occurrence,
        run=outside.befall,
        # one that hangs before the ranks have met is not watched, and left to the launcher
        right=lambda row: (
            all(row["named"].values()) and (row["culprit"] is not None or row["kind"] == "hang before distribute")
        ),
        timeout=8.0,  # in which all come to distribute, too
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--group", default="faults", choices=GROUPS, help="of the kinds")
    parser.add_argument("--kinds", nargs="+", help="some of the group's kinds, instead of all")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--timeout", type=float, help="seconds after which a wait means a hang")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the rows, table.md and seconds.svg")
    parser.add_argument("--json", action="store_true", help="print the summary and all rows as JSON")
    parser.add_argument("--again", action="store_true", help="measure anew what has a row already")
    options = parser.parse_args(arguments)
    group = GROUPS[options.group]
    kinds, timeout = options.kinds or list(group.kinds), options.timeout or group.timeout
    if unknown := set(kinds) - set(group.kinds):
        parser.error(f"{', '.join(sorted(unknown))} are none of {options.group}: {', '.join(group.kinds)}")

    results = Results(options.out / group.file)
    if options.again:
        results.rows.clear()
    for i in range(options.runs):
        name = f"{options.seed}-{i:03d}"
        if name in results.rows:
            continue
        row = group.case(i, options.seed, kinds)
        row |= {"timeout": timeout, **group.run(**row, timeout=timeout)}
        row["stuck"] = None in row["ended"].values()
        row["right"] = group.right(row)
        results.add(name, row)
        last = "stuck" if row["stuck"] else f"{max(row['ended'].values()):.3f} s"
        line = f"{row['kind']} rank {row['rank']} of {row['n']}: {last}, {'right' if row['right'] else row['errors']}"
        print(f"[{i + 1}/{options.runs}] {line}", file=sys.stderr, flush=True)
    rows = {name: list(Results(options.out / one.file).rows.values()) for name, one in GROUPS.items()}
    summaries = {name: summarise(some, GROUPS[name].kinds) for name, some in rows.items() if some}
    (options.out / "table.md").write_text(markdown(summaries))
    draw(
        {kind: [slowest(row) for row in rows["faults"] if row["kind"] == kind and not row["stuck"]] for kind in KINDS},
        GROUPS["faults"].timeout,
        options.out / "seconds.svg",
    )
    summary = summaries.get(options.group, {})
    shown = {options.group: summary}
    print(json.dumps({"summary": summary, "rows": results.rows}, indent=1) if options.json else markdown(shown))
    return int(any(row["stuck"] or not row["right"] for row in results.rows.values()))


def slowest(row: dict[str, Any]) -> float:
    """Seconds until the last survivor had ended."""
    return max(row["ended"].values())


def summarise(rows: list[dict[str, Any]], kinds: Collection[str]) -> dict[str, dict[str, Any]]:
    """Counts and seconds, by what befell the rank and for all."""
    groups = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    return {kind: _counts(group) for kind, group in {**groups, "all": rows}.items() if group}


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [slowest(row) for row in rows if not row["stuck"]]
    return {
        "runs": len(rows),
        "stuck": sum(row["stuck"] for row in rows),
        "right": sum(row["right"] for row in rows),
        "median": round(median(seconds), 3) if seconds else None,
        "longest": round(max(seconds), 3) if seconds else None,
    }


def markdown(summaries: Mapping[str, dict[str, dict[str, Any]]]) -> str:
    head = ("", "runs", "stuck", "right culprit", "median s", "longest s")
    text = "Seconds from what befell one rank until the last of the others had ended, by `python -m benchmarks.kills`."
    tables = [
        f"## {name.capitalize()}\n\n{table(head, [(kind, *row.values()) for kind, row in summary.items()])}\n"
        for name, summary in summaries.items()
    ]
    return "\n".join([f"# Kills\n\n{text} See [README.md](README.md).\n", *tables])


if __name__ == "__main__":
    sys.exit(main())

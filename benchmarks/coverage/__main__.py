"""The command: ``python -m benchmarks.coverage``.

Rows that ``results.json`` has already are kept, so a run that was stopped goes on; ``table.md`` is written anew.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, run_cases

from . import cases
from .check import commit, measure
from .tables import markdown, result, summary, unjustified

FOLDER = Path(__file__).parent
_MARKS = ("<!-- result -->", "<!-- end of result -->")  # in README.md


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="such as 'torchvision:vit_*' 'hf:*'")
    parser.add_argument(
        "--again", nargs="?", const="*", metavar="PATTERN", help="measure these anew ('failed': what failed)"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and table.md")
    parser.add_argument("--merge", nargs="+", type=Path, default=[], help="folders whose rows are taken over as well")
    parser.add_argument("--seconds", type=float, default=600, help="limit for one model")
    parser.add_argument("--gibibytes", type=float, default=14, help="memory limit for one model")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    for library in ("timm", "transformers", "torch.fx.experimental.symbolic_shapes"):
        importlib.import_module(library)  # once, for all the processes that are forked from this one
    commit()  # of what is imported now, whatever the folder holds later
    results = Results(options.out / "results.json")
    for folder in options.merge:
        results.rows |= Results(folder / "results.json").rows
    names = [name for name in cases.names() if _matches(name, options.only)]
    for name in [n for n in names if n in results.rows and _is_due(n, results.rows[n], options.again)]:
        del results.rows[name]
    run_cases(names, measure, results, seconds=options.seconds, gibibytes=options.gibibytes, show=show)
    order = [name for name in cases.names() if name in results.rows]
    results.rows = {name: results.rows[name] for name in order}
    results.save()
    (options.out / "table.md").write_text(markdown(results))
    if options.out == FOLDER:
        _write_readme(result(results))
    rows = {name: results.rows[name] for name in names if name in results.rows}
    print(json.dumps(rows, indent=1, ensure_ascii=False) if options.json else summary(results.rows))
    if missing := unjustified(rows):
        print(f"refused, and nobody has said why: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing or any(row.get("failed", "refused") != "refused" for row in rows.values()) else 0


def _write_readme(text: str) -> None:
    """Put the result between its marks in README.md."""
    path = FOLDER / "README.md"
    before, _, rest = path.read_text().partition(_MARKS[0])
    path.write_text(f"{before}{_MARKS[0]}\n{text}\n{_MARKS[1]}{rest.partition(_MARKS[1])[2]}")


def _matches(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_due(name: str, row: dict[str, Any], again: str | None) -> bool:
    if again is None:
        return False
    return "failed" in row if again == "failed" else fnmatch.fnmatchcase(name, again)


def show(row: dict[str, Any]) -> str:
    """A row in one line of progress."""
    if "failed" in row:
        return f"{row['failed']} at {row.get('stage', '?')}: {row['error'][:300]} ({row['seconds']} s)"
    meta = " on the meta device" if row["meta"] else ""
    refused = [column for column, verdict in row["columns"].items() if verdict == "refused"]
    but = f", but refuses {', '.join(refused)}" if refused else ""
    return f"n = {row['n']} of {row['blocks']} blocks ({row['kinds']}){meta}{but}, {row['seconds']} s"


if __name__ == "__main__":
    sys.exit(main())

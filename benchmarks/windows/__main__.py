"""The command: ``python -m benchmarks.windows``. Each case runs in a process of its own, on one thread.

python -m benchmarks.windows --networks decoder
python -m benchmarks.windows --networks minilm --minilm FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, run_cases, table

from . import text

FOLDER = Path(__file__).parent
NETWORKS = ("decoder", "minilm")
# n, windows, blocks that stay as they are in front, behind; where nothing is said, all layers take part
SCHEDULES = {
    "decoder": {
        "pairs, middle half": (2, 3, 3, 3),
        "pairs, all but the ends": (2, 5, 1, 1),
        "pairs, all": (2, 6, 0, 0),
        "2 windows of 2 × 3": (2, 2, 0, 0),
        "1 window of 2 × 6": (2, 1, 0, 0),
        "4 windows of 3 × 1": (3, 4, 0, 0),
        "3 windows of 4 × 1": (4, 3, 0, 0),
        "1 window of 4 × 3": (4, 1, 0, 0),
    },
    "minilm": {
        "one pair, layers 3 and 4": (2, 1, 2, 2),
        "two pairs in the middle": (2, 2, 1, 1),
        "three pairs": (2, 3, 0, 0),
        "two windows of 3 × 1": (3, 2, 0, 0),
    },
}
KINDS = ("linear", "scale", "low-rank:32", "dense")  # the first one is the published method: sums
TRAINED = ("linear", "low-rank:32")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=("decoder",))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--trained", nargs="*", choices=KINDS, default=TRAINED, help="kinds to train a little, too")
    parser.add_argument("--minilm", type=Path, help="folder with the weights of all-MiniLM-L6-v2")
    parser.add_argument("--weights", type=Path, default=Path("out"), help="where networks trained here are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and table.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    if "minilm" in options.networks and options.minilm is None:
        from .minilm import HOW_TO_GET_IT

        print(f"all-MiniLM-L6-v2 is left out: {HOW_TO_GET_IT}", file=sys.stderr)
        options.networks = [network for network in options.networks if network != "minilm"]
    results = Results(options.out / "results.json")
    cases = [
        f"{network}; {schedule}; {kind}{suffix}"
        for suffix, kinds in (("", options.kinds), ("; trained", options.trained))
        for network in options.networks
        for schedule in SCHEDULES[network]
        for kind in kinds
    ]
    if options.trained and "decoder" in options.networks:
        cases.append("decoder; the original; none; trained")
    for held_out in (False, True):
        text.docstrings(held_out=held_out)  # read once, before the processes of the cases part

    def measure(case: str) -> dict[str, Any]:
        from .measure import measure  # torch must not run before the fork

        network, schedule, kind, *trained = case.split("; ")
        shape = SCHEDULES[network].get(schedule)
        return measure(network, shape, kind, train=bool(trained), weights=options.weights, minilm_folder=options.minilm)

    run_cases(cases, measure, results, seconds=3000, gibibytes=12, show=_show)
    (options.out / "table.md").write_text(markdown(results.rows))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results.rows))
    return 0


def _show(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['failed']}: {row['error']}"
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float))


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    return "\n\n".join(_sections(rows)) + "\n"


def _sections(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "# Windows of trained networks"
    yield "Written by `python -m benchmarks.windows`; see [README.md](README.md)."
    for network, figures in (
        ("decoder", (("closed form", "excess"), ("+ a tenth of the training", "excess_trained"))),
        (
            "minilm",
            (("cosine", "cosine"), ("worst", "worst"), ("same nearest", "same_nearest"), ("distilled", "distilled")),
        ),
    ):
        lines = [["schedule", "n", "coarse", "speed-up", *(title for title, _ in figures)]]
        for case, row in rows.items():
            name, schedule, kind, *trained = case.split("; ")
            if name != network or "failed" in row or trained:
                continue
            row = row | rows.get(f"{case}; trained", {})
            numbers = [_number(network, row.get(key)) for _, key in figures]
            lines.append([schedule, str(row["n"]), f"`{kind}`", f"{row['speedup']:.2f}×", *numbers])
        if len(lines) > 1:
            yield f"## {network}"
            yield table(lines[0], lines[1:])


def _number(network: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:+.1f}%" if network == "decoder" else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())

"""The command: ``python -m benchmarks.pretrained``. Each case runs in a process of its own, on one thread.

python -m benchmarks.pretrained --networks minilm
python -m benchmarks.pretrained --only "three pairs"
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import Results, run_cases, table
from pararealize.figure import save_figure

from . import sources
from .cases import CASES, GOALS, NETWORKS, Case

FOLDER = Path(__file__).parent
STAGES = ("before", "calibrated", "distilled")
# of each network: the figure that decides, and those that stand beside it
FIGURES = {
    "minilm": (("cosine", "cosine"), ("worst", "worst"), ("same_nearest", "same nearest")),
    "efficientnet-lite0": (("agreement", "same class"), ("correlation", "correlation of logits")),
    "efficientnet-lite2": (("agreement", "same class"), ("correlation", "correlation of logits")),
    **dict.fromkeys(
        ("fashion-mnist", "fashion-resnet56", "fashion-vit"),
        (("kept", "accuracy against the original's"), ("accuracy", "accuracy")),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="cases whose name has one of these in it")
    parser.add_argument("--data", type=Path, default=Path("out"), help="where weights and pictures are, and are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and front.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    there = []
    for network in options.networks:
        missing = sources.missing(network, options.data)
        if missing:
            print(f"LEFT OUT: {network}: {missing}", file=sys.stderr, flush=True)
        else:
            there.append(network)
    cases = {
        case.name: case
        for case in CASES
        if case.network in there and (not options.only or any(text in case.name for text in options.only))
    }
    results = Results(options.out / "results.json")

    def measure(name: str) -> dict[str, Any]:
        from .measure import measure  # torch must not run before the fork

        return measure(cases[name], options.data)

    run_cases(list(cases), measure, results, seconds=6000, gibibytes=12, show=_show)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(markdown(results.rows))
    if any("failed" not in row for row in results.rows.values()):
        draw(results.rows, options.out / "front.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results.rows))
    return 0


def _show(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['failed']}: {row['error']}"
    stages = (f"{stage} {', '.join(f'{n} {x:.3f}' for n, x in row['stages'][stage].items())}" for stage in _of(row))
    return f"{row['speedup']:.2f}×; {'; '.join(stages)}"


def _of(row: dict[str, Any]) -> list[str]:
    return [stage for stage in STAGES if stage in row["stages"]]


def _rows(rows: dict[str, dict[str, Any]], network: str) -> Iterator[tuple[Case, dict[str, Any]]]:
    """The rows of a network that were measured, slow ones first."""
    cases = {case.name: case for case in CASES}
    found = [(cases[name], row) for name, row in rows.items() if name in cases and "failed" not in row]
    yield from sorted(((case, row) for case, row in found if case.network == network), key=lambda of: of[1]["speedup"])


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    return "\n\n".join(_sections(rows)) + "\n"


def _sections(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "# Networks with trained weights: error against speed"
    yield "Written by `python -m benchmarks.pretrained`; see [README.md](README.md)."
    for network in NETWORKS:
        measured = list(_rows(rows, network))
        if not measured:
            continue
        yield f"## {network}"
        titles = [f"{title}: {' → '.join(STAGES)}" for _, title in FIGURES[network]]
        head = ("cut", "n", "coarse", "speed-up", *titles, "how")
        yield table(head, [_line(case, row) for case, row in measured])
        for goal, best, met in goals(rows, network):
            word = "met" if met else "missed"
            yield f"Goal, {goal}: **{word}**; the best at this speed or above is {best}."


def _line(case: Case, row: dict[str, Any]) -> list[str]:
    figures = (
        " → ".join(f"{row['stages'][stage][figure]:.3f}" for stage in _of(row)) for figure, _ in FIGURES[case.network]
    )
    return [
        case.schedule,
        str(row["n"]),
        f"`{case.coarse}`",
        f"{row['speedup']:.2f}×",
        *figures,
        ", ".join(case.how),
    ]


def goals(rows: dict[str, dict[str, Any]], network: str) -> Iterator[tuple[str, str, bool]]:
    """Each goal in words, the best that was measured at its speed, and whether it is met; seeds count by their mean."""
    for goal in GOALS[network]:
        fast: dict[str, list[float]] = {}
        for case, row in _rows(rows, network):
            if row["speedup"] >= goal.speedup:
                figures = fast.setdefault(dataclasses.replace(case, seed=0).name, [])
                figures.append(max(row["stages"][stage][goal.figure] for stage in _of(row)))
        best, name = max(((statistics.fmean(some), name) for name, some in fast.items()), default=(-math.inf, ""))
        seeds = f", the mean of {len(fast[name])} seeds" if len(fast.get(name, ())) > 1 else ""
        yield goal.text, f"{best:.4f} ({name}{seeds})" if fast else "none, as no case is so fast", best >= goal.least


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The deciding figure of every network against the predicted speed-up, calibrated and distilled, and the goals."""
    networks = [network for network in NETWORKS if next(_rows(rows, network), None)]
    lines = math.ceil(len(networks) / 2)  # of two panels
    figure = Figure(figsize=(9, 4 * lines), layout="constrained")
    looks = {"before": ("x", "#9fb3c8"), "calibrated": ("o", "#2b77b8"), "distilled": ("s", "#d9822b")}
    panels = [figure.add_subplot(lines, 2, i + 1) for i in range(len(networks))]
    for axes, network in zip(panels, networks, strict=True):
        name, title = FIGURES[network][0]
        for stage, (marker, colour) in looks.items():
            points = [
                (row["speedup"], row["stages"][stage][name]) for _, row in _rows(rows, network) if stage in _of(row)
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=28, label=stage)
        for goal in GOALS[network]:
            axes.plot(goal.speedup, goal.least, marker="*", ls="", ms=11, color="black", label=f"goal: {goal.text}")
        axes.set_title(network)
        axes.set_xlabel("predicted speed-up")
        axes.set_ylabel(title)
        axes.legend(fontsize=7, framealpha=0.5)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())

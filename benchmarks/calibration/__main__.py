"""The command: ``python -m benchmarks.calibration``.

Each network and seed runs in a process of its own, on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import Results, run_cases, table
from pararealize.figure import save_figure

FOLDER = Path(__file__).parent
NETWORKS = ("resnet20", "vit")
STAGES = ("before", "after", "fine-tuned")
GOAL = 0.01  # of accuracy


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and lost.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    results = Results(options.out / "results.json")
    cases = [f"{network}, seed {seed}" for seed in range(options.seeds) for network in options.networks]
    run_cases(cases, _measure, results, seconds=3000, gibibytes=12, show=_show)
    (options.out / "table.md").write_text(markdown(results.rows))
    draw(results.rows, options.out / "lost.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results.rows))
    return 0


def _measure(case: str) -> dict[str, Any]:
    from .measure import measure  # torch must not run before the fork

    network, _, seed = case.partition(", seed ")
    return measure(network, int(seed))


def _show(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['failed']}: {row['error']}"
    kinds = (f"{kind} {_percent(cell['stages'].get('fine-tuned', 0.0))}" for kind, cell in row["kinds"].items())
    return f"original {_percent(row['accuracy'])}, fine-tuned {', '.join(kinds)}, {row['seconds']:.0f} s"


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    return "\n\n".join(_sections(rows)) + "\n"


def _sections(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "# Calibration of trained networks"
    yield "Written by `python -m benchmarks.calibration`; see [README.md](README.md). Test accuracy in %."
    head = (
        "network",
        "seeds",
        "original",
        "coarse",
        "coarse FLOPs",
        "speed-up",
        *STAGES,
        "lost",
        "cost of calibration",
        "steps",
    )
    lines = []
    for network, kind, losses in lost(rows):
        runs = losses["rows"]
        calibrated = [row["kinds"][kind]["calibrate_seconds"] / row["train_seconds"] for row in runs]
        lines.append(
            (
                network,
                len(runs),
                _several([row["accuracy"] for row in runs]),
                kind,
                f"{100 * runs[0]['kinds'][kind]['share']:.0f} %",
                f"{runs[0]['kinds'][kind]['speedup']:.2f}",
                *(_several([row["kinds"][kind]["stages"][stage] for row in runs]) for stage in STAGES),
                f"{100 * losses['fine-tuned']:.1f}" + (" ✓" if losses["fine-tuned"] <= GOAL else ""),
                f"{100 * mean(calibrated):.0f} %",
                f"{runs[0]['kinds'][kind]['fine_tune_steps']} of {runs[0]['steps']}",
            )
        )
    yield table(head, lines)
    yield (
        "*lost*: percentage points between the original and the fine-tuned network, ✓ where at most one. *coarse*: "
        "behind ~, how many blocks are in the stem. *coarse FLOPs*: of those of the segments. *speed-up*: of a step "
        "with a device a segment, by the plan's count. *cost of calibration*: processor time, of that of training the "
        "original. *steps*: of fine-tuning, of training the original."
    )


def lost(rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(network, kind, mean accuracy lost at every stage and the rows) of what was measured."""
    good = [row for row in rows.values() if "failed" not in row]
    for network in dict.fromkeys(row["network"] for row in good):
        runs = [row for row in good if row["network"] == network]
        for kind in runs[0]["kinds"]:
            losses: dict[str, Any] = {"rows": runs}
            for stage in STAGES:
                losses[stage] = mean(row["accuracy"] - row["kinds"][kind]["stages"][stage] for row in runs)
            yield network, kind, losses


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of the percentage points lost, after calibration and after fine-tuning."""
    losses = list(lost(rows))
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    looks = {"after": ("calibrated", "", "#9fb3c8"), "fine-tuned": ("and fine-tuned", "//", "#d9822b")}
    for i, (stage, (label, hatch, colour)) in enumerate(looks.items()):
        places = [k + 0.38 * (i - 0.5) for k in range(len(losses))]
        heights = [100 * values[stage] for _, _, values in losses]
        bars = axes.bar(places, heights, 0.36, label=label, hatch=hatch, color=colour, edgecolor="white")
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.axhline(100 * GOAL, color="black", lw=1, ls="--", label="one percentage point")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(top=200)
    kinds = [kind.replace("~", "\nstem + ") for _, kind, _ in losses]
    names = [f"{network}\n{kind}" for (network, _, _), kind in zip(losses, kinds, strict=True)]
    axes.set_xticks(range(len(losses)), names, fontsize=7)
    axes.set_ylabel("percentage points of test accuracy lost")
    axes.set_title("a trained network as 4 segments")
    axes.legend()
    save_figure(figure, path)


def _several(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


if __name__ == "__main__":
    sys.exit(main())

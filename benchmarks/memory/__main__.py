"""The command: ``python -m benchmarks.memory``.

For each number of ranks, that many processes train a converted ResNet for two steps; each reports its parameters,
what autograd keeps for the backward pass, and how far its resident memory rises during the second step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.multiprocessing as multiprocessing
from matplotlib.figure import Figure

from benchmarks.harness import Results, table
from benchmarks.ranks import free_port
from pararealize.figure import save_figure

from .measure import run

FOLDER = Path(__file__).parent
NETWORK = "resnet1001"
COARSE = ("linear", "depthwise", "paper")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--network", default=NETWORK, help="one of pararealize's own, such as resnet110")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--coarse", nargs="+", default=list(COARSE))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and memory.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    results = Results(options.out / "results.json")
    for coarse in options.coarse:
        for ranks in options.ranks:
            row = _row(options.network, ranks, coarse, options.batch)
            results.add(f"{options.network}, {coarse}, {ranks} ranks", row)
            worst = max(row["total_mib"])
            print(f"{options.network}, {coarse}, {ranks} ranks: {worst:.0f} MiB on the fullest", file=sys.stderr)
    (options.out / "table.md").write_text(markdown(results))
    draw(list(results.rows.values()), options.out / "memory.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def _row(network: str, ranks: int, coarse: str, batch: int) -> dict[str, Any]:
    report: Any = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.start_processes(
        run, (ranks, free_port(), network, coarse, batch, report), nprocs=ranks, start_method="spawn"
    )
    rows = sorted((report.get() for _ in range(ranks)), key=lambda row: row["rank"])
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "rank"}
    return {"network": network, "ranks": ranks, "coarse": coarse, "batch": batch, **columns}


def markdown(results: Results) -> str:
    return "\n\n".join(_sections(list(results.rows.values()))) + "\n"


def _sections(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "# Memory per rank"
    yield "Written by `python -m benchmarks.memory`; see [README.md](README.md). MiB of the fullest rank."
    head = (
        "coarse",
        "ranks",
        "parameters",
        "weights, gradients, momentum",
        "kept for backward",
        "both",
        "of one rank",
        "risen",
    )
    lines = []
    for row in rows:
        one = next((max(r["total_mib"]) for r in rows if r["coarse"] == row["coarse"] and r["ranks"] == 1), None)
        most = max(row["total_mib"])
        share = f"{most / one:.2f}" if one else "–"
        columns = (f"{max(row[key]):.0f}" for key in ("state_mib", "kept_mib", "total_mib"))
        lines.append(
            (
                row["coarse"],
                row["ranks"],
                f"{max(row['parameters']) / 1e6:.2f}M",
                *columns,
                share,
                f"{max(row['risen_mib']):.0f}",
            )
        )
    yield table(head, lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The fullest rank's memory against the number of ranks, one line a coarse kind, with 1/N beside them."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind, marker in zip(dict.fromkeys(row["coarse"] for row in rows), "osv^D", strict=False):
        ours = sorted((row["ranks"], max(row["total_mib"])) for row in rows if row["coarse"] == kind)
        axes.plot(*zip(*ours, strict=True), f"{marker}-", label=f'coarse="{kind}"')
    one = max(max(row["total_mib"]) for row in rows if row["ranks"] == 1)
    ranks = sorted({row["ranks"] for row in rows})
    axes.plot(ranks, [one / n for n in ranks], "--", color="grey", label="1/N")
    axes.set(xscale="log", yscale="log", xlabel="ranks, one segment each", ylabel="MiB on the fullest rank")
    axes.set_xticks(ranks, [str(n) for n in ranks])
    axes.minorticks_off()
    axes.set_title("weights, gradients, momentum and what backward needs")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())

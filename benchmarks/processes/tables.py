"""Rows of medians -> a Markdown table and a picture of ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import Results, table
from pararealize.figure import save_figure

__all__ = ["draw", "markdown", "ratios"]

Rows = Mapping[str, Mapping[str, Any]]
_PARAREAL = "parareal "
_GOALS = {  # of ResNet-1001, forward and backward: the best parareal network against these
    "resnet1001, batch 1": {"one thread": 1.9, "all threads": 1.8, "pipelining": 1.8},
    "resnet1001, batch 8": {"one thread": 1.85, "all threads": 1.15},
}


def ratios(row: Mapping[str, Any], quantity: str = "step") -> dict[str, float]:
    """How many times faster the fastest parareal network is than each rival; pipelining is its best schedule."""
    seconds = {name: cell[quantity]["median"] for name, cell in row.items() if quantity in cell}
    ours = min((s for name, s in seconds.items() if name.startswith(_PARAREAL)), default=None)
    if ours is None:
        return {}
    pipelines = [s for name, s in seconds.items() if name.startswith(("GPipe", "1F1B"))]
    rivals = {name: s for name, s in seconds.items() if name in ("one thread", "all threads", "DDP")}
    if pipelines:
        rivals["pipelining"] = min(pipelines)
    return {name: s / ours for name, s in rivals.items()}


def markdown(results: Results) -> str:
    """Everything, one table a quantity."""
    return "\n\n".join(_sections(_in_order(results.rows))) + "\n"


def _in_order(rows: Rows) -> Rows:
    """By network, as they came, and within by batch."""
    networks = list(dict.fromkeys(case.split(", batch ")[0] for case in rows))

    def place(case: str) -> tuple[int, int]:
        network, _, batch = case.partition(", batch ")
        return networks.index(network), int(batch)

    return {case: rows[case] for case in sorted(rows, key=place)}


def _sections(rows: Rows) -> Iterator[str]:
    yield "# Two processes: step time and latency"
    yield "Written by `python -m benchmarks.processes`; see [README.md](README.md)."
    yield "## How many times faster the fastest parareal network is"
    yield table(("", "than one thread", "than all threads", "than DDP", "than pipelining"), _against(rows, "step"))
    yield "Forward and backward; below 1 it loses."
    if any(_against(rows, "latency")):
        yield "## The same, for the latency of one request"
        yield table(("", "than one thread", "than all threads"), [r[:3] for r in _against(rows, "latency")])
    if goals := list(_goals(rows)):
        yield "## Goals"
        yield table(("", "against", "goal", "here"), goals)
    if predictions := list(_predictions(rows)):
        yield "## What the timeline predicts"
        yield table(("", "way", "predicted ms", "real ms", "predicted / real"), predictions)
    for quantity, title in {
        "step": "Forward and backward",
        "update": "The optimiser's update",
        "latency": "Latency",
    }.items():
        names = dict.fromkeys(name for row in rows.values() for name in row if quantity in row[name])
        yield f"## {title}, milliseconds"
        lines = [(case, *(_cell(row.get(name, {}).get(quantity)) for name in names)) for case, row in rows.items()]
        yield table(("", *names), [line for line in lines if any(cell != "–" for cell in line[1:])])
    if any("memory" in cell for row in rows.values() for cell in row.values()):
        names = dict.fromkeys(name for row in rows.values() for name in row)
        yield "## Weights, gradients, momentum and what backward needs, on the fullest rank, MiB"
        lines = [(case, *(_mebibytes(row.get(name, {}).get("memory")) for name in names)) for case, row in rows.items()]
        yield table(("", *names), lines)


def _against(rows: Rows, quantity: str) -> list[tuple[str, ...]]:
    cell = {case: ratios(row, quantity) for case, row in rows.items()}
    rivals = ("one thread", "all threads", "DDP", "pipelining")
    return [
        (case, *(f"{ratio[rival]:.2f}" if rival in ratio else "–" for rival in rivals))
        for case, ratio in cell.items()
        if ratio
    ]


def _goals(rows: Rows) -> Iterator[tuple[str, ...]]:
    for case, goals in _GOALS.items():
        here = ratios(rows.get(case, {}))
        yield from ((case, rival, f"{goal:g}", f"{here[rival]:.2f}") for rival, goal in goals.items() if rival in here)


def _predictions(rows: Rows) -> Iterator[tuple[str, ...]]:
    for case, row in rows.items():
        for name, cell in row.items():
            if "predicted" in cell and "step" in cell:
                guess, real = cell["predicted"]["median"], cell["step"]["median"]
                yield case, name, f"{guess * 1e3:.1f}", f"{real * 1e3:.1f}", f"{guess / real:.2f}"


def _cell(cell: Mapping[str, Any] | None) -> str:
    return "–" if cell is None else f"{cell['median'] * 1e3:.1f}"


def _mebibytes(cell: Mapping[str, Any] | None) -> str:
    return "–" if cell is None else f"{cell['median'] / 2**20:.0f}"


def draw(rows: Rows, path: Path) -> None:
    """Bars of ratios by network and batch, with a line at 1."""
    rivals = {"one thread": "", "all threads": "//", "DDP": "..", "pipelining": "xx"}
    cases = [case for case in _in_order(rows) if ratios(rows[case])]
    figure = Figure(figsize=(max(6.0, 1.3 * len(cases)), 4), layout="constrained")
    axes = figure.subplots()
    for i, (rival, hatch) in enumerate(rivals.items()):
        places = [k + 0.2 * (i - 1.5) for k in range(len(cases))]
        heights = [ratios(rows[case]).get(rival, 0.0) for case in cases]
        axes.bar(places, heights, 0.19, label=f"than {rival}", hatch=hatch, edgecolor="white")
    axes.axhline(1, color="black", lw=1)
    axes.set_xticks(range(len(cases)), [case.replace(", ", "\n") for case in cases])
    axes.set_ylabel("times faster, forward and backward")
    axes.set_title("parareal on two processes of one thread")
    figure.legend(fontsize=8, ncols=4, loc="outside lower center")
    save_figure(figure, path)

"""Rows of times -> a Markdown table of ratios, and a picture of simulated steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness import Results, table

__all__ = ["TORCHBRAID", "goal", "markdown", "ratio"]

Rows = Mapping[str, Mapping[str, Any]]
GOAL = 0.8  # of TorchBraid's ratio to serial
# milliseconds of a step, by another program on another machine: serial PyTorch beside it
TORCHBRAID: dict[int, dict[str, float]] = {
    64: {"one thread": 215, "two threads": 134, "c4 2/1": 281, "c8 2/1": 221, "c8 1/1": 169},
    128: {"one thread": 424, "two threads": 280, "c4 2/1": 588, "c8 2/1": 461, "c8 1/1": 387},
}


def ratio(row: Mapping[str, Any], way: str, serial: str = "one thread", quantity: str = "median") -> float:
    """A way's time in terms of a serial step's."""
    return float(row[way]["step"][quantity] / row[serial]["step"][quantity])


def goal(steps: int, way: str, serial: str = "one thread") -> float | None:
    """What the ratio is to be at most, where TorchBraid's is known."""
    published = TORCHBRAID.get(steps, {})
    return GOAL * published[way] / published[serial] if way in published else None


def markdown(results: Results) -> str:
    """Everything."""
    return "\n\n".join(_sections(results.rows)) + "\n"


def _sections(rows: Rows) -> Iterator[str]:
    yield "# Layer-parallel multigrid on two ranks"
    yield "Written by `python -m benchmarks.multigrid`; see [README.md](README.md)."
    depths = {name: row for name, row in rows.items() if name.startswith("N = ")}
    for serial in ("one thread", "two threads"):
        yield f"## Time of a step in terms of serial PyTorch on {serial}"
        head = ("", "way", "here", "here, fastest steps", "TorchBraid", "goal", "reached", "gradient error")
        yield table(head, list(_ratios(depths, serial)))
    yield "## Milliseconds, medians"
    names = list(dict.fromkeys(way for row in depths.values() for way in row))
    yield table(("", *names), [(case, *(_cell(row.get(way)) for way in names)) for case, row in depths.items()])
    if simulated := rows.get("simulated"):
        yield "## Simulated, not measured"
        yield f"Time of a step on P ranks in terms of the serial step: a model, no measurement. {simulated['note']}"
        yield "![simulated steps](simulated.svg)"
        yield table(("N", "way", *(f"P = {p}" for p in simulated["ranks"])), _simulated(simulated))


def _ratios(rows: Rows, serial: str) -> Iterator[tuple[str, ...]]:
    for case, row in rows.items():
        steps = int(case.removeprefix("N = "))
        for way in row:
            if "gradient error" not in row[way] or serial not in row:
                continue
            published, limit = TORCHBRAID.get(steps, {}), goal(steps, way, serial)
            here = ratio(row, way, serial)
            yield (
                case,
                way,
                f"{here:.3f}",
                f"{ratio(row, way, serial, 'least'):.3f}",
                f"{published[way] / published[serial]:.3f}" if way in published else "–",
                "–" if limit is None else f"{limit:.3f}",
                "–" if limit is None else "yes" if here <= limit else "no",
                f"{row[way]['gradient error']:.3g}",
            )


def _simulated(simulated: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (row["steps"], row["way"], *(f"{value:.2f}" for value in row["in terms of serial"]))
        for row in simulated["rows"]
    ]


def _cell(row: Mapping[str, Any] | None) -> str:
    return "–" if row is None or "step" not in row else f"{row['step']['median'] * 1e3:.0f}"

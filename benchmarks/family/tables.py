"""Rows -> one Markdown table, and a picture of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import table
from pararealize.figure import save_figure

from .accuracy import WAYS

__all__ = ["draw", "markdown"]

Rows = Mapping[str, Mapping[str, Any]]
SYSTEMS = {  # the line of the table -> its real ways, the best of which counts; its simulation; who shows its error
    "serial, one thread": (("one thread",), "serial", "serial"),
    "serial, two threads": (("all threads",), "", "serial"),
    "pipeline": (("GPipe", "1F1B"), "pipeline", "serial"),
    "parareal, linear": (("parareal linear",), "parareal linear", "parareal {} linear"),
    "parareal, bottleneck": (("parareal bottleneck",), "parareal bottleneck", "parareal {} bottleneck"),
    "multigrid, 1/1": (("multigrid 8 1/1",), "multigrid 8 1/1", "multigrid 8 1/1"),
    "multigrid, 2/1": (("multigrid 8 2/1",), "multigrid 8 2/1", "multigrid 8 2/1"),
    "multigrid, monitored": ((), "", "multigrid monitored"),  # between 2/1 and serial: as many iterations as it takes
}


def markdown(rows: Rows) -> str:
    """The table and what stands behind it."""
    return "\n\n".join(_sections(rows)) + "\n"


def _sections(rows: Rows) -> Iterator[str]:
    yield "# One network, four ways"
    yield "Written by `python -m benchmarks.family`; see [README.md](README.md)."
    simulated = rows.get("simulated", {}).get("steps", {})
    ranks = sorted({int(P) for steps in simulated.values() for P in steps if int(P) > 2})
    head = (
        "",
        "2 ranks, ms",
        "speed-up",
        "MiB a rank",
        *(f"P = {P}, model" for P in ranks),
        "error %",
        "as serial",
    )
    yield table(head, (_line(name, rows, ranks) for name in SYSTEMS))
    yield (
        "*Speed-up* over one thread, measured. *Model*: that speed-up times the ratio of the simulated steps of two "
        "ranks and of P. *Error*: test error after equal epochs, mean ± standard deviation over the seeds; of parareal "
        "networks for 2 and 16 segments; *as serial*: what multigrid trained, run layer after layer."
    )
    yield "## Errors of every seed, per cent"
    yield table(("", "errors"), ((way, _list(rows, way)) for way in WAYS if _errors(rows, way)))


def _line(name: str, rows: Rows, ranks: list[int]) -> tuple[str, ...]:
    way = SYSTEMS[name][2]
    best = _best(rows, name)
    one = _one(rows)
    beyond = [f"{speedup:.2f}" if (speedup := _beyond(rows, name, P)) is not None else "–" for P in ranks]
    again = _errors(rows, way, "serial_error")
    return (
        name,
        "–" if best is None else f"{best['step']['median'] * 1e3:.0f}",
        "–" if best is None or one is None else _ratio(one, best["step"]["median"]),
        "–" if best is None else f"{best['memory']['median'] / 2**20:.0f}",
        *beyond,
        "; ".join(_spread(_errors(rows, way.format(n))) for n in ((2, 16) if "{}" in way else (0,))),
        _spread(again) if again else "–",
    )


def _best(rows: Rows, name: str) -> Mapping[str, Any] | None:
    """The fastest of a line's real ways."""
    real = [row for way, row in rows.get("times", {}).items() if way.startswith(SYSTEMS[name][0])]
    return min(real, key=lambda row: row["step"]["median"], default=None)


def _one(rows: Rows) -> float | None:
    """Seconds of one thread."""
    median: float | None = rows.get("times", {}).get("one thread", {}).get("step", {}).get("median")
    return median


def _beyond(rows: Rows, name: str, P: int) -> float | None:
    """The speed-up of P ranks: the real one of two, times what the simulation makes of going from two to P."""
    model = SYSTEMS[name][1]
    if model == "serial":
        return 1.0
    steps = rows.get("simulated", {}).get("steps", {}).get(model, {})
    one, best = _one(rows), _best(rows, name)
    if one is None or best is None or str(P) not in steps:
        return None
    return float(one / best["step"]["median"] * steps["2"] / steps[str(P)])


def _ratio(one: float | None, ours: float | None) -> str:
    return "–" if one is None or ours is None else f"{one / ours:.2f}"


def _errors(rows: Rows, way: str, key: str = "error") -> list[float]:
    return [row[key] * 100 for name, row in rows.items() if name.startswith(f"{way}, seed") and key in row]


def _spread(errors: list[float]) -> str:
    if not errors:
        return "–"
    deviation = f" ± {statistics.stdev(errors):.1f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.1f}{deviation}"


def _list(rows: Rows, way: str) -> str:
    return ", ".join(f"{error:.1f}" for error in _errors(rows, way))


def draw(rows: Rows, path: Path) -> None:
    """Speed-ups against ranks: points are measured, lines are simulated."""
    steps = rows.get("simulated", {}).get("steps", {})
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, (_, model, _) in SYSTEMS.items():
        speedups = {int(P): _beyond(rows, name, int(P)) for P in steps.get(model, {})}
        points = sorted((P, speedup) for P, speedup in speedups.items() if speedup is not None)
        if points and model != "serial":
            (line,) = axes.plot(*zip(*points, strict=True), "--", marker=".", label=name)
            axes.plot(*points[0], "o", ms=8, color=line.get_color())
    axes.axhline(1, color="grey", lw=1)
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="times faster than one thread")
    axes.set_xticks([2, 4, 8, 16], ["2", "4", "8", "16"])
    axes.set_yticks([0.5, 1, 2, 4, 8, 16], ["½", "1", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.set_title("130 layers, batch 32; circles measured, dots a model")
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    save_figure(figure, path)

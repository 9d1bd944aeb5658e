"""Measured seconds of layers -> steps on P ranks, simulated: a model, no measurement of P ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pararealize import layer_parallel
from pararealize.figure import FAINT, INK, STAGES, save_figure
from pararealize.multigrid.simulation import simulate_multigrid
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.times import LayerTimes, measure_layers
from pararealize.plan.transfer import Transfer

from .known import BATCH, CHANNELS, SIDE, KnownNet, known_batch
from .worker import WAYS

__all__ = ["RANKS", "draw", "simulated"]

RANKS = (1, 2, 4, 8, 16, 32, 64)


def simulated(depths: list[int]) -> dict[str, Any]:
    """For every depth and way, the time of a step on P ranks in terms of the serial step's."""
    x, _ = known_batch()
    net = layer_parallel(KnownNet(8), example_inputs=x[:2])
    layer_times = measure_layers(net, x)
    forward, backward, alone = (min(column) for column in zip(*layer_times.layers, strict=True))
    link = Transfer()
    rows = []
    for steps in depths:
        times = LayerTimes(layers=((forward, backward, alone),) * steps, stem=layer_times.stem, head=layer_times.head)
        for way, (c, k, b) in WAYS.items():
            hierarchy = make_hierarchy([False] * steps, coarsening=c)
            size = 4 * BATCH * CHANNELS * SIDE * SIDE
            ratios = [
                simulate_multigrid(
                    hierarchy, times, p, forward_iterations=k, backward_iterations=b, transfer=link, size=size
                ).step
                / sum(times.serial)
                for p in RANKS
            ]
            rows.append({"steps": steps, "way": way, "in terms of serial": [round(value, 4) for value in ratios]})
    layer = f"forward {forward * 1e3:.2f} ms, backward {backward * 1e3:.2f}, of which to the input {alone * 1e3:.2f}"
    return {"ranks": list(RANKS), "rows": rows, "note": f"A layer takes {layer}; messages: {link}."}


def draw(results: dict[str, Any], path: Path) -> Path:
    """A line a way and depth against the number of ranks, with 1/P and the serial network beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    ranks = results["ranks"]
    depths = sorted({row["steps"] for row in results["rows"]})
    for i, way in enumerate(dict.fromkeys(row["way"] for row in results["rows"])):
        for row in results["rows"]:
            if row["way"] == way:
                style = "-" if row["steps"] == depths[0] else "--"
                axes.plot(ranks, row["in terms of serial"], style, color=STAGES[i % len(STAGES)][1], marker="o",
                          markersize=3, linewidth=1.4, label=f"{way}, N = {row['steps']}")  # fmt: skip
    axes.axhline(1, color=INK, linewidth=1)
    axes.plot(ranks, [1 / p for p in ranks], ":", color=FAINT, label="1/P")
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="time of a step in terms of the serial step")
    axes.set_xticks(ranks, [str(p) for p in ranks])
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    axes.minorticks_off()
    axes.set_title("Simulated, not measured: layer-parallel multigrid", loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7.5, ncols=2)
    return save_figure(figure, path)

"""Rows -> histograms of the seconds until the last survivor had ended, by what befell the rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw"]


def draw(seconds: Mapping[str, Sequence[float]], timeout: float, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pararealize"  # the same picture twice is the same file
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    told = {"kill": "killed (SIGKILL)", "raise": "raised", "stop": "stopped (SIGSTOP)", "hang": "hung in Python"}
    for axes, kinds, title in ((left, ("kill", "raise"), "death, exception"), (right, ("stop", "hang"), "hang")):
        found = {kind: seconds.get(kind, ()) for kind in kinds}
        if not any(found.values()):
            continue
        axes.hist(
            list(found.values()),
            bins=20,
            stacked=True,
            label=[f"{told[kind]}: {len(values)} runs" for kind, values in found.items()],
        )
        axes.set(title=title, xlabel="seconds until the last survivor had ended", ylabel="runs")
        axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
        axes.set_xlim(left=0)
    right.axvline(timeout, color="black", lw=1, ls="--", label=f"time-out, {timeout:g} s")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

"""Calibration -> a plain-text table, at most 120 columns wide: what ``print(calibration)`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Calibration

__all__ = ["calibration_text"]

WIDTH = 120


def calibration_text(calibration: Calibration) -> str:
    """Adapters, interfaces and the output, with a column a stage, and accuracies where there are labels."""
    stages = [errors.stage for errors in calibration.stages]
    fits = {fit.part: fit for fit in calibration.fits}
    adapters = [("C", "fitted by", "kind", *stages)]
    interfaces = [("z", "fitted by", "kind", *stages)]
    for j in range(2, calibration.n + 1):
        for rows, part, values in (
            (adapters, f"C{j}", [errors.adapters[j - 2] for errors in calibration.stages]),
            (interfaces, f"F{j - 1}", [errors.interfaces[j - 1] for errors in calibration.stages]),
        ):
            fit = fits[part]
            rows.append((str(j), fit.method, fit.kind, *map(_error, values)))
    ends = [("", *stages)]
    ends.append(("output, relative error", *(_error(errors.output) for errors in calibration.stages)))
    if all(errors.agreement is not None for errors in calibration.stages):
        ends.append(("same class as the original", *(_percent(errors.agreement) for errors in calibration.stages)))
    if calibration.accuracy is not None:
        ends.append((f"accuracy (original {_percent(calibration.accuracy)})",
                     *(_percent(errors.accuracy) for errors in calibration.stages)))  # fmt: skip
    where = f"{calibration.tested} {'other ' if calibration.held_out else ''}samples"
    title = f"{calibration.model}: n = {calibration.n}, coarse {calibration.coarse!r}"
    title += f", fitted to {calibration.samples} samples"
    title += f", errors on {where}" if calibration.held_out else ", errors on the same"
    tables = [title]
    if calibration.n > 1:
        tables += ["adapters, ‖x_j − true‖ / ‖true‖\n" + _aligned(adapters, 3)]
        tables += ["interfaces, ‖z_j − true‖ / ‖true‖, corrected by F^{j-1}; z_1 is exact\n" + _aligned(interfaces, 3)]
    tables.append(_aligned(ends, 1))
    if calibration.fine_tune_steps:
        tables.append(f"fine-tuned for {calibration.fine_tune_steps} steps; errors against the original before that")
    return "\n\n".join(tables)


def _error(value: float) -> str:
    return f"{value:.2e}" if value and (value < 1e-3 or value >= 1e4) else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _aligned(rows: list[tuple[str, ...]], words: int) -> str:
    rows = [(*row[:words], *row[words:]) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    spare = WIDTH - sum(widths) - 2 * (len(widths) - 1)
    if spare < 0 and words > 1:
        widths[words - 1] += spare
    lines = []
    for row in rows:
        cells = [
            f"{_short(cell, width):<{width}}" if i < words else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

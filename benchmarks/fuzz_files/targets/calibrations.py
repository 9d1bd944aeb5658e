"""Reports of calibrations: read, printed, drawn."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

from pararealize.calibration.figure import draw_calibration
from pararealize.calibration.report import Calibration, Errors, Fit

from ..mutations import mutated_json
from ..trial import Trial
from .documents import reread

__all__ = ["Calibrations"]

DRAWN = 5  # one report of so many is drawn


def _calibration(n: int, *, labels: bool, tuned: bool) -> Calibration:
    stages = ["before", "after", *(["fine-tuned"] if tuned else [])]
    return Calibration(
        model="ResNet",
        n=n,
        coarse="paper",
        samples=100,
        tested=20,
        held_out=labels,
        accuracy=0.9 if labels else None,
        fits=tuple(
            fit
            for j in range(2, n + 1)
            for fit in (
                Fit(part=f"C{j}", kind="conv 1×1 3→4", method="least squares", seconds=0.25),
                Fit(part=f"F{j - 1}", kind="paper", method="distilled", seconds=2.5),
            )
        ),
        stages=tuple(
            Errors(
                stage=stage,
                adapters=tuple(0.5 / j for j in range(2, n + 1)),
                interfaces=(0.0, *(0.25 / j if labels else math.nan for j in range(2, n + 1))),
                output=0.125,
                agreement=0.75,
                accuracy=0.5 if labels else None,
            )
            for stage in stages
        ),
        fine_tune_steps=100 if tuned else 0,
    )


class Calibrations:
    """Reports of one to five segments, with labels and without, fine-tuned and not."""

    def __init__(self) -> None:
        self.reports = [_calibration(n, labels=n != 3, tuned=n > 3) for n in (1, 2, 3, 5)]

    def __call__(self, random: Random, folder: Path) -> Trial:
        content, change = mutated_json(random.choice(self.reports).to_json().encode(), random)
        drawn, as_bytes = random.randrange(DRAWN) == 0, random.random() < 0.2

        def attempt() -> str:
            report, fault = reread(folder / "calibration.json", content, Calibration.from_json, as_bytes=as_bytes)
            if drawn and not fault:
                draw_calibration(report, folder / "calibration.svg")
            return fault

        return Trial(change=change, attempt=attempt)

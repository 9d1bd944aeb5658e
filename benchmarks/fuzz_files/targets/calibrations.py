"""Reports of calibrations: read, printed, drawn."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

from pararealize.calibration.figure import draw_calibration
from pararealize.calibration.report import Calibration
from pararealize.calibration.rows import CorrectionChoice, Errors, Fit, indices
from pararealize.coarse.spec import numbered

from ..mutations import mutated_json
from ..trial import Trial
from .documents import reread

__all__ = ["Calibrations"]

DRAWN = 5  # one report of so many is drawn


def _calibration(*windows: int, labels: bool, tuned: bool) -> Calibration:
    stages = ["before", "after", *(["fine-tuned"] if tuned else [])]
    several = len(windows) > 1
    segments = list(indices(windows))
    fits = [
        fit
        for m, j in segments
        if j > 1
        for fit in (
            Fit(part=numbered("C", m, j), kind="conv 1×1 3→4", method="least squares", seconds=0.25),
            Fit(part=numbered("F", m, j - 1), kind="paper", method="distilled", seconds=2.5),
        )
    ]
    corrected = [(m, j) for m, j in segments if several and windows[m - 1] > 1]
    fits += [Fit(part=numbered("K", *index), kind="dense", method="least squares", seconds=1.0) for index in corrected]
    return Calibration(
        model="ResNet",
        n=max(windows),
        windows=windows,
        blocks=4 * max(windows),
        coarse="paper",
        outputs="classes",
        why="as asked for",
        samples=100,
        tested=20,
        held_out=labels,
        accuracy=0.9 if labels else None,
        fits=tuple(fits),
        stages=tuple(
            Errors(
                stage=stage,
                adapters=tuple(0.5 / j for _, j in segments if j > 1),
                interfaces=(0.0, *(0.25 / j if labels else math.nan for _, j in segments[1:])),
                output=0.125,
                agreement=0.75,
                accuracy=0.5 if labels else None,
            )
            for stage in stages
        ),
        fine_tune_steps=100 if tuned else 0,
        corrections=tuple(
            CorrectionChoice(m=m, kind="dense", rank=0, used=True, errors={"none": 0.5, "dense": 0.25})
            for m in dict.fromkeys(m for m, _ in corrected)
        ),
        held_out_part="the last 2 of 10 batches" if several else "",
        renewed=("g2_1", "head") if several else (),
    )


class Calibrations:
    """Reports of one to five segments, of one window and of three, with labels and without, fine-tuned and not."""

    def __init__(self) -> None:
        self.reports = [_calibration(n, labels=n != 3, tuned=n > 3) for n in (1, 2, 3, 5)]
        self.reports.append(_calibration(3, 3, 1, labels=True, tuned=False))

    def __call__(self, random: Random, folder: Path) -> Trial:
        content, change = mutated_json(random.choice(self.reports).to_json().encode(), random)
        drawn, as_bytes = random.randrange(DRAWN) == 0, random.random() < 0.2

        def attempt() -> str:
            report, fault = reread(folder / "calibration.json", content, Calibration.from_json, as_bytes=as_bytes)
            if drawn and not fault:
                draw_calibration(report, folder / "calibration.svg")
            return fault

        return Trial(change=change, attempt=attempt)

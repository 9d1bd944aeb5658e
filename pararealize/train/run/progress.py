"""Durations of a training run's steps -> samples a second and the time left; and a run's progress, for who shows it."""

import time
from collections import deque
from dataclasses import dataclass, field

from pararealize.multigrid.monitor import Event

from .score import Score

__all__ = ["Progress", "RateMeter"]

RECENT = 50  # steps over which the rate is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: number of the step that has just been taken, from 1 to ``steps``.
        steps: how many the whole run has.
        epoch: number of the epoch, from 1 to ``epochs``.
        epochs: how many the whole run has.
        loss: mean over the epoch so far.
        error: share of the epoch's samples so far that were classified wrong.
        lr: learning rate of the step.
        rate: samples a second over the last steps, evaluations and checkpoints not counted.
        left: seconds to go, evaluations and checkpoints counted as they have been so far.
        score: on the test part, where the step was the last of an epoch.
        events: what a monitor of multigrid iterations changed after the step.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    error: float
    lr: float
    rate: float
    left: float
    score: Score | None = None
    events: tuple[Event, ...] = ()


@dataclass(slots=True)
class RateMeter:
    """How fast one process takes its steps."""

    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, seconds: float, samples: int) -> None:
        """Count a step."""
        self.steps += 1
        self.recent.append((seconds, samples))

    @property
    def rate(self) -> float:
        """Samples a second over the last steps."""
        seconds = sum(seconds for seconds, _ in self.recent)
        return sum(samples for _, samples in self.recent) / max(seconds, 1e-9)

    @property
    def seconds(self) -> float:
        """Since this process began to train."""
        return time.perf_counter() - self.start

    def left(self, steps: int) -> float:
        """Seconds that so many steps will take, all that is between them included."""
        return self.seconds / max(self.steps, 1) * steps

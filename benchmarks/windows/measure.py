"""A trained network, a schedule, a coarse kind -> its quality before and after calibration, and after distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pararealize import PararealModule, calibrate, fine_tune, pararealize

from . import decoder
from .text import batches, docstrings

__all__ = ["measure"]

STEPS = 920  # of the decoder's training
Shape = tuple[int, int, int, int]


def measure(shape: Shape, kind: str, *, train: bool, weights: Path) -> dict[str, Any]:
    """The row of a case: in closed form, or with ``train`` after as many steps of distillation as a tenth of STEPS."""
    model = decoder.trained_decoder(weights, steps=STEPS)
    text, held_out = docstrings(held_out=False), docstrings(held_out=True)
    sample = _inputs(text, 30, seed=2)
    net = _converted(model, shape, kind, sample[0], [f"layers.{i}" for i in range(12)])
    original = decoder.perplexity(model, held_out)
    row: dict[str, Any] = {"n": net.plan.n, "speedup": net.plan.virtual_speedup, "perplexity": original}
    if train:
        calibrate(net, sample)
        steps = STEPS // 10
        tuning = fine_tune(net, _inputs(text, steps, seed=7), steps=steps, loss="kl", test=sample[-6:])
        row["kept_step"] = tuning.best
        row["excess_trained"] = decoder.perplexity(net, held_out) / original - 1
        return row
    row["sums"] = decoder.perplexity(net, held_out) / original - 1
    calibration = calibrate(net, sample)
    row["error"] = calibration.stage("after").output
    row["excess"] = decoder.perplexity(net, held_out) / original - 1
    return row


def _inputs(text: str, count: int, *, seed: int) -> list[Tensor]:
    return [x for x, _ in batches(text, batch=16, length=decoder.LENGTH, steps=count, seed=seed)]


def _converted(model: nn.Module, shape: Shape, kind: str, example: Any, layers: list[str]) -> PararealModule:
    n, windows, front, behind = shape
    stay = [*layers[:front], *layers[len(layers) - behind :]]
    return pararealize(
        model, n, windows=windows, sequential=stay, coarse=kind, source="stem", example_inputs=example
    ).eval()

"""A trained network, a schedule, a coarse kind -> its quality before and after calibration, and after some training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pararealize import PararealModule, calibrate, pararealize

from . import decoder
from .text import batches, docstrings

__all__ = ["measure"]

STEPS = 920  # of the decoder's training
Shape = tuple[int, int, int, int]


def measure(shape: Shape | None, kind: str, *, train: bool, weights: Path) -> dict[str, Any]:
    """The row of a case; without a shape, of the decoder itself."""
    return _original(weights) if shape is None else _decoder(shape, kind, weights, train=train)


def _original(weights: Path) -> dict[str, Any]:
    """The decoder itself after a tenth more of its training."""
    model = decoder.trained_decoder(weights, steps=STEPS)
    original = decoder.perplexity(model, docstrings(held_out=True))
    decoder.train(model.train(), docstrings(held_out=False), steps=STEPS // 10, lr=5e-4, seed=7, say=lambda _: None)
    return {
        "perplexity": original,
        "excess_trained": decoder.perplexity(model.eval(), docstrings(held_out=True)) / original - 1,
    }


def _converted(model: nn.Module, shape: Shape, kind: str, example: Any, layers: list[str]) -> PararealModule:
    n, windows, front, behind = shape
    stay = [*layers[:front], *layers[len(layers) - behind :]]
    return pararealize(
        model, n, windows=windows, sequential=stay, coarse=kind, source="stem", example_inputs=example
    ).eval()


def _decoder(shape: Shape, kind: str, weights: Path, *, train: bool) -> dict[str, Any]:
    model = decoder.trained_decoder(weights, steps=STEPS)
    text, held_out = docstrings(held_out=False), docstrings(held_out=True)
    sample = [x for x, _ in batches(text, batch=16, length=decoder.LENGTH, steps=30, seed=2)]
    net = _converted(model, shape, kind, sample[0], [f"layers.{i}" for i in range(12)])
    original = decoder.perplexity(model, held_out)
    row: dict[str, Any] = {"n": net.plan.n, "speedup": net.plan.virtual_speedup, "perplexity": original}
    row["sums"] = decoder.perplexity(net, held_out) / original - 1
    calibration = calibrate(net, sample)
    row["error"] = calibration.stage("after").output
    row["excess"] = decoder.perplexity(net, held_out) / original - 1
    if train:
        decoder.train(net.train(), text, steps=STEPS // 10, lr=5e-4, seed=7, say=lambda _: None)
        row["excess_trained"] = decoder.perplexity(net.eval(), held_out) / original - 1
    return row

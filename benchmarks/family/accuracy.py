"""A way to train the chain and a seed -> its error on the digits: what the time of a step buys."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from benchmarks.processes.networks import Chain
from pararealize import layer_parallel, pararealize
from pararealize.data.catalogue import load
from pararealize.multigrid.module import LayerParallel
from pararealize.multigrid.monitor import Monitor
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.score import evaluate
from pararealize.train.steps import MonitoredStep

__all__ = ["EPOCHS", "WAYS", "measure"]

EPOCHS, BATCH, PIXELS = 6, 32, 8
EXACT = 0.2  # the share of steps, at the end, that a monitor makes exact whatever it saw
WAYS = {
    "serial": {},
    "parareal 2 linear": {"n": 2, "coarse": "linear"},
    "parareal 16 linear": {"n": 16, "coarse": "linear"},
    "parareal 2 bottleneck": {"n": 2, "coarse": "bottleneck"},
    "parareal 16 bottleneck": {"n": 16, "coarse": "bottleneck"},
    "multigrid 8 1/1": {"coarsening": 8, "iterations": (1, 1)},
    "multigrid 8 2/1": {"coarsening": 8, "iterations": (2, 1)},
    "multigrid monitored": {"coarsening": 8, "iterations": (2, 1), "monitor": True},
}


def measure(name: str, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train in one process, which computes what the ranks compute; the error as trained, and of multigrid as serial."""
    data = load("digits", batch_size=BATCH, seed=seed, image_size=PIXELS)
    torch.manual_seed(seed)
    net = _network(WAYS[name], Chain(num_classes=data.classes), data.example(2), seed)
    steps = data.steps * epochs
    began = time.process_time()
    recipe = Recipe(epochs=epochs, lr=0.1, schedule="cosine", warmup=steps // 5, clip=1.0, initialise=None)
    step = None
    if isinstance(net, LayerParallel) and "monitor" in WAYS[name]:
        step = MonitoredStep(Monitor(net, every=data.steps, exact_after=round((1 - EXACT) * steps)))
    history = fit(net, data, recipe, seed=seed, step=step)
    row: dict[str, Any] = {
        "error": history.epochs[-1].test_error,
        "loss": history.epochs[-1].loss,
        "parameters": sum(p.numel() for p in net.parameters()),
        "train_seconds": round(time.process_time() - began, 1),
    }
    if isinstance(net, LayerParallel):
        with net.serially():
            row["serial_error"] = evaluate(net, data).error
        row["events"] = [str(event) for event in history.events]
    return row


def _network(way: dict[str, Any], model: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    if "n" in way:
        return pararealize(model, way["n"], example_inputs=example, coarse=way["coarse"], seed=seed)
    if "coarsening" in way:
        forward, backward = way["iterations"]
        return layer_parallel(model, 2, way["coarsening"], forward, backward, example_inputs=example)
    return model

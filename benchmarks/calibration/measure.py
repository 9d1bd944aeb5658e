"""A network, a seed -> its accuracy, and that of its parareal forms, calibrated and fine-tuned: a row of numbers."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

from pararealize import models, pararealize
from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.data.catalogue import load
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.score import evaluate

__all__ = ["COARSE", "measure"]

N = 4
IMAGE = 16
COARSE = {  # behind ~, how many blocks are in the stem
    "resnet20": ("paper", "block", "depthwise", "bottleneck", "linear", "depthwise~2", "bottleneck~2", "linear~2"),
    "vit": ("block", "bottleneck", "linear", "bottleneck~2", "linear~2"),
}
RECIPES = {
    "resnet20": Recipe(epochs=40, lr=0.1, schedule="cosine", warmup=48),
    "vit": Recipe(epochs=80, optimizer="adamw", lr=2e-3, weight_decay=0.05, schedule="cosine", warmup=96),
}
DISTIL = 60  # steps of Adam, each coarse block
SHARE = 0.1  # of the original's training steps, for fine-tuning


def build(name: str) -> nn.Module:
    if name == "vit":
        from torchvision.models import VisionTransformer

        return VisionTransformer(
            image_size=IMAGE, patch_size=4, num_layers=8, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
        )
    return models.build(name)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Train the original, then convert, calibrate and fine-tune with every coarse kind."""
    torch.manual_seed(seed)
    data = load("digits", batch_size=128, seed=seed, image_size=IMAGE)
    model, recipe = build(name), RECIPES[name]
    began = time.process_time()
    fit(model, data, recipe, seed=seed)
    spent = time.process_time() - began
    steps = recipe.epochs * data.steps
    row: dict[str, Any] = {
        "network": name,
        "seed": seed,
        "steps": steps,
        "train_seconds": spent,
        "accuracy": evaluate(model, data).accuracy,
        "kinds": {},
    }
    for kind in COARSE[name]:
        row["kinds"][kind] = _calibrated(copy.deepcopy(model), kind, data, seed, int(steps * SHARE))
    return row


def _calibrated(model: nn.Module, kind: str, data: Any, seed: int, steps: int) -> dict[str, Any]:
    coarse, _, stem = kind.partition("~")
    net = pararealize(
        model, N, example_inputs=data.example(), coarse=coarse, source="stem", sequential=int(stem or 0), seed=seed
    )
    marks = [time.process_time()]
    calibration = calibrate(net, data, steps=DISTIL, seed=seed)
    marks.append(time.process_time())
    tuning = fine_tune(net, data, calibration, steps=steps, seed=seed, loss="cross_entropy")
    marks.append(time.process_time())
    stages = () if tuning.calibration is None else tuning.calibration.stages
    return {
        "share": sum(block.flops_forward for block in net.plan.coarse_blocks)
        / sum(segment.flops_forward for segment in net.plan.segments),
        "speedup": net.plan.virtual_speedup,
        "calibrate_seconds": marks[1] - marks[0],
        "fine_tune_seconds": marks[2] - marks[1],
        "fine_tune_steps": steps,
        "stages": {errors.stage: errors.accuracy for errors in stages},
        "errors": {errors.stage: [*errors.interfaces, errors.output] for errors in stages},
    }

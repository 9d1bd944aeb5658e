"""A ResNet of 36 blocks, trained here on all of Fashion-MNIST -> its accuracy, and that of its conversions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pararealize import calibrate, fine_tune, pararealize
from pararealize.data.catalogue import load
from pararealize.data.dataset import Dataset
from pararealize.files import whole_file
from pararealize.models import PreActBasic
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.score import evaluate

from .cases import SCHEDULES, Case
from .measure import recipe_of
from .sources import fashion_folder

__all__ = ["NarrowResNet", "measure_fashion", "trained"]

EPOCHS, BATCH, SIDE = 2, 128, 14
FITTED = 24  # batches


class NarrowResNet(nn.Module):
    """Three stages of 12 units of 8, 16 and 32 channels, for grey images."""

    def __init__(self, units: int = 12, widths: tuple[int, ...] = (8, 16, 32), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        channels, blocks = widths[0], []
        for stage, width in enumerate(widths):
            for i in range(units):
                blocks.append(PreActBasic(channels, width, 2 if stage and not i else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.bn, self.pool, self.fc = nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.blocks(self.conv1(x))).relu()
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def trained(out: Path, data: Dataset, *, epochs: int = EPOCHS) -> nn.Module:
    """The network after its training, which goes on where it was stopped; kept in the folder."""
    torch.manual_seed(0)
    model, path = NarrowResNet(), out / f"fashion-resnet36-{SIDE}-{epochs}.safetensors"
    if not path.exists():
        recipe = Recipe(epochs=epochs, lr=0.1, schedule="cosine", warmup=100, amp="bfloat16")
        run = out / f"fashion-resnet36-{SIDE}-{epochs}"
        fit(model, data, recipe, folder=run, resume=run.exists(), checkpoint_every=100)
        with whole_file(path) as part:
            save_file(model.state_dict(), part)
    model.load_state_dict(load_file(path))
    return model.eval()


def measure_fashion(case: Case, out: Path) -> dict[str, Any]:
    """The row of a case."""
    data = load("fashion_mnist", batch_size=BATCH, image_size=SIDE, data_dir=fashion_folder(out))
    model = trained(out, data)
    score = evaluate(model, data)
    original = score.accuracy
    names = [f"blocks.{i}" for i in range(36)]
    options = SCHEDULES["fashion-mnist"][case.schedule].options(names, ["blocks.12", "blocks.24"])
    net = pararealize(model, coarse=case.coarse, source="stem", example_inputs=data.example(), **options).eval()

    def quality() -> dict[str, float]:
        accuracy = evaluate(net, data).accuracy
        return {"accuracy": accuracy, "kept": accuracy - original}

    row: dict[str, Any] = {"n": net.plan.n, "speedup": net.plan.speedup, "original": original}
    stages = {"before": quality()}
    training = [batch for batch, _ in zip(data.epoch(0), range(FITTED + case.steps), strict=False)]
    calibration = calibrate(net, training[:FITTED], outputs="logits")
    stages["calibrated"] = quality()
    if case.steps:
        tuning = fine_tune(
            net, training, calibration, steps=case.steps, test=training[:2], loss="kl", norms="train",
            recipe=recipe_of(case.steps, 1e-3),
        )  # fmt: skip
        stages["distilled"] = quality()
        row |= {"best_step": tuning.best, "samples": tuning.samples}
    return row | {"tested": score.count, "stages": stages}

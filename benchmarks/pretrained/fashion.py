"""ResNets and a ViT, trained here on all of Fashion-MNIST -> their accuracy, and that of their conversions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.accuracy.networks import VisionTransformer
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

__all__ = ["NETWORKS", "NarrowResNet", "Trained", "measure_fashion", "trained"]

EPOCHS, BATCH, SIDE = 2, 128, 14
FITTED = 24  # batches
SEEN = 4  # others, of the training images, by which fine-tuning chooses its best step


class NarrowResNet(nn.Module):
    """Three stages of so many units of 8, 16 and 32 channels, for grey images; ``6 · units + 2`` layers."""

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network that is trained here.

    Attributes:
        make: the network, with random weights.
        file: what its weights are called.
        blocks: the names of its blocks.
        changing: the names of those that change the space.
        recipe: how it is trained, for ``EPOCHS``.
    """

    make: Callable[[], nn.Module]
    file: str
    blocks: tuple[str, ...]
    changing: tuple[str, ...]
    recipe: Recipe


_SGD = Recipe(epochs=EPOCHS, lr=0.1, schedule="cosine", warmup=100)
_ADAMW = Recipe(epochs=EPOCHS, optimizer="adamw", lr=3e-3, weight_decay=0.05, schedule="cosine", warmup=100, clip=1.0)


def _resnet(units: int) -> Trained:
    """Three stages of so many units each."""
    return Trained(
        make=partial(NarrowResNet, units),
        file=f"fashion-resnet{3 * units}",
        blocks=tuple(f"blocks.{i}" for i in range(3 * units)),
        changing=(f"blocks.{units}", f"blocks.{2 * units}"),
        recipe=_SGD,
    )


NETWORKS = {
    "fashion-mnist": _resnet(12),
    "fashion-resnet56": _resnet(9),
    "fashion-vit": Trained(
        make=partial(VisionTransformer, (1, SIDE, SIDE), 10),
        file="fashion-vit12",
        blocks=tuple(f"layers.{i}" for i in range(12)),
        changing=(),
        recipe=_ADAMW,
    ),
}


def trained(network: Trained, out: Path, data: Dataset, seed: int = 0) -> nn.Module:
    """The network after its training, which goes on where it was stopped; kept in the folder."""
    torch.manual_seed(seed)
    run = out / f"{network.file}-{SIDE}-{EPOCHS}{f'-seed{seed}' if seed else ''}"
    model, path = network.make(), run.with_suffix(".safetensors")
    if not path.exists():
        fit(model, data, network.recipe, folder=run, seed=seed, resume=run.exists(), checkpoint_every=100)
        with whole_file(path) as part:
            save_file(model.state_dict(), part)
    model.load_state_dict(load_file(path))
    return model.eval()


def measure_fashion(case: Case, out: Path) -> dict[str, Any]:
    """The row of a case."""
    data = load("fashion_mnist", batch_size=BATCH, image_size=SIDE, seed=case.seed, data_dir=fashion_folder(out))
    network = NETWORKS[case.network]
    model = trained(network, out, data, case.seed)
    score = evaluate(model, data)
    original = score.accuracy
    schedule = SCHEDULES[case.network][case.schedule]
    options = schedule.options(list(network.blocks), list(network.changing))
    net = pararealize(model, coarse=case.coarse, source="stem", example_inputs=data.example(), **options).eval()

    def quality() -> dict[str, float]:
        accuracy = evaluate(net, data).accuracy
        return {"accuracy": accuracy, "kept": accuracy - original}

    row: dict[str, Any] = {"n": net.plan.n, "speedup": net.plan.speedup, "original": original}
    stages = {"before": quality()}
    count = FITTED + case.steps
    batches = [batch for batch, _ in zip(data.epoch(0), range(count + SEEN), strict=False)]
    training, seen = batches[:count], batches[count:]
    calibration = calibrate(net, training[:FITTED], outputs="logits")
    stages["calibrated"] = quality()
    if case.steps:
        how = case.distillation
        tuning = fine_tune(
            net, training, calibration, steps=case.steps, test=seen, loss=how.loss, temperature=how.temperature,
            match=how.match, norms="train", recipe=recipe_of(case.steps, how.lr),
        )  # fmt: skip
        stages["distilled"] = quality()
        row |= {"best_step": tuning.best, "samples": tuning.samples}
    return row | {"tested": score.count, "stages": stages}

"""One case -> its row: a network made one way, trained from one seed, and its error after every epoch.

A case is ``data/family/method/seed``, such as ``digits/resnet/12-linear/0``; see ``methods.py`` for the methods. Every
method of a family is trained alike: as many epochs, the same batches in the same order, the same recipe.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from pararealize import PararealModule
from pararealize.data.catalogue import load
from pararealize.errors import TrainingError
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe

from .methods import count, make, method_of, shares
from .networks import FAMILIES

__all__ = ["DATA", "Setting", "case", "measure", "recipe_for", "setting_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Images of a data set, how many of them, and how often they are seen."""

    image_size: int
    channels: int
    counts: tuple[int, int] | None  # of training and test images; all where None
    batch_size: int
    epochs: int
    token_epochs: int  # of transformers and mixers, which learn more slowly
    families: tuple[str, ...] = ("resnet", "vgg", "vit", "mixer")  # that are tried on it unless others are named

    def epochs_of(self, family: str) -> int:
        """Epochs that a network of the family is trained for."""
        return self.token_epochs if FAMILIES[family].tokens else self.epochs


DATA = {
    "digits": Setting(image_size=8, channels=1, counts=None, batch_size=64, epochs=10, token_epochs=20),
    "glyphs:clean": Setting(image_size=16, channels=1, counts=(10_000, 2000), batch_size=64, epochs=6, token_epochs=15),
    "fashion_mnist": Setting(
        image_size=14, channels=1, counts=None, batch_size=128, epochs=2, token_epochs=2,
        families=("resnet56", "vgg", "vit", "mixer"),
    ),
}  # fmt: skip
RATES = {"resnet": 0.1, "resnet56": 0.1, "vgg": 0.05, "vit": 3e-3, "mixer": 2e-3}


def case(data: str, family: str, method: str, seed: int) -> str:
    """The name of a case."""
    return f"{data}/{family}/{method}/{seed}"


def setting_of(data: str, epochs: int | None = None) -> Setting:
    """The setting of a data set, with other epochs where asked for."""
    return DATA[data] if epochs is None else replace(DATA[data], epochs=epochs, token_epochs=epochs)


def recipe_for(family: str, setting: Setting, steps: int) -> Recipe:
    """How a family is trained, whatever is made of it: a fifth of the steps to warm up, then down as a cosine."""
    common: dict[str, Any] = {
        "epochs": setting.epochs_of(family),
        "schedule": "cosine",
        "warmup": steps // 5,
        "clip": 1.0,
    }
    if FAMILIES[family].tokens:
        return Recipe(optimizer="adamw", lr=RATES[family], weight_decay=0.05, **common)
    return Recipe(lr=RATES[family], **common)


def measure(name: str, *, epochs: int | None = None) -> dict[str, Any]:
    """Train the network of a case; its errors and losses by epoch, parameters, costs, seconds of processor time."""
    data_name, family, method_name, seed_text = name.split("/")
    seed, method, setting = int(seed_text), method_of(method_name), setting_of(data_name, epochs)
    data = load(
        data_name,
        batch_size=setting.batch_size,
        seed=seed,
        image_size=setting.image_size,
        channels=setting.channels,
        count=setting.counts,
        augment=False,
    )
    net = make(method, family, data.shape, data.classes, seed=seed)
    steps = data.steps * setting.epochs_of(family)
    recipe = recipe_for(family, setting, steps)
    row: dict[str, Any] = {"parameters": count(net)}
    if isinstance(net, PararealModule):
        row |= shares(net.plan) | {"kinds": sorted({block.kind for block in net.plan.coarse_blocks})}
    began = time.process_time()
    try:
        history = fit(net, data, recipe, seed=seed)
    except TrainingError as error:
        return row | {"error": 1 - 1 / data.classes, "diverged": str(error)}
    ends = history.epochs
    return row | {
        "error": ends[-1].test_error,
        "errors": [round(end.test_error, 5) for end in ends],
        "train_losses": [round(end.loss, 5) for end in ends],
        "test_loss": round(ends[-1].test_loss, 5),
        "test_images": data.test_count,
        "steps": steps,
        "train_seconds": round(time.process_time() - began, 2),
    }

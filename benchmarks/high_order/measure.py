"""The name of a case -> its row: a training run, or one training step's memory and time beside Euler's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pararealize import data

from .networks import DEPTHS, SCHEMES, Scheme, build, groups

WIDTH, PIXELS, BATCH, EPOCHS, SEEDS = 16, 8, 32, 8, 3
LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-4  # the paper's
DROPS = (100 / 260, 150 / 260, 200 / 260, 230 / 260)  # of the run: the learning rate falls to a tenth, as in the paper
FACTORS = (1, 2, 4, 8)  # of the learning rate, for robustness
CHECKS = 4  # of the test accuracy, an epoch, for the speed of convergence
COST_LAYERS = 58
DATA = {
    "digits": lambda seed: data.digits(BATCH, seed, image_size=PIXELS),
    "glyphs:clean": lambda seed: data.load(
        "glyphs:clean", batch_size=BATCH, seed=seed, image_size=12, count=(8000, 1000)
    ),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training run."""

    data: str
    layers: int
    scheme: str
    factor: int
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        return f"train {self.data} {self.layers} {self.scheme} lr×{self.factor} seed {self.seed} epochs {self.epochs}"


def cases(
    names: Iterable[str],
    depths: Iterable[int] = DEPTHS,
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    factors: Iterable[int] = FACTORS,
) -> dict[str, Case]:
    """Every training run, by name: the tables' at all depths and seeds, then the learning rates' at the deepest."""
    depths = tuple(depths)
    runs = [
        Case(data=name, layers=layers, scheme=key, factor=1, seed=seed, epochs=epochs)
        for name in names
        for seed in range(seeds)
        for layers in depths
        for key, scheme in SCHEMES.items()
        if scheme.blocks(layers)
    ]
    runs += [
        Case(data=name, layers=depths[-1], scheme=key, factor=factor, seed=0, epochs=epochs)
        for name in names
        for factor in factors
        if factor != 1
        for key, scheme in SCHEMES.items()
        if scheme.blocks(depths[-1])
    ]
    return {case.name: case for case in runs}


def train(case: Case) -> dict[str, Any]:
    """Train with SGD as the paper does, with its schedule scaled to fewer epochs."""
    scheme, dataset = SCHEMES[case.scheme], DATA[case.data](case.seed)
    net = build(scheme, case.layers, width=WIDTH, classes=dataset.classes, seed=case.seed, pixels=dataset.shape[-1])
    optimizer = torch.optim.SGD(
        groups(net, lr=LR * case.factor, weight_decay=DECAY), lr=LR * case.factor, momentum=MOMENTUM
    )
    steps = -(-len(dataset.labels) // BATCH) * case.epochs
    checked: list[tuple[int, float]] = []
    loss = torch.zeros(())
    for step, (images, labels) in enumerate(dataset.batches(case.epochs), start=1):
        for group in optimizer.param_groups:
            group["lr"] = LR * case.factor * 0.1 ** sum(step > drop * steps for drop in DROPS)
        loss = functional.cross_entropy(net.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not loss.isfinite():
            break
        if step % max(1, steps // case.epochs // CHECKS) == 0 or step == steps:
            checked.append((step, accuracy(net, dataset)))
    finite = bool(loss.isfinite())
    return {
        "accuracy": checked[-1][1] if finite else 1 / dataset.classes,
        "diverged": not finite,
        "loss": loss.item() if finite else None,
        "parameters": sum(p.numel() for p in net.parameters()),
        "blocks": scheme.blocks(case.layers),
        "steps": [p.item() for name, p in net.named_parameters() if name.startswith("steps.")],
        "checked": checked,
    }


@torch.no_grad()
def accuracy(net: nn.Module, dataset: data.Dataset) -> float:
    net.eval()
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in dataset.test_batches())
    return right / len(dataset.test_labels)


# Table 2 ------------------------------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """The most bytes alive at once of all tensors made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                ref = StorageWeakRef(storage)
                self.alive[ref.cdata] = (ref, storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def cost(layers: int = COST_LAYERS, rounds: int = 7) -> dict[str, Any]:
    """Bytes and processor seconds of a training step and of inference, schemes in turn; medians."""
    keys = [key for key, scheme in SCHEMES.items() if not scheme.is_control and scheme.blocks(layers)]
    nets = {key: _of_equal_blocks(SCHEMES[key], layers) for key in keys}
    x = torch.randn(BATCH, 3, PIXELS, PIXELS)
    rows: dict[str, Any] = {}
    for key, net in nets.items():
        with Memory() as training:
            net.train()(x).sum().backward()
        net.zero_grad(set_to_none=True)
        with torch.no_grad(), Memory() as inference:
            net.eval()(x)
        net.train()
        rows[key] = {
            "maps": inference.peak / (BATCH * WIDTH * PIXELS**2 * 4),
            "training_bytes": training.peak,
            "inference_bytes": inference.peak,
        }
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    for i in range(rounds + 1):
        for key, net in nets.items():
            began = time.process_time()
            net(x).sum().backward()
            if i:  # the first is a warm-up
                seconds[key].append(time.process_time() - began)
    for key in keys:
        rows[key]["seconds"] = median(seconds[key])
    return {"layers": layers, "schemes": rows}


def _of_equal_blocks(scheme: Scheme, layers: int) -> nn.Module:
    return build(scheme, layers, width=WIDTH, classes=10, seed=0, pixels=PIXELS)

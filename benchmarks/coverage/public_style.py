"""Thirty networks in the style of public repositories: name -> a function to (model, inputs, inputs of other sizes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .public_images import (
    EDSR,
    FCN,
    SRGAN,
    VAE,
    DnCNN,
    Frozen,
    Hooked,
    MLPMixer,
    PatchGAN,
    Siamese,
    UNet,
    ViT,
    WideResNet,
)  # fmt: skip
from .public_sequences import GPT, TCN, AdditiveGRU, DeepAR, PatchTST, TokenShift, WaveNet
from .public_tables import (
    KAN,
    Conformer,
    DeepSets,
    DenseGCN,
    Highway,
    LoRATransformer,
    ODENet,
    Perceiver,
    SparseGIN,
    Tabular,
)  # fmt: skip

__all__ = ["PUBLIC_STYLE"]

Entry = tuple[nn.Module, Any, dict[str, Any]]


def _sized(model: Callable[[], nn.Module], inputs: Callable[..., Any], *sizes: Any) -> Callable[[], Entry]:
    """The model, with the inputs of the first size, and those of the others to compare."""

    def build() -> Entry:
        example, *others = (inputs(*(size if isinstance(size, tuple) else (size,))) for size in sizes)
        labels = ["×".join(map(str, size)) if isinstance(size, tuple) else str(size) for size in sizes[1:]]
        return model(), example, dict(zip(labels, others, strict=True))

    return build


def _image(channels: int) -> Callable[..., torch.Tensor]:
    return lambda *size: torch.randn(2, channels, *size)


def _tokens(count: int) -> Callable[[int], torch.Tensor]:
    return lambda length: torch.randint(1, count, (2, length))


def _sequence(width: int) -> Callable[[int], torch.Tensor]:
    return lambda length: torch.randn(2, length, width)


def _vectors(width: int) -> Callable[[int], torch.Tensor]:
    return lambda rows: torch.randn(rows, width)


def _tokens_and_targets(length: int) -> dict[str, torch.Tensor]:
    return {"idx": torch.randint(100, (2, length)), "targets": torch.randint(100, (2, length))}


def _dense_graph(nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    adjacency = (torch.rand(2, nodes, nodes) < 0.3).float()
    return torch.randn(2, nodes, 6), ((adjacency + adjacency.transpose(1, 2)) > 0).float()


def _sparse_graph(nodes: int, edges: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(nodes, 6), torch.randint(nodes, (2, edges))


def _series(steps: int) -> tuple[torch.Tensor, ...]:
    return torch.rand(3, steps), torch.randn(3, steps, 3), torch.randint(10, (3,))


def _speech(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, frames, 8), torch.tensor([frames, frames - 9])


def _batch(rows: int) -> tuple[dict[str, torch.Tensor]]:
    return ({"cat": torch.randint(3, (rows, 3)), "num": torch.randn(rows, 4)},)


_SIDES = ((32, 32), (48, 48), (32, 40))

PUBLIC_STYLE: dict[str, Callable[[], Entry]] = {
    "nanoGPT": _sized(GPT, _tokens(100), 16, 11, 24),
    "nanoGPT(targets)": _sized(GPT, _tokens_and_targets, 16, 11, 24),
    "nanoGPT(flash=False)": _sized(lambda: GPT(flash=False), _tokens_and_targets, 16, 11, 24),
    "WaveNet": _sized(WaveNet, _image(1), (64,), (50,), (80,)),
    "TCN": _sized(TCN, _sequence(3), 40, 33, 64),
    "TokenShift": _sized(TokenShift, _tokens(50), 16, 11, 24),
    "PatchTST": _sized(PatchTST, _sequence(5), 48),
    "DeepAR": _sized(DeepAR, _series, 16, 11, 24),
    "AdditiveGRU": _sized(AdditiveGRU, _tokens(60), 16, 11, 24),
    "Conformer": _sized(Conformer, _speech, 32, 25, 48),
    "DenseGCN": _sized(DenseGCN, _dense_graph, 9, 7, 14),
    "SparseGIN": _sized(SparseGIN, _sparse_graph, (9, 20), (7, 12), (14, 40)),
    "DeepSets": _sized(DeepSets, _sequence(3), 10, 7, 16),
    "Tabular": _sized(Tabular, _batch, 6, 9),
    "Perceiver": _sized(Perceiver, _sequence(5), 12, 9, 20),
    "LoRATransformer": _sized(LoRATransformer, _sequence(6), 12, 9, 20),
    "Highway": _sized(Highway, _vectors(10), 4, 7),
    "ODENet": _sized(ODENet, _vectors(4), 4, 7),
    "KAN": _sized(KAN, _vectors(4), 4, 7),
    "UNet": _sized(UNet, _image(3), *_SIDES),
    "SRGAN": _sized(SRGAN, _image(3), *_SIDES),
    "EDSR": _sized(EDSR, _image(3), *_SIDES),
    "DnCNN": _sized(DnCNN, _image(1), *_SIDES),
    "FCN": _sized(FCN, _image(3), *_SIDES),
    "MLPMixer": _sized(MLPMixer, _image(3), (32, 32)),
    "ViT": _sized(ViT, _image(3), (32, 32), (16, 32), (24, 24)),
    "PatchGAN": _sized(PatchGAN, _image(3), *_SIDES),
    "VAE": _sized(VAE, _image(3), (32, 32)),
    "Siamese": _sized(Siamese, lambda side: (torch.randn(2, 1, side, side), torch.randn(2, 1, side, side)), 32, 48),
    "WideResNet": _sized(WideResNet, _image(3), (32, 32), (16, 16)),
    "Hooked": _sized(Hooked, _image(3), *_SIDES),
    "Frozen": _sized(Frozen, _image(3), *_SIDES),
}
